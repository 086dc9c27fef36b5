"""Transport inside one process, for runs that must be the same each time: it never waits, and loses nothing unasked."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from scheduler.ports import BusDown, Message
from scheduler.requests import RequestError, read_request
from workers.protocol import ProtocolError, read_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scheduler.ports import HostCommand
    from scheduler.requests import Answer, Request
    from workers.protocol import Report

INBOX = "ft:inbox"
TELEMETRY = "ft:tele:"


class MemoryBus:
    """`scheduler.ports.Bus` on lists.

    Attributes:
        sent: (host, command) in the order of sending.
        answered: (reply_to, answer) in the order of answering.
        down: while True everything raises `BusDown`.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, HostCommand]] = []
        self.answered: list[tuple[str, Answer]] = []
        self.down = False
        self._streams: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._number = 0

    def post(self, raw: bytes) -> str:
        """What the API does with a request; the message's id."""
        return self._append(INBOX, raw)

    def report(self, raw: bytes, host: str) -> str:
        """What a host's worker does with a report; the message's id."""
        return self._append(TELEMETRY + host, raw)

    def wipe(self) -> None:
        """Lose every message and begin to number anew, as a server does that starts empty."""
        self._streams.clear()
        self._number = 0

    def receive(self, cursors: Mapping[str, str], timeout_ms: int) -> list[Message]:
        """Messages after the cursors: requests first, then reports by host; never waits."""
        del timeout_ms
        self._check()
        found = []
        for stream in sorted(self._streams, key=lambda name: (name != INBOX, name)):
            found += [_message(stream, number, raw) for number, raw in self._after(stream, cursors)]
        return found

    def send(self, commands: Iterable[tuple[str, HostCommand]]) -> None:
        """Keep the commands in `sent`."""
        self._check()
        self.sent += commands

    def answer(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Keep the answers in `answered`."""
        self._check()
        self.answered += answers

    def discard(self, stream: str, ids: Sequence[str]) -> None:
        """These messages are never to be read again."""
        self._check()
        gone = {_number(id_) for id_ in ids}
        self._streams[stream] = [entry for entry in self._streams[stream] if entry[0] not in gone]

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Nothing up to the cursors is needed any more."""
        self._check()
        for stream in cursors:
            self._streams[stream] = self._after(stream, cursors)

    def _append(self, stream: str, raw: bytes) -> str:
        self._check()
        self._number += 1
        self._streams[stream].append((self._number, raw))
        return f"{self._number}-0"

    def _after(self, stream: str, cursors: Mapping[str, str]) -> list[tuple[int, bytes]]:
        """What is newer than the cursor. One beyond every number is of a server that is no more: then everything."""
        last = _number(cursors.get(stream, "0-0"))
        return [entry for entry in self._streams[stream] if entry[0] > last or last > self._number]

    def _check(self) -> None:
        if self.down:
            raise BusDown("the transport is down", "nothing accepted is lost; it is tried again")


def _number(id_: str) -> int:
    return int(id_.partition("-")[0])


def _message(stream: str, number: int, raw: bytes) -> Message:
    read: Callable[[bytes], Request | Report] = read_request if stream == INBOX else read_report
    try:
        return Message(stream, f"{number}-0", read(raw), raw)
    except (RequestError, ProtocolError) as error:
        return Message(stream, f"{number}-0", None, raw, str(error))
