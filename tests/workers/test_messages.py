"""Messages survive the way there and back, and a hostile one is refused with a reason, never half read."""

from __future__ import annotations

import json

import pytest

from workers.protocol import (
    LIMIT,
    Forget,
    Notice,
    ProtocolError,
    Report,
    Result,
    SessionReport,
    Start,
    Stop,
    Throttle,
    encode,
    read_command,
    read_report,
)

COMMON = {"action": "s-1:1", "session": "s-1", "issued_ms": 1, "expires_ms": 2}
START = {**COMMON, "kind": "start", "version": 1, "user": "ada", "argv": ["true"], "gpus": [0], "fraction_m": 1000}


@pytest.mark.parametrize(
    "command",
    [
        Start(**COMMON, user="ada", argv=("x", "é", "a\nb"), gpus=(0, 3), fraction_m=500, grace_signal="USR1"),
        Throttle(**COMMON, granted_m=250, lease_ms=30_000),
        Notice(**COMMON, level="grace", text="save", rule="ladder.grace", until_ms=5),
        Stop(**COMMON, outcome="evicted", wait_ms=0),
        Forget(**COMMON),
    ],
)
def test_a_command_comes_out_as_it_went_in(command) -> None:
    assert read_command(encode(command)) == command


def test_a_report_comes_out_as_it_went_in() -> None:
    session = SessionReport(session="s-1", state="running", busy_ms=1, granted_ms=2, known=False)
    result = Result(action="s-1:1", result="expired")
    report = Report(
        host="h1", boot="b", epoch=1, seq=1, sent_ms=1, full=True, gpus=2, sessions=(session,), results=(result,)
    )
    assert read_report(encode(report)) == report


HOSTILE = {
    "empty": b"",
    "no JSON": b"\x80\x04cos\nsystem\n.",
    "nested": b"[" * 60_000,
    "too large": b'"' + b"x" * LIMIT + b'"',
    "unknown kind": json.dumps(START | {"kind": "exec"}).encode(),
    "other version": json.dumps(START | {"version": 2}).encode(),
    "extra member": json.dumps(START | {"shell": True}).encode(),
    "path as session": json.dumps(START | {"session": "../../etc"}).encode(),
    "newline in session": json.dumps(START | {"session": "s-1\n"}).encode(),
    "long session": json.dumps(START | {"session": "s" * 65}).encode(),
    "no program": json.dumps(START | {"argv": []}).encode(),
    "many arguments": json.dumps(START | {"argv": ["x"] * 257}).encode(),
    "text as number": json.dumps(START | {"fraction_m": "1000"}).encode(),
    "NaN": json.dumps(START | {"fraction_m": float("nan")}).encode(),
    "too much": json.dumps(START | {"fraction_m": 1001}).encode(),
    "negative GPU": json.dumps(START | {"gpus": [-1]}).encode(),
    "a signal that kills": json.dumps(START | {"grace_signal": "KILL"}).encode(),
    "endless lease": json.dumps(
        {**COMMON, "kind": "throttle", "version": 1, "granted_m": 1, "lease_ms": 1 << 60}
    ).encode(),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_command_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_command(raw)


def test_the_command_that_those_were_made_from_is_accepted() -> None:
    """Otherwise the tests above would show nothing."""
    assert read_command(json.dumps(START).encode()).session == "s-1"
