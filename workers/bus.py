"""Transport between one host and the scheduler: two Redis streams, of which every byte may be lost at any moment.

`ft:tele:<host>` takes reports, `ft:cmd:<host>` brings commands; a message is the field `m` of an entry. Commands are
read from the stream's beginning at every start: the journal knows which of them were obeyed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from workers.protocol import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from workers.protocol import Report

FIELD = b"m"
BEGINNING = "0-0"
KEPT_REPORTS = 10_000
_MOST_AT_ONCE = 128
_BLOCK_MS = 5000
_LONGEST_PAUSE_S, _FIRST_PAUSE_S = 0.5, 0.05
_ANSWER_S = 3.0

log = structlog.get_logger()


class BusGone(Exception):
    """The transport did not take a report; it may or may not have arrived. Tell it again later."""


def telemetry_stream(host: str) -> str:
    """Where a host's reports go."""
    return f"ft:tele:{host}"


def command_stream(host: str) -> str:
    """Where a host's commands come from."""
    return f"ft:cmd:{host}"


class WorkerBus:
    """One host's end of the transport.

    `lost` is set when the transport was away or emptied: what was told before may never have arrived.
    """

    def __init__(self, url: str, host: str) -> None:
        self.host = host
        self.lost = asyncio.Event()
        self._last = BEGINNING
        self._look = False
        options: dict[str, Any] = {"socket_connect_timeout": 2.0, "retry": Retry(NoBackoff(), 0), "protocol": 2}
        self._reports = Redis.from_url(url, socket_timeout=_ANSWER_S, **options)
        self._commands = Redis.from_url(url, socket_timeout=_ANSWER_S + _BLOCK_MS / 1000, **options)

    async def append(self, report: Report) -> None:
        """Tell the scheduler; `BusGone` when the transport is away."""
        try:
            await self._reports.xadd(
                telemetry_stream(self.host), {FIELD: encode(report)}, maxlen=KEPT_REPORTS, approximate=True
            )
        except (RedisError, OSError) as error:
            raise BusGone(str(error)) from error

    async def commands(self) -> AsyncIterator[list[bytes]]:
        """Commands as they come, all that wait together, for ever; connects again and again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                batch = await self._read()
            except (RedisError, OSError) as error:
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("transport is away; trying again", error=type(error).__name__)
                self.lost.set()
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            if pause_s != _FIRST_PAUSE_S:
                log.info("transport is back")
                pause_s = _FIRST_PAUSE_S
                self.lost.set()
            if batch:
                yield batch

    async def close(self) -> None:
        """Let go of the connections."""
        for client in (self._reports, self._commands):
            with suppress(RedisError, OSError):
                await client.aclose()

    async def _read(self) -> list[bytes]:
        """What came after the last id read; empty after a few quiet seconds."""
        if self._look:
            await self._restart_where_emptied()
        stream = command_stream(self.host)
        self._look = True
        found: Any = await self._commands.xread({stream: self._last}, count=_MOST_AT_ONCE, block=_BLOCK_MS)
        entries: list[tuple[bytes, dict[bytes, bytes]]] = [entry for _, some in found or () for entry in some]
        if entries:
            self._last = entries[-1][0].decode()
            self._look = False
        return [fields[FIELD] for _, fields in entries if fields and FIELD in fields]

    async def _restart_where_emptied(self) -> None:
        """A stream that is gone, or ends before what we read last, is another one: read it from its beginning."""
        if self._last == BEGINNING:
            return
        try:
            about: Any = await self._commands.xinfo_stream(command_stream(self.host))
            newest = about["last-generated-id"].decode()
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            newest = BEGINNING
        if _order(newest) < _order(self._last):
            log.warning("transport was emptied; reading commands from the beginning", last=self._last, newest=newest)
            self._last = BEGINNING
            self.lost.set()


def _order(entry: str) -> tuple[int, int]:
    ms, _, number = entry.partition("-")
    return int(ms), int(number)
