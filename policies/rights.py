"""GPUs that a tier is guaranteed, or that a group has reserved: its users go first up to so many.

A guarantee is lent out while nobody asks for it, and taken back when somebody does (`policies.reclaim`). A reservation
is kept free: others may start only if what is left of it stays free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import WHOLE_M
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.calendar import Calendar, Entry
    from policies.model import Session, User
    from policies.order import FairQueue, FairSnapshot
    from policies.params import Params


class Right:
    """A right to so many GPUs.

    Attributes:
        name: of the tier, or of the calendar's entry.
        amount_m: thousandths of a GPU.  held_m: what its users hold or are nominated for.
        kept: others must leave the rest free.  counted: the rest is missing where it is not free.
    """

    __slots__ = ("amount_m", "counted", "held_m", "kept", "name")

    def __init__(self, name: str, amount_m: int, *, kept: bool = False, counted: bool = False) -> None:
        self.name = name
        self.amount_m = amount_m
        self.held_m = 0
        self.kept = kept
        self.counted = counted

    @property
    def left_m(self) -> int:
        """What of it is not in use, thousandths of a GPU."""
        return max(0, self.amount_m - self.held_m)


Held = tuple[Right, ...]
"""The rights of one user."""


class Rights:
    """All rights in force, and what is held of them.

    Args:
        params: of the policy.

    Attributes:
        none: there are none, and nothing has to be counted.
    """

    def __init__(self, params: Params) -> None:
        self._tiers = {
            name: Right(name, round(tier.guaranteed_gpus * WHOLE_M))
            for name, tier in params.tiers.items()
            if tier.guaranteed_gpus
        }
        self._lead_ms = params.ladder.warn_ms + params.ladder.grace_ms
        self._ahead_ms = kept_ahead_ms(params)
        self._groups: dict[str, Right] = {}
        self._entries: list[Entry] = []
        self._next_ms = NEVER_MS
        self._counted: dict[User, tuple[Held, int]] = {}
        self.none = not self._tiers

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

        What is reserved is kept from as long before as a session that starts now could not be made to leave (its
        minimum run, or the warning and the time to save); it counts as missing from the latter on.
        """
        live = [e for e in self._entries if e.from_ms - self._ahead_ms <= now_ms < e.until_ms]
        self._groups = {
            e.group: Right(e.id, e.gpus_m, kept=True, counted=e.from_ms - self._lead_ms <= now_ms) for e in live
        }
        times = [
            at for e in self._entries for at in (e.from_ms - self._ahead_ms, e.from_ms - self._lead_ms, e.until_ms)
        ]
        self._next_ms = min((at for at in times if at > now_ms), default=NEVER_MS)
        self._counted.clear()
        for right in self._tiers.values():
            right.held_m = 0
        self.none = not (self._tiers or self._groups)

    # -- what is held ------------------------------------------------------------------------------------------------

    def of(self, user: User) -> Held:
        """The rights of a user: its tier's, and of the nearest group above it that has one."""
        if self.none:
            return ()
        tier = self._tiers.get(user.tier)
        found = () if tier is None else (tier,)
        if self._groups:
            for node in user.path[-2::-1]:
                right = self._groups.get(node.name)
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
        return sum(right.left_m for right in self._groups.values() if right not in rights)

    def kept(self, rights: Held) -> list[Right]:
        """The reservations of which somebody with these rights has to leave something free."""
        return [right for right in self._groups.values() if right not in rights and right.left_m]

    def spare(self, sessions: list[Session], rights: Held, view: FairSnapshot) -> list[Session]:
        """Those that others may take from: what is beyond the rights of their users, in the order given.

        Whoever has one of `rights` itself takes nothing from another by them.
        """
        if self.none:
            return sessions
        beyond = self._beyond()
        for session in view.holders.values():
            if view.leaving(session):
                _take(beyond, self.of(session.user), session)
        found = []
        for session in sessions:
            own = [right for right in self.of(session.user) if right not in rights]
            if all(beyond[right] >= session.shape.amount_m for right in own):
                _take(beyond, own, session)
                found.append(session)
        return found

    def may_give(self, sessions: list[Session], rights: Held, view: FairSnapshot) -> bool:
        """Whether all of these sessions, in grace already, are beyond the rights of their users still."""
        if self.none:
            return True
        beyond = self._beyond()
        for session in view.holders.values():
            if view.leaving(session):
                own = self.of(session.user)
                _take(beyond, [r for r in own if r not in rights] if session in sessions else own, session)
        return all(amount_m >= 0 for amount_m in beyond.values())

    def unprotected(self, queue: FairQueue) -> Iterable[User]:
        """Holders out of credit who may be told to give way: not those within a right that nobody in credit shares."""
        if self.none:
            return queue.over
        asking = {right for lane in queue.lanes.values() if lane.in_credit and lane.cells for right in lane.rights}
        full = {right for right, beyond_m in self._beyond().items() if beyond_m <= 0} - asking
        return [user for user in queue.over if full.isdisjoint(self.of(user))]

    def _beyond(self) -> dict[Right, int]:
        """What is held beyond each right, thousandths of a GPU."""
        every = (*self._tiers.values(), *self._groups.values())
        return {right: max(0, right.held_m - right.amount_m) for right in every}

    def counted(self) -> Iterable[Right]:
        """Reservations whose rest is missing where it is not free."""
        return [right for right in self._groups.values() if right.counted]

    def group_right(self, name: str) -> Right | None:
        """The right that a calendar's entry gives now."""
        return next((right for right in self._groups.values() if right.name == name), None)


def _take(beyond: dict[Right, int], rights: Iterable[Right], session: Session) -> None:
    for right in rights:
        beyond[right] -= session.shape.amount_m


def kept_ahead_ms(params: Params) -> int:
    """How long before a reservation begins its GPUs are kept free, ms."""
    ladder = params.ladder
    return max(ladder.warn_ms + ladder.grace_ms, ladder.min_run_ms)


def occupied_m(user: User) -> int:
    """Thousandths of a GPU that a user holds or is nominated for; a throttled session counts with what it asked for."""
    sessions = (*user.held.values(), *user.nominated.values())
    return sum([session.shape.amount_m for session in sessions])
