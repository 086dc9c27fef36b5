"""Where the API's reasons come from; imported when first asked, since a start does not need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.model import State

if TYPE_CHECKING:
    from scheduler.core import Core
    from scheduler.ports import Row


def positions(core: Core) -> dict[str, int]:
    """Place of each waiting session, from 1."""
    from scheduler import why as reasons  # noqa: PLC0415

    return reasons.positions(core)


def why(core: Core, row: Row, decisions: list[dict[str, Any]], now_ms: int) -> dict[str, Any]:
    """The JSON of `why`."""
    from scheduler import why as reasons  # noqa: PLC0415

    return reasons.why(core, row, decisions, now_ms)


def waits_for(core: Core | None, row: Row) -> str | None:
    """Code of what a session waits for; None = it does not wait."""
    if row["state"] == State.HELD:
        return "Held"
    session = core.sessions.get(row["session"]) if core is not None and row["state"] == State.QUEUED else None
    if core is None or session is None or session.state is not State.QUEUED:
        return None
    if session in core.view.unplaceable:
        return "NeverFits"
    return "Position" if core.cluster.fits(session.shape) else "NoFreeGpu"


def sentence(decision: dict[str, Any]) -> str:
    """A stored decision for people."""
    return str(decision.get("text") or "")
