"""A progress line with rate and time left, on a terminal only, for anything that takes longer than two seconds."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from simulations.workloads.workload import Workload

T = TypeVar("T")
QUIET_S = 2.0
"""Shorter work shows nothing."""
EVERY_S = 0.25
_SAMPLES = 40
_WIPE = "\r\x1b[K"


class Progress:
    """One line on standard error that is gone at the end.

    Args:
        unit: what is counted.
        total: how many there will be. None: the end is known from virtual time, or not at all.
        timed: the workload's `end_ms` is known before it is read to the end.
        clock: monotonic seconds.
    """

    def __init__(
        self, unit: str, total: int | None, *, timed: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unit, self._total, self._timed, self._clock = unit, total, timed, clock
        self._began = self._shown = clock()
        self._seen: deque[tuple[float, float]] = deque([(self._began, 0.0)], maxlen=_SAMPLES)
        self._visible = False

    def __enter__(self) -> Progress:
        """Nothing is shown yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Take the line away."""
        if self._visible:
            self._visible = False
            sys.stderr.write(_WIPE)
            sys.stderr.flush()

    def show(self, done: int, now_ms: int, workload: Workload) -> None:
        """`done` items are done and virtual time stands at `now_ms`."""
        if self._total is not None:
            self._update(done, done / max(1, self._total))
        elif self._timed:
            self._update(done, (now_ms - workload.start_ms) / max(1, workload.end_ms - workload.start_ms))
        else:
            self._update(done, None)

    def tick(self, done: int) -> None:
        """`done` items are done, of nobody knows how many."""
        if done % 1024 == 0:
            self._update(done, None)

    def counting(self, items: Iterable[T], when: Callable[[T], int], workload: Workload) -> Iterator[T]:
        """Pass items through and show how many there were."""
        for done, item in enumerate(items, start=1):
            if done % 1024 == 0:
                self.show(done, when(item), workload)
            yield item

    def _update(self, done: int, part: float | None) -> None:
        now = self._clock()
        if now - self._began < QUIET_S or now - self._shown < EVERY_S or not sys.stderr.isatty():
            return
        self._shown = now
        text = f"{done:,} {self._unit}, {done / (now - self._began):,.0f}/s"
        if part is not None:
            part = min(1.0, part)
            text = f"{100 * part:3.0f} %  {text}{self._left(now, part)}"
        self._visible = True
        sys.stderr.write(_WIPE + text[: _columns() - 1])
        sys.stderr.flush()

    def _left(self, now: float, part: float) -> str:
        """The time left at the pace of the last ten seconds."""
        since, then = self._seen[0]
        self._seen.append((now, part))
        if part >= 1:
            return ", the last ones end"
        return f", {duration_text((now - since) * (1 - part) / (part - then))} left" if part > then else ""


def _columns() -> int:
    """Width of the terminal that shows the line, which need not be that of standard output."""
    columns = shutil.get_terminal_size().columns
    try:
        shown = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        shown = 0
    return min(columns, shown) if shown else columns


def duration_text(seconds: float) -> str:
    """A duration for people, three digits or so: `0 s`, `13.9 s`, `32.7 min`, `13.5 h`, `12 days`."""
    for limit, unit, name in ((99.95, 1, "s"), (5997, 60, "min"), (359_820, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / unit, 1):g} {name}"
    return f"{seconds / 86400:,.0f} days"
