"""How a write reaches the scheduler and its answer comes back: an entry in the inbox stream, a stream for the answers.

The transport may lose everything at any moment, so a request is told again until its answer is there or the time is up;
its key makes that harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any, NamedTuple

import redis.asyncio
import structlog
from pydantic import ValidationError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from scheduler.adapters.redis_bus import INBOX, REPLIES
from scheduler.errors import BadInput, Unreachable
from scheduler.requests import LIMIT, Answer, Request
from scheduler.wire_errors import error_of

AGAIN_S = 1.0
"""Without an answer for so long, a request is told again."""
GIVE_UP_S = 2.0
"""Without an answer for so long, the asker is told so: with its own start a command then ends within 3 s."""
PAUSE_S = 0.05
"""Between two tries to reach a transport that is down."""
LISTEN_AGAIN_S = 0.2
"""Between two tries to listen: a transport that is away for long must not keep the process busy."""
MOST_CONNECTIONS = 32

_DOWN = (redis.RedisError, OSError)


class _Waiting(NamedTuple):
    """An answer that somebody waits for."""

    future: asyncio.Future[Answer]
    askers: int


class Gateway:
    """Asks the scheduler and waits for its answers; one for each process.

    Args:
        url: of the transport.
        again_s, give_up_s: see `AGAIN_S` and `GIVE_UP_S`.

    Attributes:
        reply_to: the stream on which this process listens.
    """

    def __init__(self, url: str, *, again_s: float = AGAIN_S, give_up_s: float = GIVE_UP_S) -> None:
        self.reply_to = REPLIES + secrets.token_hex(8)
        self._again_s, self._give_up_s = again_s, give_up_s
        self._waiting: dict[str, _Waiting] = {}
        self._cursor = "0"
        self._open = True
        self._redis: Any = _client(url, MOST_CONNECTIONS, give_up_s)
        self._listener: Any = _client(url, 1, give_up_s)
        self._listening: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("api")

    async def start(self) -> None:
        """Listen for answers from now on, whether or not the transport is there yet."""
        self._listening = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Stop listening and let go of the connections."""
        self._open = False
        while self._listening is not None and not self._listening.done():
            self._listening.cancel()  # more than once: while it connects, the client library may swallow it
            await asyncio.wait((self._listening,), timeout=PAUSE_S)
        for client in (self._redis, self._listener):
            with contextlib.suppress(*_DOWN):
                await client.aclose()

    async def ask(self, request: Request) -> dict[str, Any]:
        """Have the scheduler carry out a request; the body of its answer.

        Raises:
            FairTierError: of the sort that the scheduler answered, or `Unreachable` when it did not.
        """
        raw = request.model_copy(update={"reply_to": self.reply_to}).model_dump_json().encode()
        if len(raw) > LIMIT:
            raise BadInput(f"a request of {len(raw)} bytes: at most {LIMIT} are taken")
        future = self._wait(request.key)
        try:
            answer = await self._told(raw, future)
        finally:
            self._leave(request.key)
        if answer is None:
            raise Unreachable(
                f"the scheduler did not answer within {self._give_up_s:g} s; it may still do what was asked",
                "fairtier status says what runs; asking again with the same Idempotency-Key does nothing twice",
            )
        return _outcome(answer)

    def _wait(self, key: str) -> asyncio.Future[Answer]:
        waiting = self._waiting.get(key)
        future = asyncio.get_running_loop().create_future() if waiting is None else waiting.future
        self._waiting[key] = _Waiting(future, 1 if waiting is None else waiting.askers + 1)
        return future

    def _leave(self, key: str) -> None:
        waiting = self._waiting.pop(key)
        if waiting.askers > 1:
            self._waiting[key] = waiting._replace(askers=waiting.askers - 1)

    async def _told(self, raw: bytes, future: asyncio.Future[Answer]) -> Answer | None:
        """Tell the request until it is answered; None when the time is up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._give_up_s
        while (left_s := end - loop.time()) > 0:
            sent = await self._send(raw, left_s)
            left_s = min(end - loop.time(), self._again_s if sent else PAUSE_S)
            await asyncio.wait((future,), timeout=max(0.0, left_s))
            if future.done():
                return future.result()
            self._cursor = "0"  # the server may have been wiped, with its clock set back: look at all there is
        return None

    async def _send(self, raw: bytes, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._redis.xadd(INBOX, {"m": raw})
        except (*_DOWN, TimeoutError) as error:
            self._log.warning("transport.down", error=str(error)[:200])
            return False
        return True

    async def _listen(self) -> None:
        """Resolve what answers arrive, until closed. After a failure all that the stream has is read again."""
        while self._open:
            try:
                found = await self._listener.xread({self.reply_to: self._cursor}, block=1000)
                for _, entries in found or ():
                    for entry_id, fields in entries:
                        self._cursor = entry_id.decode()
                        self._resolve(fields.get(b"m", b""))
            except _DOWN:
                self._cursor = "0"
                await asyncio.sleep(LISTEN_AGAIN_S)

    def _resolve(self, raw: bytes) -> None:
        try:
            answer = Answer.model_validate_json(raw)
        except ValidationError:
            self._log.warning("answer.unreadable", bytes=len(raw))
            return
        waiting = self._waiting.get(answer.key)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(answer)


def _client(url: str, connections: int, timeout_s: float) -> Any:
    """A client that tries a broken connection once more at once, and whose answers have RESP2's shape."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s + 1.0,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1),
        protocol=2,
    )
    return redis.asyncio.Redis.from_pool(pool)


def _outcome(answer: Answer) -> dict[str, Any]:
    if answer.error:
        raise error_of(answer.error, answer.message, answer.hint)
    return answer.body
