"""The service's side of the transport: Redis streams for requests, telemetry, host commands and answers.

Nothing here is the truth. Messages are read from cursors that the store keeps (no consumer groups: a cursor is
committed with what the message caused), so that a crash repeats nothing and a wiped server loses only what its sender
will tell again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import redis

from scheduler.ports import BusDown, Message
from scheduler.requests import LIMIT as REQUEST_LIMIT
from scheduler.requests import RequestError, read_request
from workers.protocol import ProtocolError, encode, read_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scheduler.ports import HostCommand
    from scheduler.requests import Answer

INBOX = "ft:inbox"
TELEMETRY = "ft:tele:"
COMMANDS = "ft:cmd:"
REPLIES = "ft:reply:"

BATCH = 512
"""Messages of one stream that are taken in at once."""
STREAM_LENGTH = 10_000
"""Entries that a stream of commands or answers keeps, about; senders tell again what matters."""
REPLY_LIFE_S = 60

KEPT_WHEN_FULL = 100
"""Entries that a stream of commands keeps when the server has no room; what was not obeyed yet is sent again."""

_DOWN = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError, OSError)


class RedisBus:
    """`ports.Bus` on a Redis-compatible server.

    Args:
        url: of the server, e.g. `unix:///run/fairtier/redis.sock`.
        hosts: whose telemetry is listened to.
    """

    def __init__(self, url: str, hosts: Iterable[str]) -> None:
        self._redis: Any = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=10, protocol=2)
        self._streams = [INBOX, *(TELEMETRY + host for host in hosts)]
        self._line: Any = None
        self._asked = False
        self._anew: dict[str, str] = {}

    def receive(self, cursors: Mapping[str, str], timeout_ms: int) -> list[Message]:
        """See `ports.Bus`. The timeout is exact, and waiting costs the server nothing.

        One XREAD without end stays open on a connection of its own while we watch the socket: a server looks at the
        timeouts of blocked clients only ten times a second.
        """
        try:
            if self._line is None:
                self._line = self._redis.connection_pool.get_connection()
                self._anew = self._restarted(cursors)
            if not self._asked:
                known = {**cursors, **self._anew}
                wanted = {stream: known.get(stream, "0") for stream in self._streams}
                self._line.send_command("XREAD", "COUNT", BATCH, "BLOCK", 0, "STREAMS", *wanted, *wanted.values())
                self._asked = True
            if not self._line.can_read(timeout=timeout_ms / 1000):
                return []
            self._asked = False
            messages = list(_messages(self._line.read_response() or ()))
            for message in messages:
                self._anew.pop(message.stream, None)  # from here on the cursor is of this server
            return messages
        except _DOWN as error:
            self._hang_up()
            raise BusDown(f"the transport does not answer: {error}") from error

    def _restarted(self, cursors: Mapping[str, str]) -> dict[str, str]:
        """Streams without entries, or with older ones than the cursor (wiped, the clock set back): from 0."""
        pipe = self._redis.pipeline(transaction=False)
        for stream in cursors:
            pipe.xrevrange(stream, count=1)
        newest = pipe.execute()
        return {
            stream: "0"
            for (stream, cursor), last in zip(cursors.items(), newest, strict=True)
            if not last or _order(last[0][0]) < _order(cursor)
        }

    def _hang_up(self) -> None:
        line, self._line, self._asked = self._line, None, False
        if line is not None:
            line.disconnect()
            self._redis.connection_pool.release(line)

    def send(self, commands: Iterable[tuple[str, HostCommand]]) -> None:
        """See `ports.Bus`."""
        pairs = [(COMMANDS + host, encode(command)) for host, command in commands]
        self._append(pairs, STREAM_LENGTH, None)

    def answer(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """See `ports.Bus`. Answers nobody fetched are gone after a minute."""
        pairs = [(stream, answer.model_dump_json().encode()) for stream, answer in answers if _is_reply(stream)]
        self._append(pairs, STREAM_LENGTH, REPLY_LIFE_S)

    def _append(self, pairs: Sequence[tuple[str, bytes]], length: int, life_s: int | None) -> None:
        if not pairs:
            return
        try:
            pipe = self._redis.pipeline(transaction=False)
            for stream, raw in pairs:
                pipe.xadd(stream, {"m": raw}, maxlen=length, approximate=True)
            if life_s is not None:
                for stream in {stream for stream, _ in pairs}:
                    pipe.expire(stream, life_s)
            pipe.execute()
        except redis.exceptions.OutOfMemoryError as error:
            self._make_room()
            raise BusDown(f"the transport is full: {error}") from error
        except _DOWN as error:
            raise BusDown(f"the transport does not answer: {error}") from error

    def _make_room(self) -> None:
        with contextlib.suppress(*_DOWN):
            for stream in self._redis.scan_iter(COMMANDS + "*", count=1000):
                self._redis.xtrim(stream, maxlen=KEPT_WHEN_FULL, approximate=False)

    def discard(self, stream: str, ids: Sequence[str]) -> None:
        """See `ports.Bus`."""
        try:
            if ids:
                self._redis.xdel(stream, *ids)
        except _DOWN as error:
            raise BusDown(f"the transport does not answer: {error}") from error

    def trim(self, cursors: Mapping[str, str]) -> None:
        """See `ports.Bus`."""
        try:
            pipe = self._redis.pipeline(transaction=False)
            for stream, cursor in cursors.items():
                pipe.xtrim(stream, minid=cursor, approximate=True)
            pipe.execute()
        except _DOWN as error:
            raise BusDown(f"the transport does not answer: {error}") from error

    def close(self) -> None:
        """Let go of the connections."""
        self._hang_up()
        self._redis.close()


def _is_reply(stream: str) -> bool:
    return stream.startswith(REPLIES)


def _order(entry_id: str | bytes) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    first, _, second = text.partition("-")
    return int(first), int(second or 0)


def _messages(answer: Any) -> Iterator[Message]:
    """Entries of XREAD's answer; unreadable ones with their mistake."""
    for name, entries in answer:
        stream = name.decode()
        for entry_id, fields in entries:
            named = dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {}
            yield _message(stream, entry_id.decode(), named.get(b"m", b""))


def _message(stream: str, entry_id: str, raw: bytes) -> Message:
    try:
        if stream == INBOX:
            return Message(stream, entry_id, read_request(raw), raw)
        report = read_report(raw)
        if stream != TELEMETRY + report.host:
            raise ProtocolError(f"a report of host {report.host} in the stream {stream}")
        return Message(stream, entry_id, report, raw)
    except (RequestError, ProtocolError) as error:
        return Message(stream, entry_id, None, raw[:REQUEST_LIMIT], str(error))
