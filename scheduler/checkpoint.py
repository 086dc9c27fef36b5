"""The core's state as plain data, and back: what a journal starts with and a forecast is made from.

Everything that cannot be computed again is written; indexes are built anew. A core restored from a checkpoint decides
what the original would have decided (a property test holds it to that).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.calendar import Entry
from policies.load import LoadWindow
from policies.model import Allocation, Claim, Kind, Ladder, Node, Session, Shape, Sighting, State, User
from policies.placement import HostSpec
from policies.quota import Holdings
from policies.snapshot import Memory
from policies.usage import NEVER_MS
from scheduler.core import Core
from scheduler.memberships import Membership
from scheduler.metering import Meter

if TYPE_CHECKING:
    from policies.snapshot import Policy

Data = dict[str, Any]

_SESSION = ("submit_ms", "seq", "expected_ms", "granted_m", "load", "rate_n", "committed_n", "start_ms")
_SESSION_LADDER = ("ladder_since_ms", "lead_ms", "saved_ms", "acknowledged", "by_band")
_SESSION_TRACKS = ("extended_ms", "idle_since_ms", "told_ms", "idle_told_ms", "maintenance_told_ms", "curbed_by")
_SIGHTING = ("since_ms", "live", "step", "stepped_ms", "ends_ms", "noted")
_ACCOUNT = ("shares", "scaled", "steady", "rate_n", "committed_n")
_USER = (
    *("tier", "active_ms", "cooldown_until_ms", "restricted_until_ms", "restricted_rule", "allowances"),
    *("in_credit", "noticed", "due_ms"),
)
_MEMORY = (
    "contention_since_ms",
    "calm_from_ms",
    "baselines",
    "baseline_due_ms",
    "first_ms",
    "since_band",
    "stock_m",
    "stock_due_ms",
)
_METER = ("busy_ms", "granted_ms", "charged", "since_ms", "rate_n")
_COUNTERS = ("arrivals", "revision")


def dump(core: Core) -> Data:
    """The state as JSON-able data that shares nothing with the core."""
    view, clock = core.view, core.view.clock
    return {
        "now_ms": clock.now_ms,
        "landmark_ms": clock.landmark_ms,
        "shared_limit": core.cluster.shared_limit,
        **{name: getattr(core, name) for name in _COUNTERS},
        "claims_made": core.claims.made,
        "groups": [_node(node) | {"parent": _parent(node)} for node in core.ledger.groups.values()],
        "users": [_user(user) for user in core.ledger.users.values()],
        "calendar": [list(entry) for entry in view.calendar.entries.values()],
        "hosts": [_host(core, name) for name in core.cluster.hosts],
        "sessions": [_session(session) for session in core.sessions.values()],
        "meters": {sid: [getattr(meter, name) for name in _METER] for sid, meter in core.meters.items()},
        "claims": [_claim(claim) for claim in view.claims.values()],
        "holders": list(view.holders),
        "warned": list(view.warned),
        "unplaceable": [session.id for session in view.unplaceable],
        "touched": core.queue.touched_names(),
        "shared_dues": [list(due) for due in core.queue.shared_dues()],
        "memory": {name: getattr(view.memory, name) for name in _MEMORY} | {"baselines": dict(view.memory.baselines)},
        "learned": core.queue.learned(),
        "wakes": core.pending_wakes(),
        **_memberships(core),
    }


def _memberships(core: Core) -> Data:
    """Only where a tier ends by itself: a checkpoint from before there were such tiers has none, and is read alike."""
    ends = {user: list(membership) for user, membership in core.memberships.of.items()}
    return {"memberships": ends} if ends else {}


def restore(data: Data, policy: Policy) -> Core:
    """A core in the state that `dump` wrote; KeyError, TypeError or ValueError when the data are not such a state."""
    try:
        core = _restore(data, policy)
        core.validate()
    except (AssertionError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"the checkpoint is damaged: {error}") from error
    return core


def under(core: Core, policy: Policy) -> Core:
    """A new core in the same state under another policy: usage, queue, allocations and rungs stay as they are.

    Charge rates, committed charges and credit follow the new parameters from now on. What was remembered goes on as far
    as it means the same under both; the account of what was charged ahead of the next reports begins anew.
    """
    data, now_ms = dump(core), core.now_ms
    for entry, node in zip(data["groups"] + data["users"], core.ledger.nodes(), strict=True):
        entry.update(scaled=core.view.clock.usage(node), steady=0.0, rate_n=0, committed_n=0)
    for entry in data["users"]:
        entry.update(in_credit=True, due_ms=NEVER_MS)
    for entry in data["sessions"]:
        entry.update(rate_n=0, committed_n=0)
    data.update(landmark_ms=now_ms, wakes=[now_ms + 1], touched=[], shared_dues=[], meters={})
    data["memory"] = _remembered(core, policy)
    fresh = _restore(data, policy)
    fresh.take_over(core.meters)
    fresh.validate()
    return fresh


def _remembered(core: Core, policy: Policy) -> Data:
    """What another policy goes on with: facts, and figures that would come out the same; the rest begins anew."""
    before, old, new = core.view.memory, core.params, policy.params
    kept: Data = {name: getattr(Memory(), name) for name in _MEMORY}
    names = ["first_ms"]
    if old.policy == new.policy:
        names += ["contention_since_ms", "calm_from_ms", "since_band"]
        auto = {user.tier for user in core.ledger.users.values() if new.tier(user.tier).baseline_gpus is None}
        kept["baselines"] = {tier: gpus for tier, gpus in before.baselines.items() if tier in auto}
        if kept["baselines"].keys() == auto:
            names.append("baseline_due_ms")
        same_lead = (old.ladder.warn_ms, old.ladder.grace_ms) == (new.ladder.warn_ms, new.ladder.grace_ms)
        if old.headroom == new.headroom and same_lead:
            names += ["stock_m", "stock_due_ms"]
    return kept | {name: getattr(before, name) for name in names}


def _restore(data: Data, policy: Policy) -> Core:
    core = Core(policy, data["landmark_ms"], data["shared_limit"])
    core.ledger.advance(data["now_ms"])
    for name in _COUNTERS:
        setattr(core, name, data[name])
    core.claims.made = data["claims_made"]
    for host in data["hosts"]:
        _restore_host(core, host)
    for group in data["groups"]:
        _restore_account(core.ledger.set_group(group["name"], group["shares"], group["parent"]), group)
    for values in data["calendar"]:
        entry = Entry(*values)
        core.view.calendar.entries[entry.id] = entry._replace(hosts=tuple(entry.hosts))
    core.hosts.follow_calendar(data["now_ms"])
    core.view.wakes.clear()  # they are among those written, or the first cycle asks for them again
    core.hosts.calendar_changed()
    core.queue.calendar_changed(core.view.calendar)
    for entry in data["users"]:
        user = core.ledger.set_user(entry["name"], entry["group"], entry["tier"], entry["shares"])
        _restore_account(user, entry)
        for name in _USER:
            setattr(user, name, entry[name])
        if entry["holdings"] is not None:
            user.holdings = Holdings([(at_ms, held_m) for at_ms, held_m in entry["holdings"]])
    _restore_memberships(core, data)
    for entry in data["sessions"]:
        session = _restore_session(core, entry)
        core.sessions[session.id] = session
    for sid, values in data["meters"].items():
        meter = core.meters[core.sessions[sid].id] = Meter(0)
        for name, value in zip(_METER, values, strict=True):
            setattr(meter, name, value)
    for claim in data["claims"]:
        _restore_claim(core, claim)
    core.claims.count_missing()
    _restore_view(core, data)
    return core


def _node(node: Node) -> Data:
    return {"name": node.name, **{name: getattr(node, name) for name in _ACCOUNT}}


def _parent(node: Node) -> str | None:
    return node.parent.name or None if node.parent is not None else None


def _user(user: User) -> Data:
    knots = None if user.holdings is None else [list(knot) for knot in user.holdings.knots]
    return _node(user) | {"group": user.group.name, "holdings": knots, **{n: getattr(user, n) for n in _USER}}


def _host(core: Core, name: str) -> Data:
    host, view = core.cluster.hosts[name], core.view
    spec = host.spec
    return {
        "name": name,
        "gpus": spec.gpus,
        "model": spec.model,
        "memory_mib": spec.memory_mib,
        "free": list(host.free),
        "shared": [[gpu, *left] for gpu, left in host.shared.items()],
        "reported_ms": core.hosts.reported_ms.get(name),
        "stale": name in view.stale_hosts,
        "lost": name in view.lost_hosts,
        "drained": name in view.drained_hosts,
    }


def _session(session: Session) -> Data:
    return {
        "id": session.id,
        "user": session.user.name,
        "shape": list(session.shape),
        "state": session.state,
        "ladder": session.ladder,
        **{name: getattr(session, name) for name in _SESSION + _SESSION_LADDER + _SESSION_TRACKS},
        "allocation": None if session.allocation is None else _allocation(session.allocation),
        "uses": None if session.uses is None else {rule: _sighting(one) for rule, one in session.uses.items()},
        "window": None if session.window is None else [list(knot) for knot in session.window.knots],
    }


def _sighting(sighting: Sighting) -> list[Any]:
    return [getattr(sighting, name) for name in _SIGHTING]


def _allocation(allocation: Allocation) -> Data:
    parts = [[host, list(gpus)] for host, gpus in allocation.parts]
    return {"parts": parts, "fraction_m": allocation.fraction_m, "memory_mib": allocation.memory_mib}


def _claim(claim: Claim) -> Data:
    return {
        "number": claim.number,
        "waiter": claim.waiter.id if claim.waiter is not None else None,
        "kind": claim.kind,
        "promised": claim.promised,
        "victims": [session.id for session in claim.victims],
        "set_aside": [_allocation(allocation) for allocation in claim.set_aside],
    }


def _restore_account(node: Node, data: Data) -> None:
    for name in _ACCOUNT:
        if name != "shares":
            setattr(node, name, data[name])


def _restore_host(core: Core, data: Data) -> None:
    name, view = data["name"], core.view
    core.cluster.add_host(
        HostSpec(name=name, gpus=data["gpus"], model=data["model"], memory_mib=data["memory_mib"]),
        free=list(data["free"]),
        shared={gpu: [left, memory] for gpu, left, memory in data["shared"]},
    )
    if data["reported_ms"] is not None:
        core.hosts.reported_ms[name] = data["reported_ms"]
    for flag, names in (("stale", view.stale_hosts), ("lost", view.lost_hosts), ("drained", view.drained_hosts)):
        if data[flag]:
            names.add(name)
    core.cluster.set_available(name, available=not (data["stale"] or data["drained"]))


def _restore_allocation(data: Data) -> Allocation:
    parts = tuple((host, tuple(gpus)) for host, gpus in data["parts"])
    return Allocation(parts, data["fraction_m"], data["memory_mib"])


def _restore_session(core: Core, data: Data) -> Session:
    gpus, fraction_m, gpu_type, memory_mib = data["shape"]
    user = core.ledger.users[data["user"]]
    shape = Shape(gpus, fraction_m, gpu_type, memory_mib)
    session = Session(data["id"], user, shape, data["submit_ms"], data["seq"], data["expected_ms"])
    session.state, session.ladder = State(data["state"]), Ladder(data["ladder"])
    for name in _SESSION + _SESSION_LADDER + _SESSION_TRACKS:
        setattr(session, name, data[name])
    if data["allocation"] is not None:
        session.allocation = _restore_allocation(data["allocation"])
    if data["uses"] is not None:
        session.uses = {rule: _restore_sighting(values) for rule, values in data["uses"].items()}
    if data["window"] is not None:
        session.window = LoadWindow(core.params.ladder.heavy_window_ms, 0)
        session.window.knots.clear()
        session.window.knots.extend((at_ms, load) for at_ms, load in data["window"])
    return session


def _restore_sighting(values: list[Any]) -> Sighting:
    sighting = Sighting(0)
    for name, value in zip(_SIGHTING, values, strict=True):
        setattr(sighting, name, value)
    return sighting


def _restore_memberships(core: Core, data: Data) -> None:
    for name, (until_ms, then_tier) in data.get("memberships", {}).items():
        core.memberships.set(core.ledger.users[name].name, Membership(until_ms, then_tier))


def _restore_claim(core: Core, data: Data) -> None:
    view = core.view
    waiter = None if data["waiter"] is None else core.sessions[data["waiter"]]
    victims = [core.sessions[sid] for sid in data["victims"]]
    claim = Claim(data["number"], waiter, victims, Kind(data["kind"]))
    claim.promised = data["promised"]
    claim.set_aside = [_restore_allocation(entry) for entry in data["set_aside"]]
    view.claims[claim.number] = claim
    for session in victims:
        session.claim = claim
    if waiter is not None:
        waiter.claim = claim
        waiter.user.nominated[waiter.id] = waiter
        view.claimed_m += waiter.shape.amount_m
    for allocation in claim.set_aside:
        view.set_aside_m += allocation.amount_m


def _restore_view(core: Core, data: Data) -> None:
    """Orders and counts of the view, then the queue with what was computed ahead for it."""
    view, sessions = core.view, core.sessions
    for sid in data["holders"]:
        view.holders[sid] = sessions[sid].user.held[sid] = sessions[sid]
    view.leaving_m = sum(s.held_m for s in view.holders.values() if view.leaving(s))
    view.shrunk.update((sid, s) for sid, s in view.holders.items() if s.granted_m < s.shape.fraction_m)
    view.warned.update((sid, sessions[sid]) for sid in data["warned"])
    view.unplaceable.extend(sessions[sid] for sid in data["unplaceable"])
    for name, value in data["memory"].items():
        setattr(view.memory, name, value)
    core.wake_at(data["wakes"])
    due = {name: user.due_ms for name, user in core.ledger.users.items()}
    core.queue.restore_memory(view.memory)
    core.queue.restore_learned(data["learned"], sum(s.shape.amount_m for s in view.holders.values()))
    if core.policy.tracked:
        for session in view.holders.values():
            view.look(session, core.now_ms)
    for session in sessions.values():
        if session.state is State.QUEUED and session.claim is None and session not in view.unplaceable:
            core.queue.add(session)
    for user in core.ledger.users.values():
        if user.held or user.nominated:
            core.queue.user_changed(user)
        if due[user.name] != NEVER_MS:
            core.queue.set_due(user, due[user.name])
    core.queue.restore_shared_dues([(group, tier, at_ms) for group, tier, at_ms in data["shared_dues"]])
    core.queue.touch([core.ledger.users[name] for name in data["touched"]])
