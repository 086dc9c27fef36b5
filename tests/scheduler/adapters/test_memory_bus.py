"""The bus in memory delivers in a fixed order, again after what it is told, and says what it cannot read."""

from __future__ import annotations

import pytest

from scheduler.adapters.memory import MemoryBus
from scheduler.ports import BusDown
from scheduler.requests import Answer, Ping, Request
from workers.protocol import Forget, Report, encode

PING = Request(key="key-0001", reply_to="ft:reply:1", operation=Ping()).model_dump_json().encode()


def _report(host: str, seq: int) -> bytes:
    return encode(Report(host=host, boot="b", epoch=1, seq=seq, sent_ms=1, full=True, gpus=1))


def _filled() -> MemoryBus:
    bus = MemoryBus()
    bus.report(_report("h2", 1), "h2")
    bus.report(_report("h1", 1), "h1")
    bus.post(PING)
    bus.report(_report("h1", 2), "h1")
    return bus


def test_requests_come_first_then_reports_by_host() -> None:
    found = _filled().receive({}, 1000)
    assert [(message.stream, message.id) for message in found] == [
        ("ft:inbox", "3-0"),
        ("ft:tele:h1", "2-0"),
        ("ft:tele:h1", "4-0"),
        ("ft:tele:h2", "1-0"),
    ]
    assert isinstance(found[0].content, Request)
    assert isinstance(found[1].content, Report)
    assert found[0].raw == PING


def test_what_the_cursors_cover_does_not_come_again() -> None:
    bus = _filled()
    assert [m.id for m in bus.receive({"ft:inbox": "3-0", "ft:tele:h1": "2-0"}, 0)] == ["4-0", "1-0"]
    assert len(bus.receive({}, 0)) == 4, "nothing is lost by reading"
    bus.trim({"ft:tele:h1": "2-0"})
    bus.discard("ft:inbox", ["3-0"])
    assert [m.id for m in bus.receive({}, 0)] == ["4-0", "1-0"]


def test_what_cannot_be_read_comes_with_the_reason() -> None:
    bus = MemoryBus()
    bus.post(b"{")
    bus.report(b'{"version":2}', "h1")
    request, report = bus.receive({}, 0)
    assert (request.content, request.raw) == (None, b"{")
    assert "Invalid JSON" in request.error
    assert report.content is None
    assert report.error


def test_what_is_sent_is_kept() -> None:
    bus = MemoryBus()
    forget = Forget(action="a", session="s-1", issued_ms=1, expires_ms=2)
    bus.send([("h1", forget)])
    bus.answer([("ft:reply:1", Answer(key="key-0001"))])
    assert bus.sent == [("h1", forget)]
    assert bus.answered == [("ft:reply:1", Answer(key="key-0001"))]


def test_down_is_down_and_then_up_again() -> None:
    bus = _filled()
    bus.down = True
    for call in (lambda: bus.receive({}, 0), lambda: bus.send([]), lambda: bus.post(PING), lambda: bus.trim({})):
        with pytest.raises(BusDown):
            call()
    bus.down = False
    assert len(bus.receive({}, 0)) == 4


def test_a_wiped_bus_begins_anew_and_old_cursors_hide_nothing() -> None:
    bus = _filled()
    bus.wipe()
    assert bus.receive({}, 0) == []
    bus.post(PING)
    assert [m.id for m in bus.receive({"ft:inbox": "3-0"}, 0)] == ["1-0"]
