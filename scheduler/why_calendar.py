"""What the calendar and rights mean for one session: GPUs kept for others, hosts closed, its own right to go first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policies.model import WHOLE_M
from policies.order import FairQueue
from scheduler.why_words import count, reason, utc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.calendar import Entry
    from policies.model import Session, Shape, User
    from policies.rights import Right
    from scheduler.core import Core
    from scheduler.ports import Row


class Words(NamedTuple):
    """Something in words, and until when it holds."""

    text: str
    until_ms: int


class Kept(NamedTuple):
    """GPUs that somebody has to leave free for others.

    Attributes:
        amount_m: thousandths of a GPU, of those that are free.
        words: '2 of 8 free GPUs are kept for course-x (group x) until ...: TEXT'.
    """

    amount_m: int
    words: Words


def kept_from(core: Core, user: User) -> Kept | None:
    """What is reserved for others and free; None = nothing."""
    queue, free_m = core.queue, core.cluster.free_m
    if not isinstance(queue, FairQueue):
        return None
    parts: list[Words] = []
    for right in queue.rights.kept(queue.rights.of(user)):
        entry = core.view.calendar.entries.get(right.name)
        kept_m = min(right.left_m, free_m)
        if entry is not None and kept_m:
            parts.append(_kept(entry, kept_m, free_m))
    if not parts:
        return None
    kept_m = min(queue.rights.kept_m(queue.rights.of(user)), free_m)
    return Kept(kept_m, Words("; ".join(part.text for part in parts), min(part.until_ms for part in parts)))


def _kept(entry: Entry, kept_m: int, free_m: int) -> Words:
    verb = "is" if kept_m == WHOLE_M else "are"
    text = (
        f"{kept_m / WHOLE_M:g} of {count(free_m / WHOLE_M, 'free GPU')} {verb} kept for {entry.id} "
        f"(group {entry.group}) until {utc(entry.until_ms)}{said(entry)}"
    )
    return Words(text, entry.until_ms)


def said(entry: Entry) -> str:
    """': Lecture', or nothing; without the stop that follows anyway."""
    text = entry.text.rstrip(". ")
    return f": {text}" if text else ""


# -- its own right ---------------------------------------------------------------------------------------------------


def goes_first(core: Core, user: User, shape: Shape) -> bool:
    """Whether a request starts by right, before those who are in credit."""
    queue = core.queue
    return isinstance(queue, FairQueue) and queue.rights.first(queue.rights.of(user), shape.amount_m) is not None


def right_words(core: Core, user: User, shape: Shape) -> str:
    """' It goes first: ...', or why it does not although its user has a right; nothing where it has none."""
    queue = core.queue
    owned = queue.rights.of(user) if isinstance(queue, FairQueue) else ()
    if not owned or not isinstance(queue, FairQueue):
        return ""
    first = queue.rights.first(owned, shape.amount_m)
    words = _right(core, user, owned[0] if first is None else first)
    return f" It does not go first: {words}." if first is None else f" It goes first: {words}."


def _right(core: Core, user: User, right: Right) -> str:
    """'course-x keeps 8 GPUs for group x until ..., of which 3 are in use'."""
    entry, amount = core.view.calendar.entries.get(right.name), count(right.amount_m / WHOLE_M, "GPU")
    used = f"of which {right.held_m / WHOLE_M:g} {'is' if right.held_m == WHOLE_M else 'are'} in use"
    reserved = isinstance(core.queue, FairQueue) and right in core.queue.rights.groups.values()
    if reserved and entry is not None:
        return f"{entry.id} keeps {amount} for group {entry.group} until {utc(entry.until_ms)}, {used}{said(entry)}"
    return f"tier {user.tier} is guaranteed {amount}, {used}"


# -- maintenance -----------------------------------------------------------------------------------------------------


def closed_until(core: Core, hosts: Iterable[str]) -> Words | None:
    """'gpu-01 and gpu-02 get nothing new until ..., for maintenance: TEXT'; None where no window closes any."""
    found: dict[Entry, list[str]] = {}
    for host in hosts:
        entry = core.view.calendar.drained(host, core.now_ms) if host in core.view.maintained_hosts else None
        if entry is not None:
            found.setdefault(entry, []).append(host)
    if not found:
        return None
    parts = [
        f"{few(names)} {'gets' if len(names) == 1 else 'get'} nothing new until {utc(entry.until_ms)}, for maintenance "
        f"{entry.id}{said(entry)}"
        for entry, names in found.items()
    ]
    return Words("; ".join(parts), min(entry.until_ms for entry in found))


def few(names: list[str]) -> str:
    """'a, b, c, d and 3 more'."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def tier_ends(core: Core, session: Session) -> Row | None:
    """Until when its user is of its tier; None where that does not end by itself."""
    user, ends = session.user, core.memberships.of.get(session.user.name)
    if ends is None:
        return None
    text = f"{user.name} is of tier {user.tier} until {utc(ends.until_ms)}, and of tier {ends.then_tier} from then on."
    return reason("TierEnds", None, text, until_ms=ends.until_ms)


def maintenance_ahead(core: Core, session: Session) -> Row | None:
    """When a session ends because its host is worked on; None = nothing is agreed that would end it."""
    hosts = session.allocation.hosts if session.allocation is not None else ()
    for entry in core.view.calendar.maintenance():
        its = [host for host in hosts if entry.closes(host)]
        if its and entry.from_ms > core.now_ms:
            text = (
                f"{session.id} ends at {utc(entry.from_ms)}: {few(its)} {'is' if len(its) == 1 else 'are'} worked on "
                f"from then until {utc(entry.until_ms)} ({entry.id}{said(entry)})."
            )
            return reason("Maintenance", "maintenance.end", text, until_ms=entry.from_ms, change="save-maintenance")
    return None
