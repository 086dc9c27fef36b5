"""Credit that a group's users share: more accounts do not make it larger.

A tier may bound what the users of one group can have used together and stay in credit. Who is in credit by its own
account is so only while its group is: waiting sessions of one shape lose and gain that together, whole benches of the
queue at a time, so that a group of ten thousand accounts costs no more than one of ten.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from policies.model import NANO
from policies.standing import credit_cap_gpu_h
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policies.lanes import Bench
    from policies.model import Node, User
    from policies.params import Params
    from policies.usage import DecayClock


class GroupCredit:
    """What the users of one group and one tier share.

    Attributes:
        node: the group, whose account counts.  tier: whose users share it.
        cap_gpu_h: usage up to which they are in credit together.
        benches: of those who wait and are in credit by their own account.
        holders: users of them that hold GPUs.  ok: the group is in credit, as far as they go.
        members: users of them that hold GPUs or are nominated.
        due_ms: when something of this next changes by itself.
    """

    __slots__ = ("_version", "benches", "cap_gpu_h", "due_ms", "holders", "members", "node", "ok", "tier")

    def __init__(self, node: Node, tier: str, cap_gpu_h: float) -> None:
        self.node = node
        self.tier = tier
        self.cap_gpu_h = cap_gpu_h
        self.benches: dict[Bench, None] = {}
        self.holders: dict[User, None] = {}
        self.members: dict[User, None] = {}
        self.ok = True
        self.due_ms = NEVER_MS
        self._version = 0

    def covers(self, clock: DecayClock, committed_n: int) -> bool:
        """Whether a session of this committed charge would be in credit by the group's account."""
        node = self.node
        return clock.usage(node) + (node.committed_n + committed_n) / NANO <= self.cap_gpu_h

    def back_ms(self, clock: DecayClock, committed_n: int) -> int:
        """When such a session will be, at the present charge rate; `NEVER_MS` = never by itself."""
        level = self.cap_gpu_h - (self.node.committed_n + committed_n) / NANO
        if clock.usage(self.node) <= level:
            return clock.now_ms
        wait_ms = clock.time_to_reach(self.node, level)
        return NEVER_MS if wait_ms == NEVER_MS else clock.now_ms + wait_ms

    def next_ms(self, clock: DecayClock) -> int:
        """When the next of its levels is crossed if nothing changes."""
        committed = {bench.committed_n for bench in self.benches}
        levels = [self.cap_gpu_h, *(self.cap_gpu_h - (self.node.committed_n + own_n) / NANO for own_n in committed)]
        times = [clock.time_to_reach(self.node, level) for level in levels]
        first = min(times)
        return NEVER_MS if first == NEVER_MS else clock.now_ms + first

    @property
    def watched(self) -> bool:
        """Somebody waits or holds whose credit it bounds: with nobody there, crossing a level changes nothing."""
        return bool(self.benches or self.holders)

    def renew(self, due_ms: int) -> int:
        """Another instant is due; what was remembered before counts no longer."""
        self.due_ms = due_ms
        self._version += 1
        return self._version

    def is_due(self, version: int) -> bool:
        """Whether this is what was remembered last."""
        return version == self._version


class GroupCredits:
    """All of them, made when a user of such a tier is met.

    Args:
        params: of the policy.
        clock: of the ledger.
        move: files a bench anew, in credit or not.
        tell: a holder's credit may have changed.
    """

    def __init__(
        self, params: Params, clock: DecayClock, move: Callable[[Bench, bool], None], tell: Callable[[User], None]
    ) -> None:
        self._caps = {
            name: credit_cap_gpu_h(tier.group_baseline_gpus, clock)
            for name, tier in params.tiers.items()
            if tier.group_baseline_gpus is not None
        }
        self._clock = clock
        self._move = move
        self._tell = tell
        self._known: dict[tuple[Node, str], GroupCredit] = {}
        self._at: dict[Node, list[GroupCredit]] = {}
        self._due: list[tuple[int, str, str, int, GroupCredit]] = []
        self.none = not self._caps

    def of(self, user: User) -> GroupCredit | None:
        """What bounds a user's credit beside its own account."""
        cap = self._caps.get(user.tier)
        if cap is None:
            return None
        key = (user.group, user.tier)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = GroupCredit(user.group, user.tier, cap)
            self._at.setdefault(user.group, []).append(found)
        return found

    def changed(self, user: User) -> None:
        """The account or the holdings of a user changed, and so of every group above it."""
        own = self.of(user)
        for node in user.path[:-1]:
            for credit in self._at.get(node, ()):
                if user.held and credit is own:
                    credit.holders[user] = None
                else:
                    credit.holders.pop(user, None)
                if credit is own and (user.held or user.nominated):
                    credit.members[user] = None
                else:
                    credit.members.pop(user, None)
                self._settle(credit)

    def covers(self, credit: GroupCredit, committed_n: int) -> bool:
        """Whether a session of this committed charge is filed as in credit: like those of its kind that wait already.

        Notes a crossing that is due and that no cycle has noted yet: arming anew would lose it.
        """
        if credit.due_ms <= self._clock.now_ms:
            self._settle(credit)
        for bench in credit.benches:
            if bench.committed_n == committed_n:
                return bench.lane.in_credit
        return credit.covers(self._clock, committed_n)

    def filed(self, credit: GroupCredit) -> None:
        """Somebody waits in another bench: its level has to be watched."""
        self._arm(credit)

    def advance(self) -> None:
        """Take note of what crossed a level up to now."""
        due, now = self._due, self._clock.now_ms
        while due and due[0][0] <= now:
            _, _, _, version, credit = heappop(due)
            if credit.is_due(version):
                self._settle(credit)

    def next_ms(self) -> int:
        """When the next level is crossed."""
        due = self._due
        while due and not (due[0][4].is_due(due[0][3]) and due[0][4].watched):
            _, _, _, version, credit = heappop(due)
            if credit.is_due(version):
                credit.renew(NEVER_MS)
        return due[0][0] if due else NEVER_MS

    def oldest_ms(self) -> list[int]:
        """Submit time of the longest wait of each bench that is in credit."""
        benches = [bench for credit in self._known.values() for bench in credit.benches if bench.lane.in_credit]
        return [age[0] for age in (bench.oldest() for bench in benches) if age is not None]

    def dues(self) -> list[tuple[str, str, int]]:
        """For checkpoints: (group, tier, when) as computed at earlier instants (later ones round differently)."""
        watched = [credit for credit in self._known.values() if credit.watched and credit.due_ms != NEVER_MS]
        return sorted((credit.node.name, credit.tier, credit.due_ms) for credit in watched)

    def restore(self, dues: Iterable[tuple[str, str, int]]) -> None:
        """For checkpoints: take them over."""
        by_name = {(credit.node.name, credit.tier): credit for credit in self._known.values()}
        for group, tier, due_ms in dues:
            credit = by_name.get((group, tier))
            if credit is not None:
                self._push(credit, due_ms)

    def _settle(self, credit: GroupCredit) -> None:
        clock = self._clock
        for bench in list(credit.benches):
            covered = credit.covers(clock, bench.committed_n)
            if covered != bench.lane.in_credit:
                self._move(bench, covered)
        ok = clock.usage(credit.node) <= credit.cap_gpu_h
        if ok != credit.ok:
            credit.ok = ok
            for user in sorted(credit.holders, key=lambda user: user.name):
                self._tell(user)
        self._arm(credit)

    def _arm(self, credit: GroupCredit) -> None:
        due_ms = credit.next_ms(self._clock) if credit.watched else NEVER_MS
        if due_ms != credit.due_ms:
            self._push(credit, due_ms)

    def _push(self, credit: GroupCredit, due_ms: int) -> None:
        version = credit.renew(due_ms)
        if due_ms < NEVER_MS:
            heappush(self._due, (due_ms, credit.node.name, credit.tier, version, credit))
