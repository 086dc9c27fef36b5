"""Users' accounts and places, from the core's ledger; and GPU-hours in a period, from the rows of sessions."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from policies.model import NANO, Node, User
from policies.order import FairQueue
from policies.shares import ShareNode, rank_fair_tree
from policies.standing import AUTO_BASELINE_MAX, credit_cap_gpu_h, standing
from scheduler.api.rows import Json, gpu_h

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.core import Core
    from scheduler.ports import Row

_DIGITS = 6


def shares(core: Core) -> list[Json]:
    """Every user, best first.

    Rank, factor and level_fs are Fair Tree's over usage and committed charge together, as standing is: who is first
    here is first in the queue among those who ask for the same.
    """
    ranked = rank_fair_tree(_tree(core))
    return [
        _account(core, core.ledger.users[place.user])
        | {"level_fs": place.level_fs, "rank": place.rank, "factor": round(place.factor, _DIGITS)}
        for place in ranked
    ]


def _account(core: Core, user: User) -> Json:
    clock = core.view.clock
    usage = clock.usage(user)
    return {
        "user": user.name,
        "path": "/".join(node.name for node in user.path),
        "shares": user.shares,
        "usage_gpu_h": round(usage, _DIGITS),
        "committed_gpu_h": round(user.committed_n / NANO, _DIGITS),
        "standing_gpu_h": round(standing(user, clock), _DIGITS),
        "credit_gpu_h": round(credit_cap(core, user.tier) - usage, _DIGITS),
    }


def credit_cap(core: Core, tier: str) -> float:
    """Credit cap of a tier, GPU-h; where the policy keeps none, what its parameters say."""
    if isinstance(core.queue, FairQueue) and tier in core.queue.caps:
        return float(core.queue.caps[tier])
    baseline = core.params.tier(tier).baseline_gpus
    return credit_cap_gpu_h(AUTO_BASELINE_MAX if baseline is None else baseline, core.view.clock)


def _tree(core: Core) -> ShareNode:
    """The share tree with usage and committed charge, in whole nano GPU-h: ties are exact, sums are cheap."""
    below: defaultdict[int, list[Node]] = defaultdict(list)
    for node in core.ledger.nodes():
        below[id(node.parent)].append(node)

    def convert(node: Node) -> ShareNode:
        if isinstance(node, User):
            used_n = round(core.view.clock.usage(node) * NANO) + node.committed_n
            return ShareNode(name=node.name, shares=node.shares, usage=max(0, used_n))
        return ShareNode(name=node.name, shares=node.shares, children=tuple(map(convert, below[id(node)])))

    return convert(core.ledger.root)


def usage(core: Core, found: Iterable[Row], only: str | None, since_ms: int, now_ms: int) -> list[Json]:
    """GPU-hours granted and busy by user since an instant, most first; with the account as it stands now.

    A session that began before counts by the part of its run that lies in the period (evenly: the counters are sums).
    """
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for row in found:
        part = _part(row, since_ms, now_ms)
        if row["started_ms"] is not None and part > 0:
            total = sums[row["user"]]
            total[0] += 1
            total[1] += row["granted_ms"] * part
            total[2] += row["busy_ms"] * part
    names = {*sums, *core.ledger.users} if only is None else {only}
    listed = [_used(core, name, *sums[name]) for name in names]
    return sorted(listed, key=lambda entry: (-entry["allocated_gpu_h"], entry["user"]))


def _part(row: Row, since_ms: int, now_ms: int) -> float:
    """Part of a session's run, 0..1, that is after `since_ms`."""
    begin: int | None = row["started_ms"]
    end: int = now_ms if row["ended_ms"] is None else row["ended_ms"]
    if begin is None or begin >= since_ms or end <= begin:
        return 1.0
    return max(0.0, min(1.0, (end - since_ms) / (end - begin)))


def _used(core: Core, name: str, sessions: float, granted_ms: float, busy_ms: float) -> Json:
    user = core.ledger.users.get(name)
    decayed = None if user is None else core.view.clock.usage(user)
    return {
        "user": name,
        "group": None if user is None else user.group.name,
        "tier": None if user is None else user.tier,
        "sessions": int(sessions),
        "allocated_gpu_h": gpu_h(granted_ms),
        "busy_gpu_h": gpu_h(busy_ms),
        "usage_gpu_h": None if decayed is None else round(decayed, _DIGITS),
        "credit_gpu_h": None
        if user is None or decayed is None
        else round(credit_cap(core, user.tier) - decayed, _DIGITS),
    }
