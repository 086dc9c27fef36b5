"""Background work as the service sees it: what may be asked for, whom to tell, a look a second at what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.errors import BadInput
from scheduler.notify import Flood, notices
from scheduler.ports import BusDown
from scheduler.task_rows import look
from scheduler.tasks import check_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policies.model import Decision
    from scheduler.notify_config import NotifyConfig
    from scheduler.ports import Row
    from scheduler.task_rows import Step, Tasks


class Background:
    """`scheduler.service.Background`.

    Args:
        tasks: what carries the work.
        config: where notices go; None = nowhere.
    """

    def __init__(self, tasks: Tasks, config: NotifyConfig | None) -> None:
        self._tasks = tasks
        self._config = config
        self._flood = Flood(config.per_user_hour) if config is not None else None

    def check(self, kind: str, arguments: dict[str, Any]) -> None:
        """`BadInput` for what is not allowed. Notices are made from decisions, never asked for."""
        if kind == "notify":
            raise BadInput("a notice follows from a decision and cannot be asked for")
        check_arguments(kind, arguments)

    def notices(
        self, decisions: Iterable[Decision], users: dict[str, Row], hosts: dict[str, str]
    ) -> list[tuple[str, dict[str, Any]]]:
        """(kind, arguments) of the tasks that tell people of these decisions; `hosts`: by session."""
        return notices(decisions, users, self._config, self._flood, hosts)

    def attend(self, rows: Sequence[Row], now_ms: int) -> list[tuple[Row, dict[str, Any]]]:
        """Hand over what is due and on record, look for results; (row, changes) for the rows that change.

        Should the changes not come on record, the same is done again, and harmless.
        """
        if self._flood is not None:
            self._flood.forget(now_ms)
        steps = look(rows, self._tasks, now_ms)
        return [(step.row, changes) for step in steps if (changes := self._hand_over(step)) is not None]

    def _hand_over(self, step: Step) -> dict[str, Any] | None:
        """The row's changes; None = the transport is away, nothing has changed."""
        try:
            if step.call is not None:
                self._tasks.enqueue(step.call)
        except BusDown:
            return None
        except BadInput as error:
            return {"state": "failed", "error": error.message}
        return step.changes
