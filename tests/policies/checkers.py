"""What must hold of every run, checked on its record alone.

`World` is a second account of a run, rebuilt from events and decisions by the formulas themselves: plain dictionaries,
no index, no forward decay, every question answered by looking at everything. Each `check_...` returns what it found
wrong, one sentence each; an empty list means that the rule held.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from policies.calendar import MAINTENANCE, Entry
from policies.model import HOUR_MS, WHOLE_M, Action, Allocation, Decision
from policies.params import Params
from scheduler import events as ev
from tests.policies.harness import Cycle, Record, cycles_of
from tests.policies.right_book import RightBook

Findings = list[str]
CLOSE = 1e-9
"""GPU-h that two ways of computing one figure may lie apart."""

Gpu = tuple[str, int]


@dataclass(slots=True, kw_only=True)
class Run:
    """A session as the world knows it; `target` is the waiter that it gives way to, "" for the headroom.

    `rule` is that of its grace, or of that of the sessions that give way to it.
    """

    sid: str
    user: str
    gpus: int
    fraction_m: int
    submit_ms: int
    state: str = "queued"
    allocation: Allocation | None = None
    granted_m: int = 0
    load: float | None = None
    loads: list[tuple[int, float | None]] = field(default_factory=list)
    start_ms: int = -1
    warned_ms: int | None = None
    grace_ms: int | None = None
    acknowledged: bool = False
    target: str | None = None
    rule: str = ""
    by_band: bool = False
    reserving: bool = False
    nominated: bool = False
    promised: bool = False
    aside: list[Allocation] = field(default_factory=list)

    @property
    def amount_m(self) -> int:
        """Thousandths of a GPU asked for."""
        return self.gpus * self.fraction_m

    @property
    def held_m(self) -> int:
        """Thousandths of a GPU granted now."""
        return self.gpus * self.granted_m

    @property
    def leaving(self) -> bool:
        """In grace or being stopped."""
        return self.grace_ms is not None or self.state == "stopping"


@dataclass(slots=True, kw_only=True)
class Person:
    """A user: its group, its tier, its shares, and its usage at the last change of its charge rate."""

    group: str
    tier: str = "free"
    shares: float = 1.0
    usage: float = 0.0
    rate: float = 0.0
    since_ms: int = 0
    cooldown_ms: int = 0


@dataclass(slots=True, kw_only=True)
class Machinery:
    """A host; `seen_ms` is its last report, None for one that owes none."""

    gpus: int
    seen_ms: int | None
    drained: bool = False
    silent: bool = False


class World:
    """The state of things, rebuilt from what happened."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.now_ms = 0
        self.hosts: dict[str, Machinery] = {}
        self.groups: dict[str, float] = {}
        self.users: dict[str, Person] = {}
        self.runs: dict[str, Run] = {}
        self.rights = RightBook(self)
        self.cap = 0.0
        self.steady = params.usage.half_life_h / math.log(2)

    @property
    def turns(self) -> set[str]:
        """Users whose turn by the bounded-wait band is taken: by themselves, or by those they share credit with."""
        runs = [r for r in self.runs.values() if r.by_band and (r.allocation is not None or r.nominated)]
        if self.params.tier("free").group_baseline_gpus is None:
            return {run.user for run in runs}
        return {user for run in runs for user in self._members(run.user)}

    # -- figures -------------------------------------------------------------------------------------------------

    def usage(self, user: str) -> float:
        """Decayed GPU-hours charged, by the exact integral from the last change of rate."""
        person = self.users[user]
        left: float = 2.0 ** (-(self.now_ms - person.since_ms) / HOUR_MS / self.params.usage.half_life_h)
        return person.usage * left + person.rate * self.steady * (1.0 - left)

    def committed(self, user: str) -> float:
        """Minimum runs of all that a user holds or is nominated for, GPU-h."""
        held_m = sum(run.held_m for run in self.runs.values() if run.user == user and run.allocation is not None)
        asked_m = sum(run.amount_m for run in self.runs.values() if run.user == user and run.nominated)
        return (held_m + asked_m) / WHOLE_M * self.min_run_h

    @property
    def min_run_h(self) -> float:
        """Hours of the minimum run."""
        return self.params.ladder.min_run_ms / HOUR_MS

    def standings(self, user: str, extra: float = 0.0, change: dict[str, float] | None = None) -> tuple[float, float]:
        """(standing of the group, standing of the user within it); `extra` and `change` are committed in addition."""
        change = change or {}
        group = self.users[user].group
        members = [name for name, person in self.users.items() if person.group == group]
        mean = sum(self.groups.values()) / len(self.groups)
        total = sum(self.usage(name) + self.committed(name) + change.get(name, 0.0) for name in members) + extra
        own = self.usage(user) + self.committed(user) + change.get(user, 0.0) + extra
        mean_user = sum(self.users[name].shares for name in members) / len(members)
        return total * (mean / self.groups[group]), own * (mean_user / self.users[user].shares)

    def over(self, user: str) -> float:
        """How far a holder's usage is past its cap, GPU-h; <= 0 in credit."""
        return max(self.usage(user) - self.cap, self._group_over(user, 0.0))

    def waiter_over(self, run: Run) -> float:
        """How far a waiter is out of credit with its own committed charge, GPU-h."""
        if self.users[run.user].cooldown_ms > self.now_ms:
            return math.inf
        own = 0.0 if run.nominated else run.amount_m / WHOLE_M * self.min_run_h
        alone = self.usage(run.user) + self.committed(run.user) + own - self.cap
        members = self._members(run.user)
        return max(alone, self._group_over(run.user, sum(map(self.committed, members)) + own))

    def _members(self, user: str) -> list[str]:
        return [other for other, person in self.users.items() if person.group == self.users[user].group]

    def _group_over(self, user: str, committed: float) -> float:
        """How far the user's group is past the credit that its users share."""
        baseline = self.params.tier("free").group_baseline_gpus
        if baseline is None:
            return -math.inf
        return sum(map(self.usage, self._members(user))) + committed - baseline * self.steady

    def heavy(self, run: Run) -> bool:
        """Mean load over the window high enough, enough of it known."""
        ladder, edge = self.params.ladder, self.now_ms - self.params.ladder.heavy_window_ms
        known, busy, until = 0, 0.0, self.now_ms
        for since, load in reversed(run.loads):
            span = max(0, until - max(since, edge))
            if load is not None:
                known += span
                busy += span * load
            until = min(until, max(since, edge))
        enough = known >= ladder.heavy_known_fraction * ladder.heavy_window_ms - CLOSE
        return enough and known > 0 and busy / known >= ladder.heavy_load - CLOSE

    # -- room ----------------------------------------------------------------------------------------------------

    def available(self, host: str) -> bool:
        """May get something new."""
        return not (self.hosts[host].drained or self.hosts[host].silent or self.rights.closed(host))

    def taken(self) -> dict[Gpu, list[int]]:
        """What each GPU carries, thousandths, held and set aside."""
        found: dict[Gpu, list[int]] = {}
        for run in self.runs.values():
            for allocation in ([run.allocation] if run.allocation else []) + run.aside:
                for host, gpus in allocation.parts:
                    for gpu in gpus:
                        found.setdefault((host, gpu), []).append(allocation.fraction_m)
        return found

    @property
    def total_m(self) -> int:
        """Thousandths of a GPU on hosts that may get something new."""
        return sum(host.gpus * WHOLE_M for name, host in self.hosts.items() if self.available(name))

    @property
    def free_m(self) -> int:
        """The part of them that nobody holds and that is set aside for nobody."""
        taken = self.taken()
        return self.total_m - sum(sum(parts) for (host, _), parts in taken.items() if self.available(host))

    @property
    def aside_m(self) -> int:
        """Thousandths of a GPU kept for nominated waiters."""
        parts = [allocation for run in self.runs.values() for allocation in run.aside]
        return sum(len(gpus) * allocation.fraction_m for allocation in parts for _, gpus in allocation.parts)

    @property
    def leaving_m(self) -> int:
        """Thousandths of a GPU held by sessions in grace or being stopped."""
        return sum(run.held_m for run in self.runs.values() if run.leaving)

    @property
    def stock_m(self) -> int:
        """Headroom in thousandths of a GPU."""
        headroom = self.params.headroom
        whole = int(self.total_m * headroom.max_fraction) // WHOLE_M * WHOLE_M
        return min(round(headroom.fixed_gpus * WHOLE_M), whole)

    def fits(self, run: Run) -> bool:
        """Whether a session would find room now, by looking at every GPU."""
        taken = self.taken()
        if run.fraction_m < WHOLE_M:
            for name, host in self.hosts.items():
                for gpu in range(host.gpus if self.available(name) else 0):
                    parts = taken.get((name, gpu), [])
                    if WHOLE_M not in parts and sum(parts) + run.fraction_m <= WHOLE_M:
                        return True
            return False
        free = {
            name: sum((name, gpu) not in taken for gpu in range(host.gpus))
            for name, host in self.hosts.items()
            if self.available(name)
        }
        if any(count >= run.gpus for count in free.values()):
            return True
        for size in {self.hosts[name].gpus for name in free}:
            alike = sorted((count for name, count in free.items() if self.hosts[name].gpus == size), reverse=True)
            whole, rest = divmod(run.gpus, size)
            enough = size < run.gpus and len(alike) >= whole + (rest > 0) and alike[whole - 1] == size
            if enough and (not rest or alike[whole] >= rest):
                return True
        return False

    def may_start(self, run: Run, *, in_credit: bool) -> bool:
        """It fits, beside what others have reserved; out of credit, `min(f, pool - its GPUs)` stay free after it."""
        if not self.fits(run):
            return False
        first = in_credit or self.rights.room(run)
        keep_m = 0 if first else min(self.stock_m, max(0, self.total_m - run.amount_m))
        return self.free_m - run.amount_m - self.rights.kept_m(run.user) >= keep_m

    def rank(self, run: Run) -> int:
        """The class of a waiter: with a right and in credit, with a right, in credit, neither."""
        over = self.waiter_over(run) > 0
        return int(over) if self.rights.room(run) else 2 + over

    def waiting(self) -> list[Run]:
        """Sessions in the queue that nobody gives way for yet."""
        return [run for run in self.runs.values() if run.state == "queued" and not run.nominated]

    # -- what happens --------------------------------------------------------------------------------------------

    def happen(self, event: ev.Event) -> None:
        """Take note of an event."""
        self.now_ms = event.at_ms
        match event:
            case ev.HostJoined(at_ms, host, gpus, _, _, heartbeat):
                self.hosts[host] = Machinery(gpus=gpus, seen_ms=at_ms if heartbeat else None)
            case ev.HostReported(at_ms, host):
                self.hosts[host].seen_ms, self.hosts[host].silent = at_ms, False
            case ev.HostDrained(_, host) | ev.HostResumed(_, host):
                self.hosts[host].drained = isinstance(event, ev.HostDrained)
            case ev.GroupSet(_, group, shares, _):
                self.groups[group] = shares
            case ev.UserSet(_, user, group, tier, shares):
                person = self._meet(user, group)
                person.shares, person.tier = shares, tier
            case ev.CalendarEntryAdded(_, entry, kind, since_ms, until_ms, gpus_m, group, hosts, drain_ms):
                names = tuple(hosts.split(",")) if hosts else ()
                self.rights.calendar[entry] = Entry(entry, kind, since_ms, until_ms, gpus_m, group, names, drain_ms)
            case ev.CalendarEntryRemoved(_, entry):
                del self.rights.calendar[entry]
            case ev.UsageSet(_, user, usage):
                self._settle(user)
                self.users[user].usage = usage
            case ev.SessionSubmitted(at_ms, sid, user, group, tier, gpus, fraction_m):
                self._meet(user, group, tier)
                self.runs[sid] = Run(sid=sid, user=user, gpus=gpus, fraction_m=fraction_m, submit_ms=at_ms)
            case _:
                self._to_session(event, self.runs[event.session])

    def _to_session(self, event: ev.Event, run: Run) -> None:
        match event:
            case ev.SessionHeld():
                self._drop(run)
                run.state = "held"
            case ev.SessionUnheld():
                run.state = "queued"
            case ev.SessionCancelled() if run.allocation is not None:
                run.state = "stopping"
            case ev.SessionAbandoned() | ev.SessionCancelled():
                self._drop(run)
                del self.runs[run.sid]
            case ev.LoadReported(at_ms, _, load):
                run.loads.append((at_ms, load))
                run.load = load
                self._settle(run.user)
            case ev.SessionSaved(_, _, acknowledged):
                run.acknowledged |= acknowledged and run.grace_ms is not None
            case ev.SessionEnded():
                self._leave(run)

    def decide(self, decision: Decision) -> None:
        """Take note of a decision."""
        run = self.runs[decision.session]
        match decision.action:
            case Action.START:
                by_band = run.by_band
                self._drop(run)
                run.state, run.start_ms = "running", decision.at_ms
                run.allocation, run.granted_m = decision.allocation, run.fraction_m
                run.by_band = by_band or decision.reason.rule == "order.waited-long"
                run.loads = [(decision.at_ms, None)]
                self._settle(run.user)
            case Action.REJECT:
                del self.runs[run.sid]
            case Action.WARN:
                run.warned_ms = decision.at_ms
            case Action.GRACE:
                run.grace_ms, run.acknowledged = decision.at_ms, False
                run.target, run.rule = decision.other or "", decision.reason.rule
                if decision.other:
                    waiter = self.runs[decision.other]
                    waiter.nominated, waiter.rule = True, decision.reason.rule
            case Action.EVICT:
                run.state = "stopping"
                if decision.other is not None:
                    self.runs[decision.other].aside += decision.set_aside
                    self.runs[decision.other].promised = True
                if decision.reason.rule.startswith("ladder."):
                    self.users[run.user].cooldown_ms = decision.at_ms + self.params.swap_period_ms
            case Action.RESERVE:
                run.nominated, run.reserving = True, True
                run.by_band |= decision.reason.rule == "order.reserve-waited"
                run.aside += decision.set_aside
            case Action.WITHDRAW if run.nominated:
                self._drop(run)
            case Action.WITHDRAW:
                self._withdraw(run)
            case Action.LOSE:
                self._leave(run)
            case Action.RECOVER if decision.ladder is not None and decision.ladder.value in ("ok", "notice"):
                run.warned_ms = None
        if decision.granted_m is not None and run.allocation is not None and decision.action is not Action.START:
            run.granted_m = decision.granted_m
            run.allocation = run.allocation._replace(fraction_m=decision.granted_m)
            self._settle(run.user)

    def begin(self, at_ms: int) -> None:
        """A cycle begins: hosts that owe a report for too long count as silent."""
        self.now_ms = at_ms
        for host in self.hosts.values():
            host.silent |= host.seen_ms is not None and at_ms > host.seen_ms + self.params.telemetry.stale_ms

    def _meet(self, user: str, group: str, tier: str = "free") -> Person:
        self.groups.setdefault(group, 1.0)
        return self.users.setdefault(user, Person(group=group, tier=tier, since_ms=self.now_ms))

    def _settle(self, user: str) -> None:
        """Usage up to now is booked; from now on the charge rate is what the user's sessions cost now."""
        person, idle = self.users[user], self.params.usage.idle_charge
        person.usage, person.since_ms = self.usage(user), self.now_ms
        held = [run for run in self.runs.values() if run.user == user and run.allocation is not None]
        person.rate = sum(run.held_m / WHOLE_M * (idle + (1 - idle) * (run.load or 0.0)) for run in held)

    def _leave(self, run: Run) -> None:
        """A session's GPUs are free, or set aside for the waiter that it gave way to."""
        target = self.runs.get(run.target) if run.target else None
        if target is not None and target.nominated and run.allocation is not None:
            target.aside.append(run.allocation)
        run.allocation = None
        del self.runs[run.sid]
        self._settle(run.user)

    def _drop(self, waiter: Run) -> None:
        """Nobody gives way to the waiter any longer; what was set aside is free, grace serves the headroom."""
        waiter.nominated = waiter.promised = waiter.reserving = waiter.by_band = False
        waiter.aside.clear()
        for run in self.runs.values():
            if run.target == waiter.sid:
                run.target = ""

    def _withdraw(self, run: Run) -> None:
        target, run.target, run.grace_ms = run.target, None, None
        if target and not any(other.target == target for other in self.runs.values()):
            self._drop(self.runs[target])


Moment = ev.Event | Decision | Cycle


def walk(record: Record) -> Iterator[tuple[World, Moment]]:
    """Every event and decision with the world just before it, and every cycle with the world just after it."""
    world = World(record.params)
    baseline = record.params.tier("free").baseline_gpus
    world.cap = 0.0 if baseline is None else baseline * world.steady
    for entry in record.entries:
        if not isinstance(entry, Cycle):
            world.now_ms = entry.at_ms
            yield world, entry
            world.happen(entry)
            continue
        world.begin(entry.at_ms)
        if baseline is None:
            world.cap = entry.seen.caps["free"]
        for decision in entry.decisions:
            yield world, decision
            world.decide(decision)
        yield world, entry


def decisions(record: Record, *actions: Action) -> Iterator[tuple[World, Decision, Run]]:
    """The decisions of some kinds with the world just before each, and the session each is about."""
    for world, moment in walk(record):
        if isinstance(moment, Decision) and moment.action in actions:
            yield world, moment, world.runs[moment.session]


# -- the ledger and the books ----------------------------------------------------------------------------------------


def check_i2(record: Record) -> Findings:
    """I2: usage and committed charge of everybody are what the closed form says, whatever happened in between."""
    found = []
    for world, cycle in walk(record):
        if not isinstance(cycle, Cycle):
            continue
        for user, usage in cycle.seen.usage.items():
            if abs(usage - world.usage(user)) > CLOSE * max(1.0, usage):
                found.append(f"{cycle.at_ms}: usage of {user} is {usage}, by the closed form {world.usage(user)}")
            if abs(cycle.seen.committed[user] - world.committed(user)) > CLOSE * 100:
                found.append(
                    f"{cycle.at_ms}: {user} has committed {cycle.seen.committed[user]}, {world.committed(user)}"
                )
        for group, usage in cycle.seen.group_usage.items():
            total = sum(world.usage(user) for user, person in world.users.items() if person.group == group)
            if abs(usage - total) > CLOSE * max(10.0, usage):
                found.append(f"{cycle.at_ms}: usage of group {group} is {usage}, of its users {total}")
    return found


def check_no_double_booking(record: Record) -> Findings:
    """No GPU carries more than itself, a GPU held whole carries nothing else, and no host has GPUs it has not."""
    found = []
    for world, moment in walk(record):
        if not isinstance(moment, Cycle):
            continue
        for (host, gpu), parts in world.taken().items():
            if sum(parts) > WHOLE_M:
                found.append(f"{moment.at_ms}: GPU {gpu} of {host} carries {parts}")
            if not 0 <= gpu < world.hosts[host].gpus:
                found.append(f"{moment.at_ms}: {host} has no GPU {gpu}")
    return found


def check_conservation(record: Record) -> Findings:
    """GPU time: what the core says is free, set aside and held adds up to the machine, now and over the whole run."""
    found = []
    by_sessions = by_core = 0
    last_ms, held_m = 0, 0
    for world, moment in walk(record):
        if not isinstance(moment, Cycle):
            continue
        seen, span = moment.seen, moment.at_ms - last_ms
        by_core += held_m * span
        last_ms, held_m = moment.at_ms, seen.held_m
        for name, theirs, mine in (
            ("in all", seen.total_m, world.total_m),
            ("free", seen.free_m, world.free_m),
            ("set aside", seen.set_aside_m, world.aside_m),
            ("leaving", seen.leaving_m, world.leaving_m),
            ("held", seen.held_m, sum(run.held_m for run in world.runs.values() if run.allocation is not None)),
        ):
            if theirs != mine:
                found.append(f"{moment.at_ms}: {theirs} thousandths {name} by the core, {mine} by the record")
    for since_ms, until_ms, granted_m in stretches(record):
        by_sessions += (until_ms - since_ms) * granted_m
    if by_core != by_sessions:
        found.append(f"GPU time by the core {by_core}, by sessions {by_sessions} thousandths x ms")
    return found


def stretches(record: Record) -> Iterator[tuple[int, int, int]]:
    """(from ms, until ms, thousandths held) for every stretch of every session at one grant."""
    open_: dict[str, tuple[int, int]] = {}
    for world, moment in walk(record):
        if isinstance(moment, Cycle):
            for sid in [sid for sid in open_ if sid not in world.runs]:
                since_ms, held_m = open_.pop(sid)
                yield since_ms, moment.at_ms, held_m
            for run in world.runs.values():
                if run.allocation is not None and open_.get(run.sid, (0, -1))[1] != run.held_m:
                    if run.sid in open_:
                        yield open_[run.sid][0], moment.at_ms, open_[run.sid][1]
                    open_[run.sid] = moment.at_ms, run.held_m
    for since_ms, held_m in open_.values():
        yield since_ms, record.end_ms, held_m


# -- order -----------------------------------------------------------------------------------------------------------


def check_i1(orders: Sequence[Sequence[str]]) -> Findings:
    """I1: users with nothing running start in one order, whenever it is."""
    return [f"{list(order)} instead of {list(orders[0])}" for order in orders[1:] if list(order) != list(orders[0])]


def check_i3(less: Sequence[str], more: Sequence[str], session: str) -> Findings:
    """I3: with more past use of its user a session comes no earlier."""
    before, after = less.index(session), more.index(session)
    return [f"{session} moved up from {before} to {after} by more past use"] if after < before else []


STARTS = ("order.right", "order.right", "order.in-credit", "order.out-of-credit")
"""Rules by which the classes of `World.rank` start."""


def check_order(record: Record) -> Findings:
    """Every session started from the queue is the one that must start next, found by comparing all that wait."""
    found = []
    for world, decision, run in decisions(record, Action.START):
        if run.nominated:
            found += _nominated_past_headroom(world, decision, run)
            continue
        if decision.reason.rule == "order.waited-long":
            found += _by_band(world, decision, run)
            continue
        over = world.waiter_over(run)
        sure = abs(over) > CLOSE or over == 0
        if sure and not world.may_start(run, in_credit=over <= 0):
            found.append(f"{decision.at_ms}: {run.sid} must not start yet")
        if sure and decision.reason.rule != STARTS[world.rank(run)]:
            found.append(f"{decision.at_ms}: {run.sid} started as {decision.reason.rule}, {over} GPU-h over its cap")
        found += [
            f"{decision.at_ms}: {other.sid} goes before {run.sid}"
            for other in world.waiting()
            if other is not run and goes_first(world, other, run)
        ]
    return found


def _by_band(world: World, decision: Decision, run: Run) -> Findings:
    """It has waited for `max_wait`, leaves the headroom alone, and nobody older of the band could start."""
    now, limit = decision.at_ms, world.params.order.max_wait_ms
    found = []
    if run.submit_ms + limit > now:
        found.append(f"{now}: {run.sid} has not waited long enough")
    if not world.may_start(run, in_credit=False):
        found.append(f"{now}: {run.sid} takes from the headroom by the band")
    if run.user in world.turns:
        found.append(f"{now}: {run.sid}'s user runs a session of the band already")
    oldest = {}
    for other in sorted(world.waiting(), key=lambda other: (other.submit_ms, other.sid)):
        oldest.setdefault(other.user, other)
    for other in oldest.values():
        older = (other.submit_ms, other.sid) < (run.submit_ms, run.sid)
        if older and other.user not in world.turns and world.may_start(other, in_credit=False):
            found.append(f"{now}: {other.sid} waits longer than {run.sid}")
    return found


def check_band(record: Record) -> Findings:
    """Of any four consecutive starts at most one is the bounded-wait band's."""
    starts = [decision for _, decision, _ in decisions(record, Action.START)]
    aged = [number for number, decision in enumerate(starts) if decision.reason.rule == "order.waited-long"]
    return [f"starts {a} and {b} are both the band's" for a, b in itertools.pairwise(aged) if b - a < 4]


def _nominated_past_headroom(world: World, decision: Decision, run: Run) -> Findings:
    """A nominated waiter out of credit leaves the headroom alone like any other, unless somebody was evicted for it.

    By reclaim it does not have to. What others have reserved is left alone by everybody.
    """
    if run.promised:
        return []
    over = world.waiter_over(run)
    own_m = sum(len(gpus) * part.fraction_m for part in run.aside for _, gpus in part.parts)
    keep_m = min(world.stock_m, max(0, world.total_m - run.amount_m))
    left_m = world.free_m + own_m - run.amount_m - world.rights.kept_m(run.user)
    if left_m < 0:
        return [f"{decision.at_ms}: {run.sid}, nominated, takes {-left_m} of what others have reserved"]
    if over > CLOSE and left_m < keep_m and not run.rule.startswith("reclaim"):
        return [f"{decision.at_ms}: {run.sid}, nominated and out of credit, leaves {left_m} free, not {keep_m}"]
    return []


def goes_first(world: World, one: Run, other: Run) -> bool:
    """Whether `one` may start and comes before `other` beyond doubt: differences in the last digits do not count."""
    over_one, over_other = world.waiter_over(one), world.waiter_over(other)
    if any(0 < abs(over) <= CLOSE for over in (over_one, over_other)):
        return False
    if world.rank(one) != world.rank(other):
        return world.rank(one) < world.rank(other) and world.may_start(one, in_credit=over_one <= 0)
    if not world.may_start(one, in_credit=over_one <= 0):
        return False
    c_one, c_other = (run.amount_m / WHOLE_M * world.min_run_h for run in (one, other))
    places = zip(world.standings(one.user, c_one), world.standings(other.user, c_other), strict=True)
    for mine, theirs in places:
        if abs(mine - theirs) > CLOSE * max(1.0, mine):
            return mine < theirs
        if mine != theirs:
            return False
    return (one.submit_ms, one.sid) < (other.submit_ms, other.sid)


# -- who gives way ---------------------------------------------------------------------------------------------------


def check_i5(record: Record) -> Findings:
    """I5: who is evicted makes room for a waiter that then runs, or refills the headroom, never past what it lacks.

    Or what is reserved. Whoever gets what was lent is within a right. Maintenance needs no reason but its time.
    """
    starts = {(decision.session, decision.at_ms) for decision in record.decisions if decision.action is Action.START}
    found: Findings = []
    gone_m = 0
    for world, moment in walk(record):
        if isinstance(moment, Cycle):
            gone_m = 0
        if not isinstance(moment, Decision) or moment.action is not Action.EVICT:
            continue
        run, at_ms, rule = world.runs[moment.session], moment.at_ms, moment.reason.rule
        if rule == "maintenance.end":
            found += _not_worked_on(world, run)
            continue
        if moment.other is not None:
            if rule == "reclaim.evict" and not world.rights.room(world.runs[moment.other]):
                found.append(f"{at_ms}: {run.sid} gave back to {moment.other}, which has no right to it")
            if (moment.other, at_ms) not in starts:
                found.append(f"{at_ms}: {run.sid} was evicted for {moment.other}, which did not start")
            continue
        gone_m += run.held_m
        nominated_m = sum(other.amount_m for other in world.runs.values() if other.nominated)
        theirs_m = sum(other.held_m for other in world.runs.values() if other.target and other.grace_ms is not None)
        lacking_m = nominated_m + world.rights.missing_m() - world.free_m - world.aside_m - theirs_m
        lacking_m += world.rights.asked_m() if rule == "reclaim.evict" else world.stock_m
        if gone_m > lacking_m:
            found.append(f"{at_ms}: {gone_m} thousandths evicted by {rule} where {lacking_m} are lacking")
    return found


def _not_worked_on(world: World, run: Run) -> Findings:
    """Whoever is ended by maintenance is on a host whose window has begun."""
    hosts = {host for host, _ in run.allocation.parts} if run.allocation is not None else set()
    for entry in world.rights.calendar.values():
        begun = entry.kind == MAINTENANCE and entry.from_ms <= world.now_ms < entry.until_ms
        if begun and (not entry.hosts or hosts & set(entry.hosts)):
            return []
    return [f"{world.now_ms}: {run.sid} was ended by maintenance that is not"]


def check_i6(record: Record) -> Findings:
    """I6: the warning runs its time before grace, grace ends by acknowledgement or its time, all after min_run."""
    ladder, found = record.params.ladder, []
    for _, decision, run in decisions(record, Action.GRACE, Action.EVICT, Action.THROTTLE):
        at_ms, what = decision.at_ms, f"{decision.at_ms}: {decision.action} of {run.sid}"
        if decision.reason.rule == "maintenance.end":
            continue
        if at_ms < run.start_ms + ladder.min_run_ms:
            found.append(f"{what} {(at_ms - run.start_ms) / 1000} s after its start, inside its minimum run")
        if run.warned_ms is None or at_ms < run.warned_ms + ladder.warn_ms:
            found.append(f"{what} before its warning had run its time (warned at {run.warned_ms})")
        if decision.action is not Action.EVICT:
            continue
        if run.grace_ms is None:
            found.append(f"{what} without grace")
        elif not run.acknowledged and at_ms < run.grace_ms + ladder.grace_ms:
            found.append(f"{what} before its grace, begun at {run.grace_ms}, was over")
    return found


def check_i7(record: Record) -> Findings:
    """I7: evictions on one exclusive GPU are min_run and grace apart; nobody gets a place back within swap_period.

    Of whoever gave back what it was lent the second does not hold: its place went to a right, and comes back as soon
    as that is exceeded or over. What bounds it: a reclaim brings more of some right into use, the part of a right that
    is in use falls by no eviction (`check_who_gives_way`), and the rights are only so large. So between two changes
    from outside (a session of a right ends by itself, a tier or the calendar changes) no more than all rights together
    is reclaimed.
    """
    ladder, found = record.params.ladder, []
    last: dict[Gpu, int] = {}
    took: dict[tuple[str, str], int] = {}
    for world, decision, run in decisions(record, Action.EVICT):
        at_ms = decision.at_ms
        if decision.reason.rule == "maintenance.end":
            continue
        if run.allocation is not None and run.fraction_m == WHOLE_M:
            apart_ms = ladder.min_run_ms + (0 if run.acknowledged else ladder.grace_ms)
            for host, gpus in run.allocation.parts:
                for gpu in gpus:
                    if at_ms - last.get((host, gpu), -apart_ms) < apart_ms:
                        found.append(f"{at_ms}: GPU {gpu} of {host} had an eviction at {last[host, gpu]} already")
                    last[host, gpu] = at_ms
        if decision.other is None:
            continue
        winner = world.runs[decision.other].user
        before = took.get((run.user, winner))
        if before is not None and before < at_ms < before + record.params.swap_period_ms:
            found.append(f"{at_ms}: {run.user} gives way to {winner}, who gave way to it at {before}")
        if decision.reason.rule != "reclaim.evict":
            took[winner, run.user] = at_ms
    return found


def check_i8(record: Record) -> Findings:
    """I8: when a cycle is over, nobody waits who may start on what is free."""
    found = []
    last: Cycle | None = None
    idle: Findings = []
    for world, moment in walk(record):
        if last is not None and moment.at_ms > last.at_ms:
            found += idle
            last, idle = None, []
        if not isinstance(moment, Cycle):
            continue
        last, idle = moment, []
        for run in world.waiting():
            over = world.waiter_over(run)
            if abs(over) > CLOSE and world.may_start(run, in_credit=over <= 0):
                idle.append(f"{moment.at_ms}: {run.sid} waits although it may start on {world.free_m} free thousandths")
    return found + idle


def check_i9(record: Record, holders: int) -> Findings:
    """I9: the j-th fresh waiter for G GPUs waits at most ceil(j / G) turns of rotation (a few ms each for rounding)."""
    params, found = record.params, []
    ladder, steady, delta = params.ladder, params.steady_gpu_h, params.delta_gpu_h
    t_delta_ms = params.usage.half_life_h * HOUR_MS * math.log2(steady / (steady - delta))
    turn_ms = max(ladder.min_run_ms, t_delta_ms + ladder.warn_ms) + ladder.grace_ms + 5
    submitted = {e.session: e.at_ms for e in record.entries if isinstance(e, ev.SessionSubmitted)}
    starts = [decision for decision in record.decisions if decision.action is Action.START][holders:]
    for j, decision in enumerate(starts, 1):
        wait_ms, bound_ms = decision.at_ms - submitted[decision.session], math.ceil(j / holders) * turn_ms
        if wait_ms > bound_ms:
            found.append(f"{decision.session}, number {j}, waited {wait_ms} ms, more than {bound_ms:.0f}")
    if len(starts) + holders < len(submitted):
        bound_ms = math.ceil((len(submitted) - holders) / holders) * turn_ms
        if record.end_ms > bound_ms:
            found.append(f"only {len(starts)} of {len(submitted) - holders} waiters ever started")
    return found


def check_i11(record: Record) -> Findings:
    """I11: nothing is done to a session whose host is silent, nothing is placed there, unknown load is never heavy."""
    found = []
    hurts = (Action.NOTICE, Action.WARN, Action.THROTTLE, Action.GRACE, Action.EVICT)
    for world, decision, run in decisions(record, Action.START, *hurts):
        if decision.reason.rule.startswith("maintenance."):
            continue  # agreed beforehand, whatever is measured
        allocation = decision.allocation if decision.action is Action.START else run.allocation
        for host, _ in allocation.parts if allocation is not None else ():
            if world.hosts[host].silent or (decision.action is Action.START and not world.available(host)):
                found.append(f"{decision.at_ms}: {decision.action} of {run.sid} on {host}, silent or drained")
        back = decision.reason.rule.startswith("reclaim.")
        back |= decision.action is Action.THROTTLE and bool(world.rights.every())  # its rule is the ladder's
        if decision.action in hurts[1:] and not back and world.over(run.user) < -CLOSE and not world.heavy(run):
            found.append(f"{decision.at_ms}: {decision.action} of {run.sid}, in credit and not known to be heavy")
    return found


def check_who_gives_way(record: Record) -> Findings:
    """Only who may give way does: the class of victim and waiter, and rotation tested on the holdings that remain.

    Nobody within its own right does, but for somebody who shares it.
    """
    found: Findings = []
    for world, decision, run in decisions(record, Action.GRACE, Action.EVICT):
        if decision.reason.rule == "maintenance.end":
            continue
        what = f"{decision.at_ms}: {decision.action} of {run.sid} for {decision.other or 'the headroom'}"
        found += [f"{what}: {why}" for why in _against(world, decision, run, _gone(world, decision, run))]
    return found


def _gone(world: World, decision: Decision, victim: Run) -> dict[str, float]:
    """What each user is about to give back: sessions that give way count as gone, their waiters as there.

    Of the sessions that are evicted together those that have not been stopped yet are still there.
    """
    gone: dict[str, float] = {}
    for run in world.runs.values():
        together = decision.action is Action.EVICT and run.target == victim.target and run.state != "stopping"
        if run is not victim and run.target is not None and run.allocation is not None and not together:
            gone[run.user] = gone.get(run.user, 0.0) - run.held_m / WHOLE_M * world.min_run_h
    return gone


def _against(world: World, decision: Decision, victim: Run, gone: dict[str, float]) -> Iterator[str]:
    """What speaks against one session's giving way; `gone`: what others are about to give back at this instant."""
    over = world.over(victim.user)
    waiter_or_none = None if decision.other is None else world.runs[decision.other]
    back = decision.reason.rule.startswith("reclaim.")
    yield from world.rights.robbed(victim, None if back else waiter_or_none)
    if back:
        if waiter_or_none is not None:
            if not world.rights.room(waiter_or_none, due=True):
                yield "the waiter has no right to it"
            if world.users[waiter_or_none.user].cooldown_ms > world.now_ms:
                yield "the waiter cools down"
        elif not any(right.reserved and right.due_m for right in world.rights.every()) and (
            decision.action is Action.GRACE
        ):
            yield "nothing is reserved"
        return
    if decision.other is None:
        if over < -CLOSE:
            yield f"its user has {-over} GPU-h of credit left"
        return
    waiter = world.runs[decision.other]
    by_rotation = (victim.rule if decision.action is Action.EVICT else decision.reason.rule) == "ladder.rotate"
    if not by_rotation:
        if over < -CLOSE:
            yield f"its user has {-over} GPU-h of credit left"
        if world.waiter_over(waiter) > CLOSE and not world.users[waiter.user].cooldown_ms > world.now_ms:
            yield "the waiter is out of credit"
        return
    if decision.action is Action.GRACE:
        if world.users[waiter.user].cooldown_ms > world.now_ms:
            yield "the waiter cools down"
        if over < -CLOSE and not world.heavy(victim):
            yield "it is in credit and not heavy"
        if over < -CLOSE and world.now_ms < waiter.submit_ms + world.params.ladder.patience_ms:
            yield "it is in credit and the waiter has not waited long enough"
        if over > CLOSE and world.params.ladder.rotate_delta_gpu_h is None:
            yield "rotation is off"
    own = 0.0 if waiter.nominated else waiter.amount_m / WHOLE_M * world.min_run_h
    mine, theirs = world.standings(waiter.user, own, gone), world.standings(victim.user, 0.0, gone)
    level = 1 if world.users[waiter.user].group == world.users[victim.user].group else 0
    if waiter.user == victim.user:
        yield "both are one user's"
    elif mine[level] + world.params.delta_gpu_h > theirs[level] + CLOSE:
        yield f"standing {mine[level]} + {world.params.delta_gpu_h} is not below {theirs[level]}"


def check_contention(record: Record) -> Findings:
    """Without contention nothing goes beyond a notice; warnings stay within 3 x deficit + 2 (rotation off)."""
    found: Findings = []
    if record.params.ladder.rotate_delta_gpu_h is not None:
        return found
    under: set[str] = set()
    for world, decision, run in decisions(record, Action.WARN, Action.THROTTLE, Action.GRACE):
        asked_m = sum(other.amount_m for other in world.runs.values() if other.state == "queued" and other.nominated)
        asked_m += sum(other.amount_m for other in world.waiting() if world.waiter_over(other) <= CLOSE)
        asked_m += sum(
            other.amount_m
            for other in world.waiting()
            if world.waiter_over(other) > CLOSE and world.rights.room(other, due=True)
        )
        stock_m = world.stock_m + world.rights.missing_m()
        deficit_m = asked_m + stock_m - world.free_m - world.aside_m - world.leaving_m
        if asked_m == 0 and deficit_m <= 0:
            found.append(f"{decision.at_ms}: {decision.action} of {run.sid} without contention")
        if decision.reason.rule == "ladder.warn":
            under = {
                other.sid
                for other in world.runs.values()
                if other.warned_ms is not None and other.grace_ms is None and other.state == "running"
            } - {sid for sid, other in world.runs.items() if world.over(other.user) <= CLOSE}
            if len(under) + 1 > 3 * math.ceil(max(0, deficit_m) / WHOLE_M) + 2:
                found.append(f"{decision.at_ms}: {len(under) + 1} warned for {deficit_m} missing thousandths")
    return found


# -- reservations ----------------------------------------------------------------------------------------------------


def check_reservations(record: Record) -> Findings:
    """GPUs are kept for one wide session at a time that has waited long enough and may have them, and then they are.

    Where others give way to it the claim is the ladder's: what is said here is of reservations without victims, when
    the last cycle of an instant is over.
    """
    found: Findings = []
    last: Cycle | None = None
    before: set[str] = set()
    lacking: set[str] = set()
    wrong: Findings = []
    for world, moment in walk(record):
        if last is not None and moment.at_ms > last.at_ms:
            found += wrong
            found += [f"{last.at_ms}: nothing is kept for {sid}" for sid in sorted(before & lacking)]
            last, before = None, lacking
        if isinstance(moment, Decision) and moment.action is Action.RESERVE:
            found += _reserving(world, moment, world.runs[moment.session])
        if isinstance(moment, Cycle):
            last, lacking = moment, {run.sid for run in _lacking(world)}
            wrong = [f"{moment.at_ms}: {what}" for run in _reserved(world) for what in _kept(world, run)]
    return found


def _reserved(world: World) -> list[Run]:
    """Sessions with a reservation to which nobody gives way."""
    joined = {run.target for run in world.runs.values() if run.target}
    return [run for run in world.runs.values() if run.reserving and run.sid not in joined]


def _reserving(world: World, decision: Decision, run: Run) -> Findings:
    what = f"{decision.at_ms}: what is free is kept for {run.sid}"
    found = [f"{what} while it is for {other.sid}" for other in _reserved(world) if other is not run]
    if run.state != "queued" or run.gpus < 2 or run.fraction_m < WHOLE_M:
        found.append(f"{what}, {run.state}, {run.gpus} x {run.fraction_m}")
    if not run.reserving and world.now_ms < run.submit_ms + world.params.order.reserve_after_ms:
        found.append(f"{what} before it has waited long enough")
    if not run.reserving and not _may_reserve(world, run):
        found.append(f"{what}, which is out of credit")
    more = [host for allocation in decision.set_aside for host in allocation.hosts]
    found += [f"{what} on {host}, which is closed" for host in more if not world.available(host)]
    more_m = sum(allocation.amount_m for allocation in decision.set_aside)
    keep_m = min(world.stock_m, max(0, world.total_m - run.amount_m))
    if world.waiter_over(run) > CLOSE and world.free_m - more_m < keep_m:
        found.append(f"{what} out of the headroom")
    return found


def _may_reserve(world: World, run: Run) -> bool:
    """In credit, or of the band; beyond doubt not otherwise."""
    in_band = run.submit_ms + world.params.order.max_wait_ms <= world.now_ms and (
        run.by_band or run.user not in world.turns
    )
    return in_band or world.waiter_over(run) <= CLOSE


def _kept(world: World, run: Run) -> Iterator[str]:
    """What is wrong with a reservation at the end of a cycle."""
    hosts = [host for allocation in run.aside for host in allocation.hosts]
    aside = sum(allocation.amount_m for allocation in run.aside) // WHOLE_M
    size = max((world.hosts[host].gpus for host in hosts), default=1)
    if aside > (run.gpus if size >= run.gpus else math.ceil(run.gpus / size) * size):
        yield f"{aside} GPUs are kept for {run.sid}, which asks for {run.gpus} on hosts of {size}"
    if not all(map(world.available, hosts)):
        yield f"{run.sid} has GPUs kept on a host that is closed"
    elif not _large_enough(world, run, size):
        yield f"{run.sid} could not fit on hosts of {size} if they were empty"
    if not _may_reserve(world, run):
        yield f"GPUs are kept for {run.sid}, which is out of credit"
    over = world.waiter_over(run)
    keep_m = min(world.stock_m, max(0, world.total_m - run.amount_m)) if over > -CLOSE else 0
    aside_m, run.aside, saved = aside * WHOLE_M, [], run.aside
    if world.free_m - run.amount_m >= keep_m and world.fits(run):
        yield f"{run.sid} does not start although it fits into {aside_m} thousandths kept and what is free"
    run.aside = saved


def _large_enough(world: World, run: Run, size: int) -> bool:
    """Open hosts of a size would hold a session if they were empty."""
    alike = [host for name, host in world.hosts.items() if host.gpus == size and world.available(name)]
    return len(alike) * size >= run.gpus


def _lacking(world: World) -> list[Run]:
    """Wide sessions in credit that have waited long enough, with nothing kept for anybody although it could be."""
    if _reserved(world):
        return []
    after_ms, taken = world.params.order.reserve_after_ms, world.taken()
    free = {
        name: sum((name, gpu) not in taken for gpu in range(host.gpus))
        for name, host in world.hosts.items()
        if world.available(name)
    }
    return [
        run
        for run in world.waiting()
        if run.gpus > 1
        and world.now_ms >= run.submit_ms + after_ms
        and world.waiter_over(run) < -CLOSE
        and not world.fits(run)
        and any(count and _large_enough(world, run, world.hosts[name].gpus) for name, count in free.items())
    ]


# -- time ------------------------------------------------------------------------------------------------------------


def check_i12(record: Record, again: Sequence[Cycle]) -> Findings:
    """I12: a replay answers the same, byte for byte."""
    live = [repr(cycle).encode() for cycle in cycles_of(record.entries)]
    replayed = [repr(cycle).encode() for cycle in again]
    if len(live) != len(replayed):
        return [f"{len(live)} cycles live, {len(replayed)} replayed"]
    return [
        f"{mine!r} live, {theirs!r} replayed" for mine, theirs in zip(live, replayed, strict=True) if mine != theirs
    ]


def check_i14(record: Record) -> Findings:
    """I14: the core asks to be called strictly later than now."""
    return [
        f"{cycle.at_ms}: asks to be called at {cycle.next_deadline_ms}"
        for cycle in cycles_of(record.entries)
        if cycle.next_deadline_ms is not None and cycle.next_deadline_ms <= cycle.at_ms
    ]


def check_no_wake_missed(record: Record) -> Findings:
    """Nothing is decided at an instant for which the core had not asked, unless something happened since."""
    found = []
    before: Cycle | None = None
    for entry in record.entries:
        if not isinstance(entry, Cycle):
            before = None
            continue
        if before is not None and entry.decisions:
            due = before.next_deadline_ms
            turning = any(decision.reason.rule.startswith("ladder.rotate") for decision in entry.decisions)
            if turning and due is not None and due <= entry.at_ms + 60_000:
                due = entry.at_ms  # sustained load is looked at once a minute
            if due is None or entry.at_ms < due:
                what = ", ".join(f"{d.action} {d.session} ({d.reason.rule})" for d in entry.decisions)
                found.append(f"{entry.at_ms}: {what}; at {before.at_ms} it asked to be called at {due}")
        before = entry
    return found


CHECKERS: dict[str, Callable[[Record], Findings]] = {
    "I2": check_i2,
    "I5": check_i5,
    "I6": check_i6,
    "I7": check_i7,
    "I8": check_i8,
    "I11": check_i11,
    "I14": check_i14,
    "order": check_order,
    "band": check_band,
    "reservations": check_reservations,
    "who gives way": check_who_gives_way,
    "contention": check_contention,
    "no wake missed": check_no_wake_missed,
    "no GPU double-booked": check_no_double_booking,
    "conservation": check_conservation,
}
