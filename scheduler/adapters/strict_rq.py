"""An RQ worker that runs the functions of an allow-list and nothing else, whatever lies in Redis.

What is RQ's: the queue and its reliable BLMOVE, the encoding of jobs, the registration and heartbeat of workers, the
loop, one forked process for each job. What is not: jobs are read by `strict_job`, run by `task_process`, and leave
their results in files. Registries, retries and maintenance are not used; `scheduler.task_rows` does without them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, Worker
from rq.exceptions import StopRequested
from rq.utils import now
from rq.worker.base import WorkerStatus
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY, clean_worker_registry

from scheduler.adapters import task_files
from scheduler.adapters.rq_tasks import QUEUE
from scheduler.adapters.strict_job import Order, StrictJob, StrictQueue
from scheduler.adapters.strict_json import StrictJSON
from scheduler.adapters.task_process import Allowed, become, blank, perform
from scheduler.ports import BusDown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType

    from redis import Redis
    from rq.job import Job

WORKER_TTL_S = 60
"""A waiting worker asks again after 45 s: that is all it does while there is nothing to do."""
LOOK_S = 15
"""Between two heartbeats while a task runs."""
PATIENCE_S = 30
"""A process that has not ended so long after its timeout is killed from outside."""

log = logging.getLogger("fairtier.tasks")


class StrictWorker(Worker):
    """Runs what is allowed, one task at a time, each in a process of its own; deaf to commands by pub/sub.

    Args:
        connection: to the server.
        allowed: kinds that are run, by name.
        state: the directory under which tasks leave their files.
    """

    queue_class = StrictQueue
    job_class = StrictJob
    max_connection_wait_time = 5.0

    def __init__(self, connection: Redis, allowed: Mapping[str, Allowed], state: Path) -> None:
        super().__init__(
            [StrictQueue(QUEUE, connection=connection, serializer=StrictJSON)],
            connection=connection,
            serializer=StrictJSON,
            worker_ttl=WORKER_TTL_S,
            log_job_description=False,
        )
        self.stopped = False
        self.drained = False
        self._allowed = allowed
        self._state_dir = state

    def run(self, *, burst: bool = False) -> bool:
        """Work until told to stop, or with `burst` until the queue is empty; False when it ended otherwise.

        RQ's own loop ends in the same way whether it was stopped or broke.
        """
        try:
            self.work(burst=burst, logging_level="WARNING")
        except redis.RedisError as error:
            log.error("the transport failed: %s", error)
        return self.stopped or self.drained

    # -- what RQ does and we do not ------------------------------------------------------------------------------

    def subscribe(self) -> None:
        """No commands by pub/sub: they have no authentication, and their thread costs memory and wake-ups."""

    def unsubscribe(self) -> None:
        """See `subscribe`."""

    def check_for_suspension(self, burst: bool) -> None:
        """A key in Redis does not stop background work."""

    def get_redis_server_version(self) -> tuple[int, int, int]:
        """Known to be new enough; asking would need the right to INFO."""
        return (7, 0, 0)

    def run_maintenance_tasks(self) -> None:
        """Forget workers that are gone and entries that they took; no job is moved, failed or run by maintenance."""
        self.last_cleaned_at = now()  # type: ignore[assignment]  # RQ declares it None and assigns the same
        with contextlib.suppress(redis.ResponseError):
            clean_worker_registry(self.queues[0])
        self.connection.delete(self.queues[0].intermediate_queue_key)

    def register_birth(self) -> None:
        """Register; keys of a wrong type in the way are removed."""
        try:
            super().register_birth()  # type: ignore[no-untyped-call]
        except redis.ResponseError:
            self.connection.delete(REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY % QUEUE, self.key)
            super().register_birth()  # type: ignore[no-untyped-call]

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """RQ's; None means that a burst has come to its end."""
        taken = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        self.drained = taken is None
        return taken

    def teardown(self) -> None:
        """Say goodbye if anybody is there to hear it."""
        with contextlib.suppress(redis.RedisError):
            super().teardown()  # type: ignore[no-untyped-call]

    # -- stopping ------------------------------------------------------------------------------------------------

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop now: what runs is killed, goes back into the queue, and will run again from its beginning."""
        del signum, frame
        self.stopped = self._stop_requested = True
        if self.horse_pid:
            self.kill_horse()
        elif self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """There is nothing more forceful than `request_stop`."""

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the process of the task; by its group only once it leads one, for before that the group is ours."""
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.horse_pid) == self.horse_pid:
                os.killpg(self.horse_pid, sig)
            else:
                os.kill(self.horse_pid, sig)

    # -- one job -------------------------------------------------------------------------------------------------

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run one task, or refuse it."""
        self.set_state(WorkerStatus.BUSY)
        self._take(job, queue)
        if not isinstance(job, StrictJob) or job.order is None or job.order.kind not in self._allowed:
            why = getattr(job, "refusal", "") or "no such kind of background work"
            log.warning("job %s refused, nothing was run: %s", job.id, why)
        elif self._attempt(job, job.order, queue):
            self._give_back(job, queue)
        self.set_state(WorkerStatus.IDLE)

    def _take(self, job: Job, queue: Queue) -> None:
        """Remove the job before it is run: at its end the next attempt may be there under the same name."""
        pipe = self.connection.pipeline(transaction=False)
        pipe.lrem(queue.intermediate_queue_key, 0, job.id)
        pipe.delete(job.key)
        with contextlib.suppress(redis.RedisError):  # whatever is left there is refused or found to be done
            pipe.execute()

    def _give_back(self, job: StrictJob, queue: Queue) -> None:
        """Make a task that was stopped the next one; should that fail, it is found lost."""
        pipe = self.connection.pipeline()
        pipe.hset(job.key, "data", job.raw)
        pipe.lpush(queue.key, job.id)
        with contextlib.suppress(redis.RedisError):
            pipe.execute()

    def _attempt(self, job: StrictJob, order: Order, queue: Queue) -> bool:
        """Run a task unless that has been done or is being done; True when it is to be run again at once."""
        lock = task_files.claim(self._state_dir, job.id)
        if lock is None:
            log.info("task %s is being run elsewhere", job.id)
            return False
        try:
            if self._has_ended(job.id, order):
                return False
            self.fork_work_horse(job, queue)
            if self._stop_requested:  # the signal came while the number of the process was not known yet
                self.kill_horse()
            status = self._wait(self._allowed[order.kind].timeout_s + PATIENCE_S)
            if self._has_ended(job.id, order):
                return False
            if not self.stopped:
                self._died(job.id, order, status)
            return self.stopped
        finally:
            os.close(lock)

    def _has_ended(self, task: str, order: Order) -> bool:
        outcome = task_files.read_outcome(self._state_dir, task, order.made_ms)
        return outcome is not None and (not outcome.get("retry") or outcome["attempt"] >= order.attempt)

    def _wait(self, longest_s: int) -> int:
        """Wait for the process of the task, telling Redis now and then that we live; its wait status."""
        watch, handle = select.poll(), os.pidfd_open(self.horse_pid)
        try:
            watch.register(handle, select.POLLIN)
            waited_s = 0
            while not watch.poll(LOOK_S * 1000):
                waited_s += LOOK_S
                if waited_s >= longest_s:
                    self.kill_horse()
                with contextlib.suppress(redis.RedisError):
                    self.heartbeat()
        finally:
            os.close(handle)
        _, status = os.waitpid(self.horse_pid, 0)
        self._horse_pid = 0
        return status

    def _died(self, task: str, order: Order, status: int) -> None:
        """A process that left no result, by its own fault or the kernel's: running it again would end alike."""
        number = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-number).name}" if number < 0 else f"ended with exit code {number}"
        log.error("task %s: its process %s and left no result", task, how)
        with contextlib.suppress(OSError):
            outcome = blank(order) | {"error": f"its process {how} before it had a result"}
            task_files.write_outcome(self._state_dir, task, outcome)

    def main_work_horse(self, job: Job, queue: Queue) -> NoReturn:
        """What the process does that was forked for a task."""
        del queue
        order = job.order if isinstance(job, StrictJob) else None
        if order is None:
            os._exit(1)
        become(self.pid, lambda: perform(self._allowed[order.kind], order, job.id, self._state_dir))


def connect(url: str) -> Redis:
    """A connection that gives up soon: the worker's loop itself tries again. `BusDown` when nobody answers now."""
    retry = Retry(NoBackoff(), 1)
    connection = redis.Redis.from_url(
        url, socket_connect_timeout=2, socket_timeout=None, health_check_interval=30, retry=retry
    )  # without: an idle worker waits in one call for minutes
    try:
        connection.ping()
    except redis.RedisError as error:
        raise BusDown(f"the server of background work does not answer: {error}", "is it running?") from None
    return connection
