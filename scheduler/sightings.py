"""Rules of acceptable use as hosts see them: what such events change in a session and in a user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import Session, Sighting, State, User
from policies.param_keys import IDENTIFIER
from scheduler import events as ev
from scheduler.errors import CoreError

if TYPE_CHECKING:
    from collections.abc import Collection

MOST_RULES = 200
"""Of one session, or in one user's allowances: as many as a policy may have."""


def seen(session: Session, event: ev.RuleMatched | ev.RuleEnded) -> bool:
    """Note that a rule is seen, or is not any more; whether that is news. A rule of another policy is kept quietly."""
    if session.allocation is None:
        raise CoreError(f"session {session.id} is {session.state}: it runs nothing that a rule could see")
    _check(event.rule, session.uses or ())
    if session.state is State.STOPPING:
        return False
    live = isinstance(event, ev.RuleMatched)
    sighting = None if session.uses is None else session.uses.get(event.rule)
    if sighting is None:
        if not live:
            return False
        session.uses = {**(session.uses or {}), event.rule: Sighting(event.at_ms)}
        return True
    if sighting.live is live:
        return False
    sighting.live = live
    return True


def allow(user: User, event: ev.RuleAllowed) -> None:
    """A rule, or every rule, only observes the user until then; allowances that are over are forgotten."""
    if event.rule:
        _check(event.rule, user.allowances or ())
    kept = {rule: until for rule, until in (user.allowances or {}).items() if until > event.at_ms}
    kept.pop(event.rule, None)
    if event.until_ms > event.at_ms:
        kept[event.rule] = event.until_ms
    user.allowances = kept or None


def _check(rule: str, known: Collection[str]) -> None:
    if not IDENTIFIER.fullmatch(rule):
        raise CoreError(f"{rule[:100]!r} is no name of a rule: it must be of the form {IDENTIFIER.pattern}")
    if rule not in known and len(known) >= MOST_RULES:
        raise CoreError(f"rule {rule}: {MOST_RULES} rules are noted already, and no more are kept")
