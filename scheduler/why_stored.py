"""Reasons from the record: decisions as they were stored, and how a session ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.explain import sentence
from policies.limits import CODE_OF
from policies.model import WHOLE_M, Action, Allocation, Decision, Ladder, Outcome, Reason
from scheduler.why_words import reason, span, utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.ports import Row

    Entry = Mapping[str, Any]

ADMIN = "admin."
"""Rules of operators' acts begin so; their entries have `by` and `text`."""

CODES = {
    Outcome.COMPLETED: "Completed",
    Outcome.FAILED: "Failed",
    Outcome.EVICTED: "Evicted",
    Outcome.CANCELLED: "Cancelled",
    Outcome.LOST: "HostLost",
    Outcome.REJECTED: "NeverFits",
    Outcome.ABANDONED: "Abandoned",
}
"""Code of the reason for each outcome."""

ENDING_ACTIONS = {
    Outcome.EVICTED: "evict",
    Outcome.CANCELLED: "cancel",
    Outcome.LOST: "lose",
    Outcome.REJECTED: "reject",
}
"""The action of the decision that made a session end so."""

_ACTS = {
    "hold": "held",
    "unhold": "let go to wait again",
    "cancel": "cancelled",
    "evict": "evicted",
    "extend": "extended",
    "appeal": "an appeal was filed",
    "grant": "an appeal was granted",
    "deny": "an appeal was denied",
}


def decision_of(entry: Entry) -> Decision:
    """The decision whose `scheduler.journal.decision_dict` this is; ValueError or KeyError when it is none."""
    gpus = entry.get("gpus")
    granted, ladder = entry.get("granted"), entry.get("ladder")
    return Decision(
        at_ms=entry["at_ms"],
        action=Action(entry["action"]),
        session=entry["session"],
        user=entry["user"],
        reason=Reason(
            entry["rule"],
            entry.get("value"),
            entry.get("threshold"),
            entry.get("unit", ""),
            entry.get("until_ms"),
            entry.get("change", ""),
            tuple(entry.get("numbers", {}).items()),
            entry.get("text", ""),
        ),
        ladder=None if ladder is None else Ladder(ladder),
        allocation=None if gpus is None else _allocation(gpus, WHOLE_M),
        granted_m=None if granted is None else round(granted * WHOLE_M),
        other=entry.get("for"),
        set_aside=tuple(_allocation(kept["gpus"], kept["thousandths"]) for kept in entry.get("set_aside", ())),
    )


def _allocation(gpus: list[tuple[str, list[int]]], fraction_m: int) -> Allocation:
    return Allocation(tuple((host, tuple(numbers)) for host, numbers in gpus), fraction_m, 0)


def told(entry: Entry) -> str:
    """A stored decision, or an operator's act, in words, with times in UTC."""
    if not entry["rule"].startswith(ADMIN):
        return sentence(decision_of(entry), utc)
    act = _ACTS.get(entry["action"], entry["action"])
    by = f" by {entry['by']}" if entry.get("by") else ""
    why = f": {entry['text']}" if entry.get("text") else "."
    return f"{utc(entry['at_ms'])}  {entry['session']} of {entry['user']}: {act}{by}{why}"


def stored_reason(entry: Entry, code: str, more: str = "") -> Row:
    """A stored decision as a reason, with the version of the policy that made it; `more` is said after it."""
    text = told(entry)
    found = reason(
        code,
        entry["rule"],
        f"{text if text.endswith(('.', '!', '?')) else text + '.'} {more}" if more else text,
        value=entry.get("value"),
        threshold=entry.get("threshold"),
        unit=entry.get("unit"),
        until_ms=entry.get("until_ms"),
    )
    by = {"policy_version": entry["policy_version"]} if "policy_version" in entry else {}
    return found | {"change": entry.get("change")} | by


def last(decisions: Sequence[Entry], *actions: str) -> Entry | None:
    """The latest decision of one of these actions."""
    return next((entry for entry in reversed(decisions) if entry["action"] in actions), None)


def ended_reasons(row: Row, decisions: Sequence[Entry]) -> list[Row]:
    """How a session ended and by whose decision."""
    outcome = Outcome(row["outcome"])
    code, ending = CODES[outcome], ENDING_ACTIONS.get(outcome)
    entry = None if ending is None else last(decisions, ending)
    if entry is not None:
        return [stored_reason(entry, CODE_OF.get(entry["rule"], code), _end(row))]
    exit_code = row.get("exit_code") if outcome is Outcome.FAILED else None
    text = f"{row['session']} of {row['user']}: {outcome}. {_end(row)}"
    if outcome is Outcome.FAILED:
        text += f" Its output: fairtier session {row['session']} --log"
    known = {} if exit_code is None else {"value": exit_code, "threshold": 0, "unit": "exit_code"}
    return [reason(code, None, text, **known)]


def _end(row: Row) -> str:
    """'It ended at ..., after 2 h 5 min, with exit code 1 (error).'"""
    at_ms, started_ms = row.get("ended_ms"), row.get("started_ms")
    parts = ["It ended" if at_ms is None else f"It ended at {utc(at_ms)}"]
    if started_ms is None:
        parts.append("without having started")
    elif at_ms is not None:
        parts.append(f"after {span(at_ms - started_ms)}")
    if row.get("exit_code") is not None:
        parts.append(f"with exit code {row['exit_code']}")
    error = f" ({row['error']})" if row.get("error") else ""
    return f"{', '.join(parts)}{error}."
