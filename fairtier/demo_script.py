"""Who asks for what, and when, in a demo: six users on two hosts of two GPUs.

A trainer takes two whole GPUs and another two halves of a third, while nobody else is there: that is allowed. Then the
researchers come, and the rules have to make room.
"""

from __future__ import annotations

from typing import NamedTuple

HOSTS, GPUS = 2, 2
SHORTEST_S, DEFAULT_S, LONGEST_S = 40.0, 50.0, 600.0
USERS = ("mara", "theo", "ida", "ken", "lin", "noor")


class Ask(NamedTuple):
    """One request: after so many seconds of the demo, by whom, how much, at which load, for how long."""

    at_s: float
    user: str
    fraction: float
    load: float
    run_s: float


SCRIPT: tuple[Ask, ...] = (
    # Nobody else is there: the trainers may have what is free.
    Ask(0.0, "mara", 1.0, 1.0, 120),
    Ask(0.2, "mara", 1.0, 1.0, 120),
    Ask(0.4, "theo", 0.5, 1.0, 120),
    Ask(0.6, "theo", 0.5, 1.0, 120),
    Ask(1.0, "ida", 1.0, 0.3, 6),
    Ask(1.5, "ken", 1.0, 0.2, 4),
    Ask(8.0, "noor", 1.0, 0.3, 28),
    # The last GPU is taken. Whole GPUs come from mara, who has used most; parts of one from theo.
    Ask(13.0, "ida", 1.0, 0.3, 9),
    Ask(14.0, "ken", 1.0, 0.3, 9),
    Ask(15.0, "lin", 0.25, 0.3, 8),
    Ask(15.5, "lin", 0.25, 0.3, 8),
    Ask(18.0, "ida", 0.25, 0.3, 6),
    Ask(21.0, "ken", 0.25, 0.2, 6),
    Ask(24.0, "lin", 0.25, 0.3, 6),
    Ask(30.0, "lin", 1.0, 0.3, 6),
    Ask(34.0, "noor", 0.25, 0.3, 5),
)
