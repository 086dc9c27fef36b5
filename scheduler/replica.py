"""A core that follows the journal: how the scheduler recovers, how the API reads, how a recorded instance is replayed.

It holds what the leader's core held after the last commit, since both applied the same lines. Its decisions are
compared with the recorded ones, so a replica that departs from the leader says so instead of showing nonsense.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scheduler.core import Core
from scheduler.errors import FairTierError
from scheduler.journal import begin, cycle_line, read_event

if TYPE_CHECKING:
    from scheduler.ports import Reader


class Diverged(FairTierError):
    """The journal's decisions are not what this program decides. Exit code 1."""


class Replica:
    """See the module's docstring.

    Args:
        reader: of the truth. Not thread-safe: callers take turns.

    Attributes:
        seq: number of the last line taken in; -1 = none.
        followed: lines since the checkpoint that it began with.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._core: Core | None = None
        self.seq = -1
        self.followed = 0

    def catch_up(self) -> Core | None:
        """The core at the latest commit; None while nothing was ever committed. For reading only.

        Raises:
            Diverged: a recorded cycle decided something else; `StoreDown` when the truth cannot be read.
        """
        past = self._reader.past(self.seq)
        if past.head is not None:
            self._core, self.seq, self.followed = begin(json.loads(past.head), None), past.seq, 0
        for seq, line in past.lines:
            self._follow(seq, line)
        return self._core

    def _follow(self, seq: int, line: str) -> None:
        entry = json.loads(line)
        if "journal" in entry:
            self._core = begin(entry, None)
        elif self._core is None:
            raise Diverged(f"journal line {seq} comes before any checkpoint", "restore a backup: fairtier restore FILE")
        elif "event" in entry:
            self._core.apply(read_event(entry))
        else:
            now_ms = entry["cycle"]
            decided = cycle_line(self._core.cycle(now_ms), now_ms)
            if decided != line:
                self._core, self.seq = None, -1
                raise Diverged(
                    f"journal line {seq}: recorded {line[:500]} but this program decides {decided[:500]}",
                    "the journal is of another version, or damaged; fairtier simulate replay shows where",
                )
        self.seq = seq
        self.followed += 1
