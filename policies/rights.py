"""GPUs that a tier is guaranteed, or that a group has reserved: its users go first up to so many.

A guarantee is lent out while nobody asks for it, and taken back when somebody does (`policies.reclaim`). A reservation
is kept free: others may start only if what is left of it stays free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import WHOLE_M
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policies.calendar import Calendar, Entry
    from policies.model import Session, User
    from policies.order import FairQueue, FairSnapshot
    from policies.params import Params


class Right:
    """A right to so many GPUs.

    Attributes:
        name: of the tier, or of the calendar's entry.
        amount_m: thousandths of a GPU.  due_m: the part that may be taken back from others by now.
        held_m: what its users hold or are nominated for.
    """

    __slots__ = ("amount_m", "due_m", "held_m", "name")

    def __init__(self, name: str, amount_m: int, due_m: int) -> None:
        self.name = name
        self.amount_m = amount_m
        self.due_m = due_m
        self.held_m = 0

    @property
    def left_m(self) -> int:
        """What of it is not in use, thousandths of a GPU."""
        return max(0, self.amount_m - self.held_m)

    @property
    def missing_m(self) -> int:
        """What of it is not in use and may be taken back by now, thousandths of a GPU."""
        return max(0, self.due_m - self.held_m)

    def covers(self, session: Session) -> bool:
        """A session wider than the whole right is never within it: one GPU does not protect eight."""
        return session.shape.amount_m <= self.amount_m


Held = tuple[Right, ...]
"""The rights of one user."""


class Rights:
    """All rights in force, and what is held of them.

    Args:
        params: of the policy.

    Attributes:
        none: there are none, and nothing has to be counted.
        tiers, groups: the rights in force, by the tier or the group that has them.
    """

    def __init__(self, params: Params) -> None:
        amounts = {name: round(tier.guaranteed_gpus * WHOLE_M) for name, tier in params.tiers.items()}
        self.tiers = {name: Right(name, amount_m, amount_m) for name, amount_m in amounts.items() if amount_m}
        self._lead_ms = lead_ms(params)
        self._ahead_ms = kept_ahead_ms(params)
        self.groups: dict[str, Right] = {}
        self._entries: list[Entry] = []
        self._next_ms = NEVER_MS
        self._counted: dict[User, tuple[Held, int]] = {}
        self.none = not self.tiers

    # -- the calendar ------------------------------------------------------------------------------------------------

    def calendar_changed(self, calendar: Calendar, now_ms: int) -> None:
        """Other reservations are agreed."""
        self._entries = calendar.reservations()
        self._set(now_ms)

    def advance(self, now_ms: int) -> bool:
        """Take note of reservations that have begun or ended; whether any has."""
        if self._next_ms > now_ms:
            return False
        self._set(now_ms)
        return True

    def next_ms(self) -> int:
        """When the next one begins or ends."""
        return self._next_ms

    def _set(self, now_ms: int) -> None:
        """Rights of the reservations that count now.

        What is reserved is kept from as long before as a session that starts now could not be made to leave (the
        warning, which may run inside the minimum run, and the time to save); it may be taken back from when a session
        that has had its minimum run has to be told. Of two in a row the larger one counts while both do.
        """
        self.groups = {}
        for e in self._entries:
            if e.from_ms - self._ahead_ms <= now_ms < e.until_ms:
                right = self.groups.setdefault(e.group, Right(e.id, 0, 0))
                right.amount_m = max(right.amount_m, e.gpus_m)
                if e.from_ms - self._lead_ms <= now_ms:
                    right.due_m = max(right.due_m, e.gpus_m)
        times = [
            at for e in self._entries for at in (e.from_ms - self._ahead_ms, e.from_ms - self._lead_ms, e.until_ms)
        ]
        self._next_ms = min((at for at in times if at > now_ms), default=NEVER_MS)
        self._counted.clear()
        for right in self.tiers.values():
            right.held_m = 0
        self.none = not (self.tiers or self.groups)

    # -- what is held ------------------------------------------------------------------------------------------------

    def of(self, user: User) -> Held:
        """The rights of a user: its tier's, and of the nearest group above it that has one."""
        if self.none:
            return ()
        tier = self.tiers.get(user.tier)
        found = () if tier is None else (tier,)
        if self.groups:
            for node in user.path[-2::-1]:
                right = self.groups.get(node.name)
                if right is not None:
                    return (*found, right)
        return found

    def holds(self, user: User) -> None:
        """What a user holds or is nominated for may have changed."""
        rights = self.of(user)
        held_m = occupied_m(user) if rights else 0
        before = self._counted.get(user)
        if before is not None:
            for right in before[0]:
                right.held_m -= before[1]
        for right in rights:
            right.held_m += held_m
        if rights:
            self._counted[user] = rights, held_m
        else:
            self._counted.pop(user, None)

    # -- questions ---------------------------------------------------------------------------------------------------

    @staticmethod
    def first(rights: Held, amount_m: int) -> Right | None:
        """The right by which a request of this size goes first; None = it has to wait like any other."""
        for right in rights:
            if right.held_m + amount_m <= right.amount_m:
                return right
        return None

    def kept_m(self, rights: Held) -> int:
        """Thousandths of a GPU that somebody with these rights has to leave free for others."""
        return sum(right.left_m for right in self.groups.values() if right not in rights)

    def kept(self, rights: Held) -> list[Right]:
        """The reservations of which somebody with these rights has to leave something free."""
        return [right for right in self.groups.values() if right not in rights and right.left_m]

    def spare(
        self, sessions: list[Session], rights: Held, view: FairSnapshot, present: Sequence[Session] = ()
    ) -> list[Session]:
        """Those that others may take from: what is beyond the rights of their users, in the order given.

        Args:
            sessions: that could give way.
            rights: of whoever takes; they do not protect, since among those who share one it is for the other rules.
            view: the moment.
            present: sessions that count as there although they are in grace.
        """
        if self.none:
            return sessions
        beyond = self._beyond(view, present)
        found = []
        for session in sessions:
            own = [right for right in self.of(session.user) if right.covers(session) and right not in rights]
            if all(beyond[right] >= session.shape.amount_m for right in own):
                for right in own:
                    beyond[right] -= session.shape.amount_m
                found.append(session)
        return found

    def may_give(self, sessions: list[Session], rights: Held, view: FairSnapshot) -> bool:
        """Whether all of these sessions, in grace already, are beyond the rights of their users still."""
        return self.none or len(self.spare(sessions, rights, view, present=sessions)) == len(sessions)

    def unprotected(self, queue: FairQueue) -> Iterable[User]:
        """Holders out of credit who may be told to give way: not those within a right that nobody in credit shares."""
        if self.none:
            return queue.over
        asking = {right for lane in queue.lanes.values() if lane.in_credit and lane.cells for right in lane.rights}
        every = (*self.tiers.values(), *self.groups.values())
        full = {right for right in every if right.held_m <= right.amount_m and right not in asking}
        return [user for user in queue.over if not self._within(user, full)]

    def _within(self, user: User, full: set[Right]) -> bool:
        """All that a user holds is covered by one of these rights."""
        own = [right for right in self.of(user) if right in full]
        return bool(own) and all(any(right.covers(session) for right in own) for session in user.held.values())

    def _beyond(self, view: FairSnapshot, present: Sequence[Session]) -> dict[Right, int]:
        """What runs beyond each right once those who leave have left, but for `present`, thousandths of a GPU.

        Who is only nominated does not count: it may never start.
        """
        every = (*self.tiers.values(), *self.groups.values())
        held = dict.fromkeys(every, 0)
        for session in view.holders.values():
            if not view.leaving(session) or session in present:
                for right in self.of(session.user):
                    held[right] += session.shape.amount_m if right.covers(session) else 0
        return {right: held_m - right.amount_m for right, held_m in held.items()}

    def counted(self) -> Iterable[Right]:
        """Reservations of which something may be taken back by now."""
        return [right for right in self.groups.values() if right.due_m]


def lead_ms(params: Params) -> int:
    """How long before a reservation begins a session that has had its minimum run is told, ms."""
    ladder = params.ladder
    return ladder.contention_ms + ladder.warn_ms + ladder.grace_ms


def kept_ahead_ms(params: Params) -> int:
    """How long before a reservation begins its GPUs are kept free, ms."""
    ladder = params.ladder
    return lead_ms(params) + max(0, ladder.min_run_ms - ladder.warn_ms)


def occupied_m(user: User) -> int:
    """Thousandths of a GPU that a user holds or is nominated for; a throttled session counts with what it asked for."""
    sessions = (*user.held.values(), *user.nominated.values())
    return sum([session.shape.amount_m for session in sessions])
