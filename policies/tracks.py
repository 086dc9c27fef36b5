"""The other tracks: sessions that outlive their tier's lifetime, and sessions that hold GPUs without using them.

Acceptable use is a third one, in `policies.acceptable_use_track`.

Beside the load ladder and independent of credit. Each session is looked at when something can be due for it, never by
polling: when it starts, when its load becomes or stops being nothing, when it is extended, and as times go by.
"""

from __future__ import annotations

from heapq import heapify, heappop
from operator import attrgetter
from typing import TYPE_CHECKING

from policies.acceptable_use_track import AcceptableUse
from policies.model import Action, Decision, Reason, Session, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.order import FairSnapshot
    from policies.params import Params

TOLD_AHEAD_MS = (1_800_000, 600_000)
"""Before its lifetime ends a session is told twice, 30 and 10 min ahead."""

SPARE_LOOKS = 1024
"""Looks that may lie about beside four for each session that holds GPUs."""

_in_order = attrgetter("seq")
"""Sessions of one instant in order of arrival, however they came to be looked at: a restored core has another past."""


class Tracks:
    """Lifetime and idle, with their parameters."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.idle = params.idle
        lifetimes = any(tier.lifetime_ms is not None for tier in params.tiers.values())
        self.use = AcceptableUse(params)
        self.on = self.use.on or lifetimes or self.idle.release_ms is not None or self.idle.warn_ms is not None

    def follow(self, view: FairSnapshot) -> Iterator[Decision]:
        """Look at every session for which something is due."""
        for session in sorted(_due(view), key=_in_order):
            yield from self._lifetime(view, session)
            self._note_idle(view, session)
            if session.uses is not None and self.use.on:
                yield from self.use.follow(view, session)
        if self.idle.when == "always":
            yield from self.end_idle(view)

    # -- lifetime ----------------------------------------------------------------------------------------------------

    def ends_ms(self, session: Session) -> int | None:
        """When the lifetime of a session that runs is over; None = never."""
        tier = self.params.tier(session.user.tier)
        if tier.lifetime_ms is None:
            return None
        if tier.longest_ms is None or session.extended_ms < 0:
            return session.start_ms + tier.lifetime_ms
        return min(session.extended_ms + tier.lifetime_ms, session.start_ms + tier.longest_ms)

    def _lifetime(self, view: FairSnapshot, session: Session) -> Iterator[Decision]:
        ends, now = self.ends_ms(session), view.clock.now_ms
        if ends is None:
            return
        hours = (now - session.start_ms) / 3_600_000
        limit = (ends - session.start_ms) / 3_600_000
        if ends <= now:
            reason = Reason("lifetime.end", hours, limit, "h", change="resubmit-lifetime")
            yield Decision(now, Action.EVICT, session.id, session.user.name, reason)
            return
        ahead = [ends - ms for ms in TOLD_AHEAD_MS]
        due = [at for at in ahead if at <= now]
        tier = self.params.tier(session.user.tier)
        # A lifetime shorter than 30 or 10 min is told of where it begins, not before.
        begun = max(session.start_ms, ends - (tier.lifetime_ms or 0))
        if due and session.told_ms < max(due[-1], begun):
            longest = tier.longest_ms
            change = "extend" if longest is not None and ends < session.start_ms + longest else "save-now"
            reason = Reason("lifetime.warn", hours, limit, "h", ends, change)
            yield Decision(now, Action.NOTICE, session.id, session.user.name, reason)
        _look_again(view, session, next((at for at in (*ahead, ends) if at > now), ends))

    # -- idle --------------------------------------------------------------------------------------------------------

    def _idle_from_ms(self, session: Session) -> int | None:
        """Since when its GPUs do nothing, an extension counting as activity; None = they do something, or unknown."""
        return None if session.idle_since_ms < 0 else max(session.idle_since_ms, session.extended_ms)

    def _first_ms(self) -> int | None:
        """How long without load the first step comes after."""
        known = [ms for ms in (self.idle.warn_ms, self.idle.release_ms) if ms is not None]
        return min(known, default=None)

    def _note_idle(self, view: FairSnapshot, session: Session) -> None:
        """Whether it counts as idle by now, or when it will."""
        since, first = self._idle_from_ms(session), self._first_ms()
        if since is None or first is None:
            view.idlers.pop(session.id, None)
        elif since + first <= view.clock.now_ms:
            view.idlers[session.id] = session
        else:
            view.idlers.pop(session.id, None)
            _look_again(view, session, since + first)

    def end_idle(self, view: FairSnapshot) -> Iterator[Decision]:
        """Tell the idle, and end those who were told in time; while somebody needs the GPUs, or always."""
        for session in sorted(view.idlers.values(), key=_in_order):
            since = self._idle_from_ms(session)
            if since is None or not runs(session):
                del view.idlers[session.id]
            elif view.fresh(session):
                yield from self._end_one(view, session, since)

    def _end_one(self, view: FairSnapshot, session: Session, since: int) -> Iterator[Decision]:
        now, warn, release = view.clock.now_ms, self.idle.warn_ms, self.idle.release_ms
        told = session.idle_told_ms > since
        # Whoever is told late still has the time between the two.
        ends = None if release is None else since + release
        if ends is not None and warn is not None and release is not None:
            ends = max(ends, (session.idle_told_ms if told else now) + max(1, release - warn))
        minutes = (now - since) / 60_000
        if ends is not None and ends <= now and (told or warn is None):
            reason = Reason("idle.end", minutes, (release or 0) / 60_000, "min", change="resubmit-idle")
            yield Decision(now, Action.EVICT, session.id, session.user.name, reason)
            return
        if warn is not None and not told:
            reason = Reason("idle.warn", minutes, warn / 60_000, "min", ends, "use-or-extend")
            yield Decision(now, Action.NOTICE, session.id, session.user.name, reason)
        if ends is not None and ends > now:
            view.wake(ends)


def runs(session: Session) -> bool:
    """It holds GPUs and nobody is ending it."""
    return session.state is State.RUNNING or session.state is State.STARTING


def _due(view: FairSnapshot) -> dict[Session, None]:
    """The sessions that something is due for; of the looks at one session the first to come says when the next are."""
    looks, now = view.looks, view.clock.now_ms
    due: dict[Session, None] = {}
    while looks and looks[0][0] <= now:
        session = heappop(looks)[-1]
        if runs(session):
            due[session] = None
    for session in view.overdue.values():
        if runs(session):
            due[session] = None
    view.overdue.clear()
    if len(looks) > 4 * len(view.holders) + SPARE_LOOKS:
        firsts: dict[str, tuple[int, int, Session]] = {}
        for look in sorted(looks):
            if runs(look[-1]):
                firsts.setdefault(look[-1].id, look)
        looks[:] = firsts.values()
        heapify(looks)
    return due


def _look_again(view: FairSnapshot, session: Session, at_ms: int) -> None:
    view.look(session, at_ms)
    view.wake(at_ms)
