"""Why a session is where it is, in numbers: what `fairtier why` shows.

What is over is told from the record, what may change from the live state. Every figure is one that the policy itself
looks at, and a change that is suggested has been tried on the view (`policies.instead`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.acceptable_use import PREFIX
from policies.explain import CHANGES
from policies.model import State
from policies.places import places
from scheduler.appeals import appeal_words
from scheduler.why_calendar import tier_ends
from scheduler.why_holding import holding_reasons
from scheduler.why_stored import ended_reasons, last, stored_reason
from scheduler.why_waiting import waiting_reasons
from scheduler.why_words import reason, utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policies.model import Session
    from scheduler.core import Core
    from scheduler.ports import Row

    Entry = Mapping[str, Any]

__all__ = ["positions", "utc", "why"]


def positions(core: Core) -> dict[str, int]:
    """Place of each waiting session, from 1, in the order in which they would start; nominated ones first.

    Held sessions and those about to be refused are left out.
    """
    return {session.id: number for number, session in enumerate(places(core.view), start=1)}


class Positions:
    """`positions` of the latest state of a core, worked out once: that looks at all who wait, and many ask."""

    def __init__(self) -> None:
        self._of: tuple[Core, int, int] | None = None
        self._places: dict[str, int] = {}

    def of(self, core: Core) -> dict[str, int]:
        """As `positions(core)`; not to be changed."""
        state = (core, core.revision, core.now_ms)
        if self._of != state:
            self._places = positions(core)
            self._of = state
        return self._places


def why(
    core: Core,
    row: Row,
    decisions: Sequence[Entry],
    now_ms: int,
    at: Mapping[str, int] | None = None,
    appeals: Sequence[Entry] = (),
) -> dict[str, Any]:
    """Why a session waits, runs as it does, or ended.

    Args:
        core: the live state, only read.
        row: the session's row of the truth.
        decisions: its stored decisions, oldest first, as `scheduler.journal.decision_dict` and operators' acts.
        now_ms: the instant of the question.
        at: `positions(core)` where the caller has it already.
        appeals: rows of its user's appeals, oldest first.

    Returns:
        `session state position eta_s reasons`; each reason has `code rule value threshold unit until change text`.
        `change` is a code of `policies.explain.CHANGES`, or options of `fairtier submit` that would start at once.
    """
    session = core.sessions.get(row["session"]) if row["state"] != State.ENDED else None
    state = row["state"] if session is None else session.state.value
    position: int | None = None
    if session is not None and session.state is State.QUEUED:
        order = positions(core) if at is None else at
        position = order.get(session.id)
        place = None if position is None else (position, len(order))
        reasons = waiting_reasons(core, session, place, now_ms)
    else:
        reasons = _reasons(core, row, session, decisions, now_ms)
    words = appeal_words(appeals)
    if words:
        reasons = [_with_appeal(one, words) if str(one["rule"]).startswith(PREFIX) else one for one in reasons]
    ends = None if session is None else tier_ends(core, session)
    reasons += [] if ends is None else [ends]
    return {"session": row["session"], "state": state, "position": position, "eta_s": None, "reasons": reasons}


def _with_appeal(found: Row, words: str) -> Row:
    return found | {"text": f"{found['text']} {words}"}


def _reasons(core: Core, row: Row, session: Session | None, decisions: Sequence[Entry], now_ms: int) -> list[Row]:
    """Of a session that does not wait in the queue."""
    if session is None:
        return ended_reasons(row, decisions) if row["state"] == State.ENDED else [_unseen(row)]
    if session.state is State.HELD:
        return [_held(session, decisions)]
    return holding_reasons(core, session, decisions, now_ms)


def _held(session: Session, decisions: Sequence[Entry]) -> Row:
    entry = last(decisions, "hold")
    if entry is not None:
        return stored_reason(entry, "Held", CHANGES["unhold"]) | {"change": "unhold"}
    return reason("Held", "admin.hold", f"{session.id} of {session.user.name} is held by an operator.", change="unhold")


def _unseen(row: Row) -> Row:
    """On record, and not (or no longer) in this core: it is a commit ahead or behind."""
    text = f"{row['session']} of {row['user']}: its state is changing just now; ask again."
    return reason("Changing", None, text)
