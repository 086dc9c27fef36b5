"""What really happened in a demo, from what its sessions wrote down, against what FairTier believed.

A session's `truth.csv` holds (milliseconds since 1970, nanoseconds for which it ran or was ready to run). On an
emulated GPU that is what it computed; what it was granted, and when, is in the decisions.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

HOUR_MS = 3_600_000
SETTLE_MS = 400
"""After a change of grant: one period of the duty cycle and two notes."""


class Note(NamedTuple):
    """At an instant, nanoseconds computed since the start."""

    at_ms: int
    ns: int


class Stretch(NamedTuple):
    """A time with one grant: from, to, thousandths of a GPU."""

    from_ms: int
    to_ms: int
    granted_m: int


def read_notes(path: Path) -> list[Note]:
    """A session's notes, oldest first; a line that was cut off by its end is left out."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    notes = []
    for line in lines:
        at, _, ns = line.partition(",")
        if at.isdigit() and ns.isdigit():
            notes.append(Note(int(at), int(ns)))
    return notes


def stretches(session: dict[str, Any], decisions: list[dict[str, Any]], now_ms: int) -> list[Stretch]:
    """The session's grants in order, from its start to its end (or now).

    Args:
        session: `session`, `started_ms`, `ended_ms` (None = not yet), `fraction_m`.
        decisions: all of the demo, oldest first, as in the journal.
    """
    if session["started_ms"] is None:
        return []
    end_ms = session["ended_ms"] if session["ended_ms"] is not None else now_ms
    found, since_ms, granted_m = [], session["started_ms"], session["fraction_m"]
    for decision in decisions:
        if decision["session"] == session["session"] and "granted" in decision:
            found.append(Stretch(since_ms, decision["at_ms"], granted_m))
            since_ms, granted_m = decision["at_ms"], round(decision["granted"] * 1000)
    found.append(Stretch(since_ms, end_ms, granted_m))
    return [stretch for stretch in found if stretch.to_ms > stretch.from_ms]


def computed_ms(notes: list[Note], from_ms: int, to_ms: int) -> float:
    """Milliseconds computed between two instants; between two notes evenly."""
    return (_at(notes, to_ms) - _at(notes, from_ms)) / 1e6


def _at(notes: list[Note], at_ms: int) -> float:
    if not notes:
        return 0.0
    place = bisect_left(notes, (at_ms, 0))
    if place == 0:
        return 0.0
    if place == len(notes):
        return float(notes[-1].ns)
    before, after = notes[place - 1], notes[place]
    return before.ns + (after.ns - before.ns) * (at_ms - before.at_ms) / max(1, after.at_ms - before.at_ms)


def measured_share(notes: list[Note], stretch: Stretch) -> float | None:
    """Part of a GPU that was computed during a stretch, its first moments left out; None = too short to say."""
    inside = [note for note in notes if stretch.from_ms + SETTLE_MS <= note.at_ms <= stretch.to_ms]
    if len(inside) < 2 or inside[-1].at_ms - inside[0].at_ms < 1_000:
        return None
    return (inside[-1].ns - inside[0].ns) / 1e6 / (inside[-1].at_ms - inside[0].at_ms)


def usage_gpu_s(
    notes: list[Note], held: list[Stretch], idle_charge: float, half_life_h: float, now_ms: int, step_ms: int = 250
) -> float:
    """Decayed GPU-seconds that a session should have been charged by now.

    Each step: its grant for the time (`idle_charge` of it for holding, the rest for computing, at most all of it),
    decayed since. Source: the charge rate and the decay of docs/policies.md, integrated in steps.
    """
    total = 0.0
    for stretch in held:
        for at_ms in range(stretch.from_ms, min(stretch.to_ms, now_ms), step_ms):
            to_ms = min(at_ms + step_ms, stretch.to_ms, now_ms)
            granted = (to_ms - at_ms) * stretch.granted_m / 1000
            busy = min(granted, computed_ms(notes, at_ms, to_ms))
            age_h = (now_ms - (at_ms + to_ms) / 2) / HOUR_MS
            total += (idle_charge * granted + (1 - idle_charge) * busy) * 2 ** (-age_h / half_life_h)
    return total / 1000
