"""What must be true of the core at any moment, checked from scratch: for tests, chaos runs and `doctor`.

Slow on purpose: nothing here trusts an index or a running count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from policies.give_way import missing_m
from policies.model import NANO, WHOLE_M, Ladder, State
from policies.order import FairQueue
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from policies.lanes import Cell
    from policies.model import Allocation, Session
    from scheduler.core import Core

WAITING = (State.QUEUED, State.HELD)


def audit(core: Core) -> None:
    """Raise AssertionError with everything that is wrong."""
    problems = [*_sessions(core), *_gpus(core), *_ledger(core), *_claims(core), *_queue(core), *_tiers(core)]
    problems += _rights(core)
    if problems:
        raise AssertionError("; ".join(problems))


def _tiers(core: Core) -> list[str]:
    """Tiers that end are those of known users, and the next end is known."""
    ends = core.memberships.of
    first = min((membership.until_ms for membership in ends.values()), default=NEVER_MS)
    wrong = [f"tier of {name} ends, who is not known" for name in ends if name not in core.ledger.users]
    return wrong + ([] if core.memberships.next_ms == first else [f"the next tier ends at {first} ms"])


def _sessions(core: Core) -> list[str]:
    view, wrong = core.view, []
    holding = {sid for sid, session in core.sessions.items() if session.allocation is not None}
    if holding != set(view.holders):
        wrong.append(f"holders {sorted(view.holders)} are not the sessions with GPUs {sorted(holding)}")
    for sid, session in core.sessions.items():
        if (session.state in WAITING) == (session.allocation is not None):
            wrong.append(f"session {sid} is {session.state} with allocation {session.allocation}")
        if (sid in session.user.held) != (sid in holding):
            wrong.append(f"user {session.user.name} and session {sid} disagree about holding")
        above = session.ladder in (Ladder.WARN, Ladder.THROTTLE, Ladder.GRACE) and session.state is not State.STOPPING
        if above != (sid in view.warned):
            wrong.append(f"session {sid} is on rung {session.ladder}, {session.state}, warned: {sid in view.warned}")
    shrunk = {sid for sid, session in view.holders.items() if session.granted_m < session.shape.fraction_m}
    if shrunk != set(view.shrunk):
        wrong.append(f"shrunk {sorted(view.shrunk)}, counted {sorted(shrunk)}")
    leaving = sum(s.held_m for s in view.holders.values() if view.leaving(s))
    if leaving != view.leaving_m:
        wrong.append(f"leaving {view.leaving_m}, counted {leaving}")
    return wrong


def _gpus(core: Core) -> list[str]:
    """No GPU is held twice, and what is not held is free."""
    wrong: list[str] = []
    used: dict[tuple[str, int], int] = {}
    whole: set[tuple[str, int]] = set()
    held = [session.allocation for session in core.sessions.values() if session.allocation is not None]
    held += [allocation for claim in core.view.claims.values() for allocation in claim.set_aside]
    for allocation in held:
        for gpu in _gpus_of(allocation):
            used[gpu] = used.get(gpu, 0) + allocation.fraction_m
            if allocation.fraction_m == WHOLE_M:
                whole.add(gpu)
    wrong += [f"GPU {gpu} is held at {m} thousandths" for gpu, m in used.items() if m > WHOLE_M]
    free_m = 0
    for name, host in core.cluster.hosts.items():
        free = {(name, gpu) for gpu in host.free}
        shared = {(name, gpu): left[0] for gpu, left in host.shared.items()}
        if len(free) != len(host.free) or free & used.keys() or free & shared.keys():
            wrong.append(f"host {name}: free GPUs {host.free} are held as well")
        wrong += [
            f"GPU {gpu}: {left} left, {used.get(gpu, 0)} held"
            for gpu, left in shared.items()
            if left + used.get(gpu, 0) != WHOLE_M
        ]
        if len(free) + len(shared) + sum(1 for gpu in whole if gpu[0] == name) != host.spec.gpus:
            wrong.append(f"host {name}: GPUs are missing")
        if host.available:
            free_m += len(free) * WHOLE_M + sum(shared.values())
    if free_m != core.cluster.free_m:
        wrong.append(f"free {core.cluster.free_m}, counted {free_m}")
    return wrong


def _gpus_of(allocation: Allocation) -> list[tuple[str, int]]:
    return [(host, gpu) for host, gpus in allocation.parts for gpu in gpus]


def _ledger(core: Core) -> list[str]:
    """Rates and committed charges are sums over sessions; a group's usage is the sum of its users'."""
    wrong: list[str] = []
    rate: dict[object, int] = {}
    committed: dict[object, int] = {}
    usage: dict[object, float] = {}
    clock = core.view.clock
    for session in core.sessions.values():
        for node in session.user.path:
            rate[node] = rate.get(node, 0) + session.rate_n
            committed[node] = committed.get(node, 0) + session.committed_n
    for user in core.ledger.users.values():
        for node in user.path:
            usage[node] = usage.get(node, 0.0) + clock.usage(user)
    for node in core.ledger.nodes():
        if node.rate_n != rate.get(node, 0) or node.committed_n != committed.get(node, 0):
            wrong.append(f"{node.name}: rate {node.rate_n} and committed {node.committed_n} are not its sessions'")
        steady = node.rate_n / NANO * clock.steady_gpu_h
        if not math.isclose(node.steady, steady, rel_tol=1e-12, abs_tol=1e-12):
            wrong.append(f"{node.name}: steady {node.steady} does not follow from its rate")
        if not math.isclose(clock.usage(node), usage.get(node, 0.0), rel_tol=1e-6, abs_tol=1e-6):
            wrong.append(f"{node.name}: usage {clock.usage(node)}, its users' {usage.get(node, 0.0)}")
        if not clock.usage(node) >= -1e-9:
            wrong.append(f"{node.name}: usage {clock.usage(node)} is negative")
    return wrong


def _claims(core: Core) -> list[str]:
    view, wrong = core.view, []
    claimed_m = set_aside_m = 0
    for number, claim in view.claims.items():
        if claim.number != number or not (claim.victims or claim.set_aside):
            wrong.append(f"claim {number} is empty or misfiled")
        wrong += [
            f"session {session.id} of claim {number} is on rung {session.ladder}"
            for session in claim.victims
            if session.claim is not claim or session.ladder is not Ladder.GRACE
        ]
        if claim.waiter is not None:
            claimed_m += claim.waiter.shape.amount_m
            if claim.waiter.claim is not claim or claim.waiter.state is not State.QUEUED:
                wrong.append(f"waiter {claim.waiter.id} of claim {number} is {claim.waiter.state}")
        elif claim.set_aside:
            wrong.append(f"claim {number} keeps GPUs for nobody")
        set_aside_m += sum(allocation.amount_m for allocation in claim.set_aside)
    lacking_m = sum(map(missing_m, view.claims.values()))
    if lacking_m != view.missing_m:
        wrong.append(f"missing {view.missing_m}, counted {lacking_m}")
    if (claimed_m, set_aside_m) != (view.claimed_m, view.set_aside_m):
        wrong.append(f"claimed {view.claimed_m}, set aside {view.set_aside_m}; counted {claimed_m}, {set_aside_m}")
    return wrong


def _queue(core: Core) -> list[str]:
    """The queue has exactly the waiting sessions, filed where they belong."""
    wrong: list[str] = []
    waiting = [s for s in core.sessions.values() if _waits(core, s)]
    if core.queue.waiting != len(waiting):
        wrong.append(f"{core.queue.waiting} wait in the queue, {len(waiting)} in all")
    queue = core.queue
    if not isinstance(queue, FairQueue):
        return wrong
    cells: dict[Cell, None] = {}
    counts: dict[object, int] = {}
    for session in waiting:
        cell = session.user.cells[session.shape]
        if cell.block is not None:
            wrong += [f"session {session.id} is blocked and filed"] if cell.bench is not None or cell.asked_m else []
            continue
        cells[cell] = None
        key = (session.shape, cell.in_credit, queue.rights.of(session.user))
        counts[key] = counts.get(key, 0) + 1
        if cell.bench is None or queue.lanes.get(key) is not cell.bench.lane:
            wrong.append(f"session {session.id} is not filed")
    asked_m = sum(cell.asked_m for cell in cells if cell.in_credit)
    wrong += [
        f"cell of {cell.user.name} asks {cell.asked_m}"
        for cell in cells
        if cell.asked_m > (cell.count * cell.amount_m if cell.own_credit else 0)
    ]
    if asked_m != queue.asked_m:
        wrong.append(f"asked {queue.asked_m}, counted {asked_m}")
    if counts != {key: lane.count for key, lane in queue.lanes.items() if lane.count}:
        wrong.append("lanes count other sessions than there are")
    over = {user for user in core.ledger.users.values() if user.held and not user.in_credit}
    if over != set(queue.over):
        wrong.append(f"over {[user.name for user in queue.over]} are not the holders out of credit")
    return wrong


def _rights(core: Core) -> list[str]:
    """Rights in force are those agreed, and what is held of each is what its users' sessions hold."""
    wrong: list[str] = []
    if not isinstance(core.queue, FairQueue):
        return wrong
    rights, now = core.queue.rights, core.now_ms
    tiers = {name: round(tier.guaranteed_gpus * WHOLE_M) for name, tier in core.params.tiers.items()}
    if {name: right.amount_m for name, right in rights.tiers.items()} != {n: m for n, m in tiers.items() if m}:
        wrong.append("guarantees are not the policy's")
    if rights.next_ms() > now and {g: (r.amount_m, r.due_m) for g, r in rights.groups.items()} != _reserved(core, now):
        wrong.append("reservations in force are not the calendar's")
    if rights.none != (not rights.tiers and not rights.groups):
        wrong.append("there are rights and there are none")
    held = dict.fromkeys((*rights.tiers.values(), *rights.groups.values()), 0)
    if not held:
        return wrong
    for session in core.sessions.values():
        if session.allocation is None and session.claim is None:
            continue
        above, group = [], session.user.parent
        while group is not None:
            above.append(group.name)
            group = group.parent
        own = [rights.tiers.get(session.user.tier), next((rights.groups[g] for g in above if g in rights.groups), None)]
        for right in own:
            if right is not None:
                held[right] += session.shape.amount_m
    wrong += [
        f"{right.held_m} held of the right {right.name}, counted {m}" for right, m in held.items() if right.held_m != m
    ]
    return wrong


def _reserved(core: Core, now: int) -> dict[str, tuple[int, int]]:
    """(amount, the part that may be taken back) of every reservation in force or near, by group."""
    found: dict[str, tuple[int, int]] = {}
    ladder = core.params.ladder
    for entry in core.view.calendar.reservations():
        told_ms = entry.from_ms - ladder.grace_ms - ladder.warn_ms - ladder.contention_ms
        kept_ms = entry.from_ms - ladder.grace_ms - max(ladder.warn_ms, ladder.min_run_ms) - ladder.contention_ms
        if kept_ms <= now < entry.until_ms:
            amount_m, due_m = found.get(entry.group, (0, 0))
            found[entry.group] = max(amount_m, entry.gpus_m), max(due_m, entry.gpus_m if told_ms <= now else 0)
    return found


def _waits(core: Core, session: Session) -> bool:
    return session.state is State.QUEUED and session.claim is None and session not in core.view.unplaceable
