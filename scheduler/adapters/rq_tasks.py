"""Background work carried by RQ: the service's side.

RQ carries names and arguments to the workers and nothing back: no result, no callback, no registry is read. What lies
in Redis may be wiped at any moment; `scheduler.task_rows` decides what is handed over again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from rq import Queue

from scheduler.adapters import task_files
from scheduler.adapters.strict_json import LIMIT, StrictJSON
from scheduler.errors import BadInput
from scheduler.ports import BusDown
from scheduler.task_rows import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from scheduler.task_rows import Call

QUEUE = "ft-tasks"
"""The only one: a worker with one queue takes its jobs by BLMOVE, with several it may lose them."""

_DOWN = (redis.ConnectionError, redis.TimeoutError, OSError)


class RqTasks:
    """`task_rows.Tasks` on a Redis-compatible server and a state directory.

    Args:
        url: of the server, e.g. `unix:///run/fairtier/redis.sock`.
        state: the directory under which tasks leave their files, shared with the workers.
    """

    def __init__(self, url: str, state: Path) -> None:
        self._redis: Any = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=10)
        self._state = state

    def enqueue(self, call: Call) -> None:
        """See `Tasks`; the name of the task is the id of the job.

        Raises:
            BadInput: no such kind, a name that can be no task's, or arguments of more than `strict_json.LIMIT` bytes.
            BusDown: the server does not answer; nothing is lost, the task is handed over again later.
        """
        if call.kind not in KINDS or not task_files.is_task(call.task):
            raise BadInput(f"no background work {call.kind!r} named {call.task!r}", f"the kinds: {', '.join(KINDS)}")
        size = len(StrictJSON.dumps([call.kind, None, [], _kwargs(call)]))
        if size > LIMIT:
            raise BadInput(f"{size} bytes of arguments for task {call.task}: at most {LIMIT} are carried")
        self._reach(lambda: self._push(call))

    def _push(self, call: Call) -> None:
        queue = Queue(QUEUE, connection=self._redis, serializer=StrictJSON)
        if self._redis.lpos(queue.key, call.task) is None:
            queue.enqueue_call(
                call.kind,
                kwargs=_kwargs(call),
                timeout=KINDS[call.kind].timeout_s,
                result_ttl=0,
                failure_ttl=0,
                description=call.kind,
                job_id=call.task,
            )

    def present(self, tasks: Collection[str]) -> set[str]:
        """See `Tasks`."""
        key = f"{Queue.redis_queue_namespace_prefix}{QUEUE}"
        raw: list[bytes] = self._reach(lambda: self._redis.lrange(key, 0, -1))
        waiting = {name.decode(errors="replace") for name in raw}
        return {task for task in tasks if task in waiting or task_files.is_claimed(self._state, task)}

    def outcome(self, task: str, made_ms: int) -> dict[str, Any] | None:
        """See `Tasks` and `task_files.read_outcome`."""
        return task_files.read_outcome(self._state, task, made_ms)

    def remove(self, task: str) -> None:
        """Delete what a settled task left on disk."""
        task_files.remove(self._state, task)

    def close(self) -> None:
        """Let go of the connection."""
        self._redis.close()

    def _reach(self, ask: Callable[[], Any]) -> Any:
        """Ask the server; a queue of the wrong type (it holds nothing of ours then) is removed and asked again."""
        try:
            try:
                return ask()
            except redis.ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                self._redis.delete(f"{Queue.redis_queue_namespace_prefix}{QUEUE}")
                return ask()
        except _DOWN as error:
            raise BusDown(f"the transport does not answer: {error}") from error


def _kwargs(call: Call) -> dict[str, Any]:
    return {"arguments": call.arguments, "attempt": call.attempt, "made_ms": call.made_ms}
