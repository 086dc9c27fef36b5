"""Background work that is carried nowhere: for tests and simulations of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.ports import BusDown

if TYPE_CHECKING:
    from collections.abc import Collection

    from scheduler.task_rows import Call


class MemoryTasks:
    """`task_rows.Tasks` in memory.

    Attributes:
        calls: every call that was taken, in order.
        waiting: names of the tasks that wait or are being run; clear it to lose them.
        down: nobody answers.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.waiting: set[str] = set()
        self.down = False
        self._outcomes: dict[tuple[str, int], dict[str, Any]] = {}

    def enqueue(self, call: Call) -> None:
        """See `Tasks`."""
        self._reach()
        if call.task not in self.waiting:
            self.calls.append(call)
            self.waiting.add(call.task)

    def present(self, tasks: Collection[str]) -> set[str]:
        """See `Tasks`."""
        self._reach()
        return self.waiting & set(tasks)

    def outcome(self, task: str, made_ms: int) -> dict[str, Any] | None:
        """See `Tasks`."""
        return self._outcomes.get((task, made_ms))

    def end(self, call: Call, outcome: dict[str, Any]) -> None:
        """A task has been run: `outcome` without its attempt."""
        self.waiting.discard(call.task)
        self._outcomes[call.task, call.made_ms] = {**outcome, "attempt": call.attempt}

    def _reach(self) -> None:
        if self.down:
            raise BusDown("the transport does not answer: it is down")
