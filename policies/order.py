"""Who is next: the queue in Fair Tree order, kept so that an admission costs O(log n) however long it is.

Waiting sessions are filed by *cell* (one user's sessions of one shape), cells by *lane* (shape, in or out of credit),
and within a lane by the user's group. Cells of users who hold nothing keep their order while time passes (see
`policies.usage`) and lie in sorted lists; those of users who run something, at most as many as there are GPUs, are
compared when asked. Crossing the credit cap is computed ahead, not polled.
"""

from __future__ import annotations

from heapq import heappop, heappush, merge
from typing import TYPE_CHECKING, Any

from sortedcontainers import SortedList

from policies.bounded_wait import Band
from policies.demand import Demand
from policies.group_credit import GroupCredits
from policies.lanes import Bench, Candidate, Cell, Lane, LaneKey, cell_of
from policies.limits import Block, Limits
from policies.model import NANO, WHOLE_M, Session, Shape, User
from policies.rights import Rights
from policies.save_times import SaveTimes
from policies.snapshot import Memory, Snapshot
from policies.standing import AUTO_BASELINE_MAX, credit_cap_gpu_h, standing
from policies.usage import NEVER_MS, committed_n

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.calendar import Calendar
    from policies.group_credit import GroupCredit
    from policies.params import Params
    from policies.usage import DecayClock

SPARE = 64
"""Empty lanes, and empty benches of a lane, that may be kept."""


class Caps(dict[str, float]):
    """Credit cap of each tier, GPU-h; a tier met for the first time starts at its baseline, automatic ones at most."""

    def __init__(self, clock: DecayClock, params: Params) -> None:
        super().__init__()
        self._clock = clock
        self._params = params

    def __missing__(self, tier: str) -> float:
        baseline = self._params.tier(tier).baseline_gpus
        cap = credit_cap_gpu_h(AUTO_BASELINE_MAX if baseline is None else baseline, self._clock)
        self[tier] = cap
        return cap


class FairQueue:
    """The waiting sessions in order, and who is in credit.

    Args:
        clock: the decay clock of the ledger, which the core moves.
        params: the policy's parameters.

    Attributes:
        demand: what to expect of requests and departures.  saves: how long saving takes.
        fair: ordered by standing; otherwise by arrival, whether in credit or not.
        limits: what may not start at all for now.
        band: who has waited for very long.
        group_credits: credit that the users of a group share.
        rights: what tiers are guaranteed and groups have reserved.
        caps: credit cap of each tier, GPU-h (`standing.credit_cap_gpu_h`); call `caps_changed` after a change.
        wide: the lanes of sessions that need several GPUs.
        asked_m: thousandths of a GPU asked by in-credit waiters.
        waiting: number of waiting sessions.
        touched: users whose usage, cap or holdings changed since the policy last looked at their notices.
        over: users out of credit who hold GPUs.
    """

    def __init__(self, clock: DecayClock, params: Params) -> None:
        self.clock = clock
        self.params = params
        self.caps = Caps(clock, params)
        self.lanes: dict[LaneKey, Lane] = {}
        self.wide: list[Lane] = []
        self.asked_m = 0
        self.waiting = 0
        self.touched: dict[User, None] = {}
        self.over: dict[User, None] = {}
        self.users: dict[str, User] = {}
        self.limits = Limits(params)
        self.rights = Rights(params)
        self.group_credits = GroupCredits(params, clock, self._move_bench, self._look_at_holder)
        self.band = Band(params.order.max_wait_ms, self.group_credits)
        headroom = params.headroom
        self.demand = Demand(headroom.prior_per_h, headroom.prior_dispersion)
        self.saves = SaveTimes()
        self._held_m = 0
        self.fair = params.order.by == "standing"
        self._due: list[tuple[int, str, int, User]] = []  # (when, name, version, user)
        self._oldest: list[tuple[int, int, Cell]] = []  # (submit_ms of a cell's head, tie, cell), in credit when filed
        self._ties = 0
        ladder = params.ladder
        self._ahead = 2.0 ** -(ladder.notice_ahead_ms / clock.half_life_ms)
        self._notice_at = 1.0 - ladder.notice_credit_fraction

    # -- sessions come and go ------------------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        """A session waits."""
        user, shape = session.user, session.shape
        self.users[user.name] = user
        self.waiting += 1
        cell = user.cells.get(shape)
        if cell is None:
            committed = committed_n(
                shape, shape.fraction_m, self.params.weight(shape.gpu_type), self.params.ladder.min_run_ms
            )
            cell = user.cells[shape] = Cell(user, shape, committed)
            self._let_others_know(user)
        self._ties += 1
        heappush(cell.heap, (session.submit_ms, session.id, self._ties, session))
        cell.count += 1
        bench = cell.bench
        if bench is None or (cell.idle_key is not None and cell.idle_key[1:] > (session.submit_ms, session.id)):
            self._unfile(cell, 1)
            self._file(cell)
            if user.due_ms <= self.clock.now_ms:
                self.user_changed(user)  # a crossing is due that no cycle has noted yet: arming anew would lose it
            else:
                self._arm(user)
        else:
            bench.lane.count += 1
            bench.count += 1
            self._count_asked(cell)
            if cell.head() is session:  # it came back older than those that wait: its age counts
                self._remember_age(cell)

    def remove(self, session: Session) -> None:
        """A session waits no longer (its state or claim has been changed already)."""
        user = session.user
        cell = user.cells[session.shape]
        self.waiting -= 1
        self._unfile(cell)
        cell.count -= 1
        if cell.count:
            self._file(cell)
        else:
            del user.cells[session.shape]

    def user_changed(self, user: User) -> None:
        """The user's account, holdings, cap, limits or cooldown changed: refile its cells, look ahead anew."""
        self._let_others_know(user)
        if not self.group_credits.none:
            self.group_credits.changed(user)
        for cell in user.cells.values():
            self._refile(cell)
        if user.held:
            self.users[user.name] = user
            self._look_at_holder(user)
        else:
            self.over.pop(user, None)
            if user.nominated:
                self.users[user.name] = user
        self._arm(user)

    def _look_at_holder(self, user: User) -> None:
        """A user that holds GPUs is in credit or not."""
        shared = None if self.group_credits.none else self.group_credits.of(user)
        user.in_credit = self.clock.usage(user) <= self.caps[user.tier] and (shared is None or shared.ok)
        if user.in_credit:
            self.over.pop(user, None)
        else:
            self.over[user] = None
        self.touched[user] = None

    def out_of_credit(self, user: User, more_n: int = 0) -> bool:
        """Whether a waiter of the user is, that commits `more_n` in addition to what is committed already."""
        if user.cooldown_until_ms > self.clock.now_ms:
            return True
        if self.clock.usage(user) + (user.committed_n + more_n) / NANO > self.caps[user.tier]:
            return True
        shared = None if self.group_credits.none else self.group_credits.of(user)
        return shared is not None and not shared.covers(self.clock, more_n)

    def caps_changed(self) -> None:
        """The caps were given other values: look at every user who waits or holds."""
        for _, user in sorted(self.users.items()):
            if user.cells or user.held or user.nominated:
                self.user_changed(user)
            else:
                del self.users[user.name]

    def refusal(self, user: User, shape: Shape, *, asked: bool = False) -> Block | None:
        """The limit that refuses a new request outright, or (`asked`) refused it when it came; None = none does."""
        if self.limits.none:
            return None
        waiting = sum(cell.count for cell in user.cells.values()) + len(user.nominated)
        block = self.limits.refusal(user, shape, waiting)
        if block is None and asked:
            block = self.limits.refusal(user, shape, self.params.tier(user.tier).queued_per_user or 0)
        return block

    def _let_others_know(self, user: User) -> None:
        """What the user holds may have changed what others of its group may start."""
        if not self.rights.none:
            self.rights.holds(user)
        if self.limits.none and user.holdings is None:
            return
        for other in self.limits.holds(user, self.clock.now_ms):
            for cell in other.cells.values():
                self._refile(cell)

    def cool_down(self, user: User, until_ms: int) -> None:
        """Until then the user's waiters make nobody give way."""
        user.cooldown_until_ms = until_ms
        self.user_changed(user)

    # -- time passes ---------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take note of everything that crossed a threshold up to the clock's instant."""
        now, due = self.clock.now_ms, self._due
        if self.rights.advance(now):
            self._rights_changed()
        if self.fair:
            self.band.advance(now)
        if not self.group_credits.none:
            self.group_credits.advance()
        while due and due[0][0] <= now:
            _, _, version, user = heappop(due)
            if user.version == version:
                self.user_changed(user)

    def calendar_changed(self, calendar: Calendar) -> None:
        """Other reservations are agreed."""
        self.rights.calendar_changed(calendar, self.clock.now_ms)
        self._rights_changed()

    def _rights_changed(self) -> None:
        """Count anew what is held of every right, and file everybody who waits by the rights it has."""
        users = [user for _, user in sorted(self.users.items())]
        for user in users:
            self.rights.holds(user)
        for user in users:
            for cell in user.cells.values():
                self._refile(cell)

    def next_ms(self) -> int:
        """The next instant at which some threshold is crossed; `NEVER_MS` when none is."""
        due = self._due
        while due and due[0][3].version != due[0][2]:
            heappop(due)
        at_ms = due[0][0] if due else NEVER_MS
        if self.rights.next_ms() < at_ms:
            at_ms = self.rights.next_ms()
        if self.fair and self.band.next_ms() < at_ms:
            at_ms = self.band.next_ms()
        if not self.group_credits.none and self.group_credits.next_ms() < at_ms:
            at_ms = self.group_credits.next_ms()
        return at_ms

    def rebased(self) -> None:
        """Every account was rescaled by one positive factor: bring the sorted keys after it, in the same order."""
        for lane in self.lanes.values():
            for bench in lane.benches.values():
                for idle in bench.idle.values():
                    cells = [entry[3] for entry in idle]
                    idle.clear()
                    for cell in cells:
                        head = cell.head()
                        cell.idle_key = (cell.user.scaled if self.fair else 0.0, head.submit_ms, head.id)
                        idle.add((*cell.idle_key, cell))

    # -- what to expect ------------------------------------------------------------------------------------------

    def requested(self, session: Session) -> None:
        """A session was just asked for: learn from it if it is in credit, one user's up to what it may hold at once."""
        user = session.user
        if user.cells[session.shape].in_credit:
            tier = self.params.tier(user.tier)
            most = tier.gpus_per_user or tier.sessions_per_user
            most_m = None if most is None else round(most * WHOLE_M)
            self.demand.requested(self.clock.now_ms, user.name, session.shape.amount_m, most_m)

    def took(self, amount_m: int) -> None:
        """So many thousandths of a GPU are held in addition."""
        self._held_m += amount_m
        self.demand.held(self.clock.now_ms, self._held_m)

    def gave_back(self, amount_m: int, *, by_itself: bool) -> None:
        """So many are held no longer."""
        if by_itself:
            self.demand.departed(self.clock.now_ms, amount_m)
        self.took(-amount_m)

    def learned(self) -> dict[str, Any]:
        """What was learned of requests, departures and saves."""
        return self.demand.dump() | {"saves": self.saves.dump()}

    def saved(self, duration_ms: int) -> None:
        """A save hook was acknowledged so long after it was asked for."""
        self.saves.took(duration_ms)

    def restore_learned(self, learned: dict[str, Any] | None, held_m: int) -> None:
        """Take that over; under a policy that learned nothing, begin with what is held."""
        self._held_m = held_m
        if learned is None:
            self.demand.held(self.clock.now_ms, held_m)
        else:
            headroom = self.params.headroom
            self.saves = SaveTimes(learned["saves"])
            self.demand = Demand.restore(learned, headroom.prior_per_h, headroom.prior_dispersion)

    def shared_dues(self) -> list[tuple[str, str, int]]:
        """When the credit that groups share next changes."""
        return self.group_credits.dues()

    def restore_shared_dues(self, dues: list[tuple[str, str, int]]) -> None:
        """Take that over."""
        self.group_credits.restore(dues)

    # -- for checkpoints -----------------------------------------------------------------------------------------

    def touched_names(self) -> list[str]:
        """Users that `touched` holds, by name."""
        return [user.name for user in self.touched]

    def touch(self, users: list[User]) -> None:
        """Make `touched` hold these users and no others."""
        self.touched = dict.fromkeys(users)

    def restore_memory(self, memory: Memory) -> None:
        """Take over the automatic baselines that a policy remembered."""
        for tier, baseline in memory.baselines.items():
            self.caps[tier] = credit_cap_gpu_h(baseline, self.clock)

    def set_due(self, user: User, at_ms: int) -> None:
        """The user's next crossing, as it was computed at an earlier instant (later ones round differently)."""
        user.version += 1
        self._push_due(user, at_ms)

    # -- levels --------------------------------------------------------------------------------------------------

    def notice_levels(self, user: User) -> tuple[float, float]:
        """Usage, GPU-h, from which the user gets a notice, and down to which it is taken back.

        From `notice_credit_fraction` of the cap left, or when the present charge rate would use the rest up within
        `notice_ahead`; taken back 10 % of the cap lower.
        """
        cap = self.caps[user.tier]
        ahead = (cap - user.steady * (1.0 - self._ahead)) / self._ahead
        level = min(cap * self._notice_at, ahead)
        return level, level - 0.1 * cap

    # -- questions -----------------------------------------------------------------------------------------------

    def best(self, lanes: list[Lane]) -> Candidate | None:
        """The first of all waiting sessions in the given lanes."""
        if len(lanes) == 1 and lanes[0].cells == 1:
            return self._only(lanes[0])
        benches = [bench for lane in lanes for bench in lane.benches.values() if bench.cells]
        above = [self._above(bench) for bench in benches] if len(benches) > 1 else [()]
        best: Candidate | None = None
        for number in sorted(range(len(benches)), key=above.__getitem__):
            if best is not None and above[number] > best.place:
                break  # everybody below this group, and below those that follow, comes later
            found = self._best_of(benches[number])
            if best is None or found < best:
                best = found
        return best

    def _above(self, bench: Bench) -> tuple[float, ...]:
        """How the places of all cells of a bench begin: they ask for the same, below the same group."""
        if not self.fair:
            return ()
        clock, cell = self.clock, _some_cell(bench)
        return tuple([standing(node, clock, cell.committed_n) for node in cell.user.path[:-1]])

    @staticmethod
    def _only(lane: Lane) -> Candidate:
        """The one cell of a lane: with nobody to compare it to, its place need not be worked out."""
        cell = _some_cell(next(bench for bench in lane.benches.values() if bench.cells))
        head = cell.head()
        return Candidate((), head.submit_ms, head.id, cell)

    def benches(self, *, in_credit: bool) -> list[Bench]:
        """All benches of one class that hold somebody, the one with the first waiter first."""
        lanes = [lane for lane in self.lanes.values() if lane.in_credit is in_credit and lane.cells]
        benches = [bench for lane in lanes for bench in lane.benches.values() if bench.cells]
        return sorted(benches, key=self._best_of) if len(benches) > 1 else benches

    def in_order(self, bench: Bench) -> Iterator[Candidate]:
        """The cells of one bench, first to last, one for each user; worked out as far as they are asked for."""
        rows = [iter(sorted([self._candidate(cell) for cell in bench.live]))]
        rows += [map(self._candidate, map(cell_of, idle)) for idle in bench.idle.values() if idle]
        return rows[0] if len(rows) == 1 else merge(*rows)

    def oldest_in_credit_ms(self) -> int | None:
        """Submit time of the longest wait in credit, among the first session of each user; None = nobody."""
        oldest = self._oldest
        while oldest:
            submit_ms, _, cell = oldest[0]
            if cell.bench is not None and cell.in_credit and cell.head().submit_ms == submit_ms:
                break
            heappop(oldest)
        first = oldest[0][0] if oldest else None
        if self.group_credits.none:
            return first
        return min((at for at in (first, *self.group_credits.oldest_ms()) if at is not None), default=None)

    def _remember_age(self, cell: Cell) -> None:
        """Entries that no longer hold are dropped when they surface, or here when they pile up."""
        self._ties += 1
        bench = cell.bench
        if self.fair:
            self.band.add(cell, self._ties, self.waiting, self.clock.now_ms)
        if bench is not None and bench.credit is not None:
            bench.ages.remember(cell, self._ties, bench.cells)
            return
        if cell.shape.gpus > 1 and bench is not None:
            bench.lane.ages.remember(cell, self._ties, bench.lane.cells)
        if not cell.in_credit:
            return
        if len(self._oldest) > 4 * self.waiting + 1024:
            kept = {cell: tie for _, tie, cell in self._oldest if cell.bench is not None and cell.in_credit}
            self._oldest = sorted([(cell.head().submit_ms, tie, cell) for cell, tie in kept.items()])
        heappush(self._oldest, (cell.head().submit_ms, self._ties, cell))

    def cooling(self, user: User) -> bool:
        """The user was evicted a short while ago: its waiters make nobody give way."""
        return user.cooldown_until_ms > self.clock.now_ms

    # -- filing --------------------------------------------------------------------------------------------------

    def _best_of(self, bench: Bench) -> Candidate:
        """The first of a bench that is not empty."""
        firsts = [self._candidate(idle[0][3]) for idle in bench.idle.values() if idle]
        firsts += [self._candidate(cell) for cell in bench.live]
        return firsts[0] if len(firsts) == 1 else min(firsts)

    def _candidate(self, cell: Cell) -> Candidate:
        clock, extra, head = self.clock, cell.committed_n, cell.head()
        if not self.fair:
            return Candidate((), head.submit_ms, head.id, cell)
        return Candidate(
            tuple([standing(node, clock, extra) for node in cell.user.path]), head.submit_ms, head.id, cell
        )

    def _credit(self, cell: Cell) -> bool:
        """In credit when usage and committed charge, this session's included, are at most the cap.

        While a user cools down after an eviction its waiters count as out of credit: they may start on capacity above
        the headroom and make nobody give way.
        """
        user = cell.user
        if user.cooldown_until_ms > self.clock.now_ms:
            return False
        usage = user.scaled * self.clock.inverse + user.steady
        return usage + (user.committed_n + cell.committed_n) / NANO <= self.caps[user.tier]

    def _block_of(self, user: User, shape: Shape) -> Block | None:
        """The limit that keeps a user's sessions of a shape from starting."""
        now = self.clock.now_ms
        if self.limits.none and user.restricted_until_ms <= now:
            return None
        return self.limits.against(user, shape, now)

    def _refile(self, cell: Cell) -> None:
        """Move a cell if its place is another now."""
        key, user = cell.idle_key, cell.user
        block = self._block_of(user, cell.shape)
        if block is not None and cell.bench is None:
            cell.block = block
            return
        if (
            block is None
            and cell.bench is not None
            and self._credit(cell) is cell.own_credit
            and cell.bench.lane.rights == self.rights.of(user)
            and cell.bench.credit is (self.group_credits.of(user) if cell.own_credit else None)
        ):
            if user.committed_n or user.rate_n:
                if key is None:
                    self._count_asked(cell)
                    return
            elif key is not None and (key[0] == user.scaled or not self.fair) and cell.idle_shares == user.shares:
                self._count_asked(cell)
                return
        self._unfile(cell)
        self._file(cell)

    def _file(self, cell: Cell) -> None:
        user = cell.user
        cell.block = self._block_of(user, cell.shape)
        if cell.block is not None:
            cell.own_credit = False
            return
        cell.own_credit = own = self._credit(cell)
        shared = self.group_credits.of(user) if own and not self.group_credits.none else None
        in_credit = own and (shared is None or self.group_credits.covers(shared, cell.committed_n))
        key = (cell.shape, in_credit, self.rights.of(user))
        lane = self.lanes.get(key) or self._new_lane(key)
        lane.count += cell.count
        lane.cells += 1
        bench = lane.benches.get(shared or user.group) or self._new_bench(lane, cell, shared)
        bench.count += cell.count
        bench.cells += 1
        cell.bench = bench
        self._count_asked(cell)
        self._remember_age(cell)
        if user.committed_n or user.rate_n:
            bench.live[cell] = None
            return
        head = cell.head()
        cell.idle_key = (user.scaled if self.fair else 0.0, head.submit_ms, head.id)
        cell.idle_shares = user.shares
        idle = bench.idle.get(user.shares)
        if idle is None:
            idle = bench.idle[user.shares] = SortedList()
        idle.add((*cell.idle_key, cell))

    def _unfile(self, cell: Cell, fresh: int = 0) -> None:
        """Take a cell out of its bench; `fresh` of its sessions were not counted there yet."""
        bench = cell.bench
        if bench is None:
            return
        self.band.remove(cell)
        lane = bench.lane
        lane.count -= cell.count - fresh
        bench.count -= cell.count - fresh
        bench.asked_m -= cell.asked_m
        if lane.in_credit:
            self.asked_m -= cell.asked_m
        cell.asked_m = 0
        if cell.idle_key is None:
            del bench.live[cell]
        else:
            idle = bench.idle[cell.idle_shares]
            idle.remove((*cell.idle_key, cell))
            cell.idle_key = None
        cell.bench = None
        bench.cells -= 1
        lane.cells -= 1
        if bench.credit is not None and not bench.cells:
            del lane.benches[bench.credit], bench.credit.benches[bench]

    # Lanes and benches stay when they are empty, since the next session is often like the last one; when empty ones
    # pile up they are dropped.

    def _new_lane(self, key: LaneKey) -> Lane:
        if len(self.lanes) >= SPARE:
            self.lanes = {key: lane for key, lane in self.lanes.items() if lane.cells}
        lane = self.lanes[key] = Lane(*key)
        self.wide = [lane for lane in self.lanes.values() if lane.shape.gpus > 1]
        return lane

    def _new_bench(self, lane: Lane, cell: Cell, shared: GroupCredit | None) -> Bench:
        if len(lane.benches) >= SPARE + 2 * lane.cells:
            lane.benches = {other: bench for other, bench in lane.benches.items() if bench.cells}
        group = cell.user.group
        bench = lane.benches[shared or group] = Bench(lane, group, shared, cell.committed_n)
        if shared is not None:
            shared.benches[bench] = None
            self.group_credits.filed(shared)
        return bench

    def _move_bench(self, bench: Bench, in_credit: bool) -> None:
        """The credit that its users share is gone, or back."""
        old, shared = bench.lane, bench.credit
        if shared is None:
            return
        key = (old.shape, in_credit, old.rights)
        new = self.lanes.get(key) or self._new_lane(key)
        del old.benches[shared]
        new.benches[shared] = bench
        bench.lane = new
        for lane, sign in ((old, -1), (new, 1)):
            lane.cells += sign * bench.cells
            lane.count += sign * bench.count
        self.asked_m += bench.asked_m if in_credit else -bench.asked_m

    def _count_asked(self, cell: Cell) -> None:
        """Bring the cell's part of `asked_m` up to date."""
        asked = 0
        if cell.own_credit:
            count = cell.count if self.limits.none else self.limits.within(cell.user, cell.shape, cell.count)
            asked = count * cell.amount_m
        more_m, cell.asked_m = asked - cell.asked_m, asked
        bench = cell.bench
        if bench is not None:
            bench.asked_m += more_m
            if bench.lane.in_credit:
                self.asked_m += more_m

    def _arm(self, user: User) -> None:
        """Compute when the user next crosses a threshold, or ends its cooldown, and remember it."""
        user.version += 1
        user.due_ms = NEVER_MS
        if not user.cells and not user.held:
            return
        clock = self.clock
        goal = user.steady
        usage = user.scaled * clock.inverse + goal
        cap = self.caps[user.tier]
        levels = [cap, *self.notice_levels(user)] if user.held else []
        for cell in user.cells.values():
            levels.append(cap - (user.committed_n + cell.committed_n) / NANO)  # noqa: PERF401 - most often none or one
        level: float | None = None
        if goal > usage:
            for at in levels:
                if usage <= at < goal and (level is None or at < level):
                    level = at
        else:
            for at in levels:
                if goal < at < usage and (level is None or at > level):
                    level = at
        when = NEVER_MS
        if level is not None:
            when = clock.now_ms + clock.time_to_reach(user, level)
        if clock.now_ms < user.cooldown_until_ms < when:
            when = user.cooldown_until_ms
        if (user.cells or user.nominated) and not (self.limits.none and user.restricted_until_ms <= clock.now_ms):
            when = min(when, self.limits.next_ms(user, clock.now_ms))
        if when < NEVER_MS:
            self._push_due(user, when)

    def _push_due(self, user: User, at_ms: int) -> None:
        user.due_ms = at_ms
        heappush(self._due, (at_ms, user.name, user.version, user))


def _some_cell(bench: Bench) -> Cell:
    """Any cell of a bench that is not empty."""
    return next(iter(bench.live), None) or next(idle[0][3] for idle in bench.idle.values() if idle)


FairSnapshot = Snapshot[FairQueue]
"""The moment as the fair-share policy sees it."""
