"""What of an RQ job is read: one field of bounded size, checked for its exact form.

RQ takes what to call from Redis: a dotted name that it imports, callbacks, webhooks, repeats, dependencies, results,
some of it pickled. Here `data` is read and nothing else, and of that the name of a kind, the arguments and the number
of the attempt. Whatever does not fit is refused, and nothing is made of it.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job

from scheduler.adapters.strict_json import LIMIT, StrictJSON, Unreadable, inflate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

_KEYWORDS = {"arguments", "attempt", "made_ms"}
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")

log = logging.getLogger("fairtier.tasks")


class Order(NamedTuple):
    """What a job says, checked for its form."""

    kind: str
    arguments: dict[str, Any]
    attempt: int
    made_ms: int


def read_order(raw: bytes) -> Order:
    """A job's data; `Unreadable` unless it is just `[kind, null, [], {arguments: {}, attempt: n, made_ms: n}]`."""
    entry = StrictJSON.loads(inflate(raw))
    if not isinstance(entry, list) or len(entry) != 4:
        raise Unreadable("not a list of four")
    kind, instance, args, kwargs = entry
    if not isinstance(kind, str) or instance is not None or args != [] or not isinstance(kwargs, dict):
        raise Unreadable("a call of another form")
    arguments, numbers = kwargs.get("arguments"), (kwargs.get("attempt"), kwargs.get("made_ms"))
    if kwargs.keys() != _KEYWORDS or not isinstance(arguments, dict) or any(type(n) is not int for n in numbers):
        raise Unreadable("arguments of another form")
    return Order(kind, arguments, kwargs["attempt"], kwargs["made_ms"])


class StrictJob(Job):
    """A job of which only `data` is read; `order` is what it asks for, or None and `refusal` says why.

    `raw` is the field as it was read.
    """

    raw: bytes = b""
    order: Order | None = None
    refusal: str = ""

    def refresh(self) -> None:
        """Read `data`, if it is no longer than allowed; NoSuchJobError when there is none."""
        try:
            size = self.connection.hstrlen(self.key, "data")
            raw = self.connection.hget(self.key, "data") if 0 < size <= LIMIT else b""
        except redis.ResponseError:
            raise NoSuchJobError(f"{self.key} is no job") from None
        if not size:
            raise NoSuchJobError(f"no such job: {self.key}")
        self.restore({b"data": raw})

    def restore(self, raw_data: Any) -> None:
        """Take `data` and nothing else of a job's record."""
        try:
            self.raw = raw_data.get(b"data") or b""
            self.order = read_order(self.raw)
        except Unreadable as error:
            self.refusal = str(error)

    def _execute(self) -> NoReturn:
        """Nothing is called by RQ's own way."""
        raise NoSuchJobError(f"{self.id} is not run this way")


class StrictQueue(Queue):
    """The one queue, whose entries are checked before anything is made of them."""

    job_class = StrictJob

    @classmethod
    def dequeue_any(
        cls,
        queues: Iterable[Queue],
        timeout: int | None,
        connection: Redis,
        job_class: Any = None,
        serializer: Any = None,
        death_penalty_class: Any = None,
    ) -> tuple[Job, Queue] | None:
        """The next job that has a record; waits `timeout` s, None = not at all."""
        del job_class, serializer, death_penalty_class  # there is one of each
        (queue,) = queues
        while True:
            try:
                taken = cls.lmove(connection, queue.key, timeout)
                if taken is None:
                    return None
                job = cls._job(queue, taken[1])
                if job is not None:
                    return job, queue
                connection.lrem(queue.intermediate_queue_key, 0, taken[1])
            except redis.ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                log.warning("the queue is of a wrong type in Redis; removed, open tasks will be handed over again")
                connection.delete(queue.key, queue.intermediate_queue_key)

    @staticmethod
    def _job(queue: Queue, job_id: bytes) -> StrictJob | None:
        if not _ID.fullmatch(job_id):
            log.warning("an entry of the queue is no name of a task: dropped")
            return None
        job = StrictJob(job_id.decode(), connection=queue.connection, serializer=StrictJSON)
        try:
            job.refresh()
        except NoSuchJobError:
            return None
        return job
