"""A progress line with rate and time left, on a terminal only, for anything that takes longer than two seconds."""

from __future__ import annotations

import sys
import time  # noqa: TID251 - a progress bar needs a clock
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from simulations.workloads.workload import Workload

T = TypeVar("T")
QUIET_S = 2.0


class Progress:
    """Counts towards `total` (None: towards a part of the virtual time, or without an end)."""

    def __init__(self, unit: str, total: int | None) -> None:
        self._unit = unit
        self._total = total
        self._began = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        """Nothing is shown yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, now_ms: int, workload: Workload) -> None:
        """`done` items are done and virtual time stands at `now_ms`."""
        if self._total is not None:
            self._update(done, self._total, done)
        else:
            span = max(1, workload.end_ms - workload.start_ms)
            self._update(min(span, now_ms - workload.start_ms), span, done)

    def tick(self, done: int) -> None:
        """`done` items are done, of nobody knows how many."""
        if done % 1024 == 0:
            self._update(done, None, done)

    def counting(self, items: Iterable[T], when: Callable[[T], int], workload: Workload) -> Iterator[T]:
        """Pass items through and show how many there were."""
        for done, item in enumerate(items, start=1):
            if done % 1024 == 0:
                self.show(done, when(item), workload)
            yield item

    def _update(self, done: int, total: int | None, count: int) -> None:
        elapsed = time.monotonic() - self._began
        if elapsed < QUIET_S or not sys.stderr.isatty():
            return
        if self._bar is None or self._task is None:
            from rich.console import Console  # noqa: PLC0415 - only when something is shown
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
            from rich.progress import Progress as RichProgress  # noqa: PLC0415

            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %  {task.description}"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(
            self._task, completed=done, description=f"{count:,} {self._unit}, {count / elapsed:,.0f}/s, left"
        )
