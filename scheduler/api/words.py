"""Where the API's reasons and sentences come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.explain import sentence as explained
from policies.model import State
from scheduler.why import utc, why
from scheduler.why_stored import ADMIN, decision_of
from scheduler.why_waiting import waiting_reasons

if TYPE_CHECKING:
    from policies.model import Session
    from scheduler.core import Core
    from scheduler.ports import Row

__all__ = ["WaitCodes", "sentence", "why"]


class WaitCodes:
    """What sessions wait for, at one moment.

    What a session waits for follows from who asks and for what, so that one answer serves all that are alike.
    """

    def __init__(self, core: Core | None) -> None:
        self._core = core
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, row: Row) -> str | None:
        """The code of a session's first reason; None = it does not wait, or does no longer."""
        if row["state"] == State.HELD:
            return "Held"
        if self._core is None or row["state"] != State.QUEUED:
            return None
        session = self._core.sessions.get(row["session"])
        return None if session is None or session.state is not State.QUEUED else self._code(self._core, session)

    def _code(self, core: Core, session: Session) -> str:
        alike = (session.user.name, session.shape, session.claim is None, session in core.view.unplaceable)
        if alike not in self._known:
            self._known[alike] = str(waiting_reasons(core, session, None, core.now_ms)[0]["code"])
        return self._known[alike]


def sentence(entry: dict[str, Any]) -> str:
    """A stored decision, or an operator's act, for people; without the instant and the names, which stand beside it."""
    if str(entry.get("rule", "")).startswith(ADMIN):
        return str(entry.get("text") or "")
    try:
        return explained(decision_of(entry), utc).partition(": ")[2]
    except (ValueError, KeyError, TypeError):
        return ""  # of a version with other decisions
