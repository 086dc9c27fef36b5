"""The right to write: one holder at a time, for a while, and what those are told who have not got it."""

from __future__ import annotations

from scheduler.errors import Refused
from scheduler.ports import Fenced

LEASE_MS = 15_000
"""How long a leader that says nothing keeps others out."""


def led(holder: str, left_ms: int, asking: str) -> Refused:
    """The refusal for who asks while another one's lease lasts."""
    return Refused(
        f"{holder} leads here for another {left_ms / 1000:.1f} s; {asking} may not yet",
        "one scheduler writes at a time: stop the other one, or wait until its lease has lapsed",
    )


def fenced() -> Fenced:
    """What a leader is told that has been replaced, or that never was one."""
    return Fenced("another scheduler leads here: nothing of this one was written", "this one must stop")
