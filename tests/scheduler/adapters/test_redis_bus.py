"""The service's transport on a real server: wiped, begun anew with older ids, and full."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from scheduler.adapters.embedded import find_server
from scheduler.adapters.redis_bus import COMMANDS, INBOX, KEPT_WHEN_FULL, TELEMETRY, RedisBus
from scheduler.ports import BusDown
from scheduler.requests import Answer, Ping, Request
from workers.protocol import Report, Start, encode


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own with 8 MiB; its URL."""
    folder = tmp_path_factory.mktemp("r")
    socket = folder / "s"
    words = {"port": "0", "unixsocket": str(socket), "save": "", "maxmemory": "8mb", "dir": str(folder)}
    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([find_server()[0], *options], stdout=subprocess.DEVNULL)
    try:
        _until_it_answers(socket)
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


def _until_it_answers(socket: Path) -> None:
    for _ in range(500):
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                client.ping()
                return
        except redis.ConnectionError:
            time.sleep(0.01)
    raise AssertionError("the server does not answer")


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with redis.Redis.from_url(server) as client:
        yield client


@pytest.fixture
def bus(server: str) -> Iterator[RedisBus]:
    made = RedisBus(server, ["h1"])
    yield made
    made.close()


def report(seq: int) -> bytes:
    return encode(Report(host="h1", boot="b", epoch=1, seq=seq, sent_ms=0, full=True, gpus=1))


def request(number: int) -> bytes:
    return Request(key=f"key-{number:06}", operation=Ping()).model_dump_json().encode()


def start(number: int) -> Start:
    return Start(
        action=f"s-{number}:start:1", session=f"s-{number}", issued_ms=0, expires_ms=0, user="ann",
        argv=("x" * 30_000,), gpus=(0,), fraction_m=1000,
    )  # fmt: skip


def cursors_of(messages: list[Any]) -> dict[str, str]:
    return {message.stream: message.id for message in messages}


def test_messages_are_read_once_and_again_from_an_older_cursor(client: Any, bus: RedisBus) -> None:
    """The cursor decides, not what was read before: a commit that failed reads the same again."""
    client.xadd(INBOX, {"m": request(1)})
    first = bus.receive({}, 1_000)
    assert [message.stream for message in first] == [INBOX]
    assert [message.id for message in bus.receive({}, 1_000)] == [first[0].id]
    assert not bus.receive(cursors_of(first), 50)
    client.xadd(INBOX, {"m": request(2)})
    assert [message.content.key for message in bus.receive(cursors_of(first), 1_000)] == ["key-000002"]


def test_a_server_that_began_anew_with_older_ids_is_read_from_its_beginning(client: Any, bus: RedisBus) -> None:
    """Its clock was set back: every stream is read from its beginning, also one that speaks later than the others."""
    old = {INBOX: "9000000000000-0", TELEMETRY + "h1": "9000000000000-0"}
    client.xadd(INBOX, {"m": request(1)}, id="5-0")
    first = bus.receive(old, 1_000)
    assert [message.id for message in first] == ["5-0"]
    client.xadd(TELEMETRY + "h1", {"m": report(1)}, id="6-0")
    second = bus.receive(old | cursors_of(first), 1_000)
    assert [(message.stream, message.id) for message in second] == [(TELEMETRY + "h1", "6-0")]
    assert not bus.receive(old | cursors_of(first) | cursors_of(second), 50)


def test_a_full_server_is_a_transport_that_is_away_and_gets_room_again(client: Any, bus: RedisBus) -> None:
    """Commands that nobody fetches fill it: `BusDown`, what is old goes, and the next answer arrives."""
    with pytest.raises(BusDown, match="full"):  # noqa: PT012 - it fills up at some point
        for number in range(1_000):
            bus.send([("gone", start(number))])
    assert client.xlen(COMMANDS + "gone") == KEPT_WHEN_FULL
    bus.answer([("ft:reply:x", Answer(key="key-000001"))])
    assert client.xlen("ft:reply:x") == 1


def test_a_full_inbox_has_room_again_after_a_trim(client: Any, bus: RedisBus) -> None:
    """What was taken in may go, and goes also while nothing more can be written."""
    with pytest.raises(redis.exceptions.OutOfMemoryError):  # noqa: PT012
        for number in range(1_000):
            client.xadd(INBOX, {"m": request(number), "ballast": "x" * 30_000})
    taken = bus.receive({}, 1_000)
    assert len(taken) > 100
    bus.trim(cursors_of(taken))
    bus.answer([("ft:reply:x", Answer(key="key-000001"))])
    assert client.xlen("ft:reply:x") == 1
