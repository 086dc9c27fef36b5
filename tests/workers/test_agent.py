"""The worker against a real transport: sessions start, are told of, throttled, noticed and stopped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.workers.rig import BURN, HOST, Rig, fill, now_ms, runnable_ns, small_disk, until
from workers.cli import worker
from workers.protocol import encode

DEAF = (sys.executable, "-S", "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")


def test_a_session_runs_in_its_folder_with_a_clean_environment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTIER_SECRET", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    rig.start()
    rig.send("start", "s-1", argv=("sh", "-c", "pwd; env; echo oops >&2; exit 7"), gpus=(1, 3), notebook=True)
    ended = rig.ended("s-1")
    assert (ended.outcome, ended.exit_code, ended.error) == ("failed", 7, "")
    folder = rig.folder("s-1").resolve()
    lines = (folder / "log").read_text().splitlines()
    assert lines[0] == str(folder / "work")
    assert lines[-1] == "oops"
    environment = dict(line.split("=", 1) for line in lines[1:-1])
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["FAIRTIER_GPUS"] == "1,3"
    assert environment["FAIRTIER_SESSION"] == "s-1"
    assert Path(environment["JUPYTER_RUNTIME_DIR"]) == folder / "runtime"
    assert "hidden" not in environment.values()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("no-such-program",), 127, "not found"),
        (("/etc/passwd",), 126, "ermission denied"),
        (("exit", "0"), 127, "not found"),
        (("eval", "echo injected"), 127, "not found"),
        (("printf", "%s|", '"; echo injected >&2; "', "$(id)", "`id`"), 0, '"; echo injected >&2; "|$(id)|`id`|'),
    ],
)
def test_a_program_is_executed_and_nothing_is_a_shell_script(rig: Rig, argv, code: int, words: str) -> None:
    rig.start()
    rig.send("start", "s-1", argv=argv)
    ended = rig.ended("s-1")
    assert ended.exit_code == code
    assert ended.outcome == ("failed" if code else "completed")
    assert words in (rig.folder("s-1") / "log").read_text()


def test_the_same_start_delivered_again_or_after_a_flush_starts_nothing_twice(rig: Rig) -> None:
    rig.start()
    start = rig.command("start", "s-1", argv=("sh", "-c", "echo started; sleep 60"))
    rig.deliver(start, start)
    until(lambda: len(rig.pids("s-1")) == 3)
    pids = rig.pids("s-1")
    rig.client.flushall()
    rig.reread()
    rig.deliver(start)
    other = rig.command("start", "s-1", argv=("sh", "-c", "echo other"))
    rig.deliver(other)
    assert until(lambda: rig.result(other)).result == "done"
    until(lambda: [r for report in rig.read()[-3:] for r in report.results if r.action == start.action])
    assert (rig.folder("s-1") / "log").read_text() == "started\n"
    assert rig.pids("s-1") == pids


def test_a_flush_heals_and_a_server_that_comes_back_empty_too(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sleep", "60"))
    rig.client.flushall()
    rig.reread()
    rig.send("start", "s-2", argv=("sleep", "60"))
    until(lambda: rig.session("s-2"))
    rig.server.stop()
    time.sleep(0.3)
    rig.server.start()
    rig.reread()
    rig.reports.clear()
    until(lambda: any(report.full and len(report.sessions) == 2 for report in rig.read()), 3)
    rig.send("start", "s-3", argv=("sleep", "60"))
    assert until(lambda: rig.session("s-3")).state == "running"


@pytest.mark.slow
def test_a_stream_whose_ids_begin_again_is_read_from_its_beginning(rig: Rig) -> None:
    """As after a restart of the server with a clock that was set back."""
    rig.start()
    rig.running("s-1", argv=("sleep", "60"))
    stop = rig.command("stop", "s-1", outcome="cancelled", wait_ms=100)
    rig.client.flushall()
    rig.reread()
    rig.client.xadd(f"ft:cmd:{HOST}", {"m": encode(stop)}, id="5-1")
    assert rig.ended("s-1", 12).outcome == "cancelled"


def test_a_throttle_is_kept_measured_and_lapses_by_itself(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=BURN)
    rig.send("throttle", "s-1", granted_m=250, lease_ms=2000)
    until(lambda: rig.session("s-1").granted_m == 250)
    before, began = rig.session("s-1"), time.monotonic()
    pids, used = rig.pids("s-1"), runnable_ns(rig.pids("s-1"))
    time.sleep(1.5)
    assert (runnable_ns(pids) - used) / 1.5e9 == pytest.approx(0.25, abs=0.1)
    until(lambda: rig.session("s-1").granted_m == 1000, 3)
    after, took_ms = rig.session("s-1"), 1000 * (time.monotonic() - began)
    granted = after.granted_ms - before.granted_ms
    quarter_ms = min(took_ms, 2000)  # the lease; whatever comes later, on a busy machine, is granted whole
    assert granted == pytest.approx(0.25 * quarter_ms + (took_ms - quarter_ms), abs=300)
    assert before.busy_ms < after.busy_ms <= after.granted_ms
    assert after.busy_ms - before.busy_ms == pytest.approx(granted, abs=300)


def test_a_notice_is_for_people_and_programs_and_clear_takes_it_back(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sleep", "60"))
    rig.send("notice", "s-1", level="warn", text="GPU busy\x1b[2J", rule="ladder.warn", until_ms=1_700_000_000_000)
    notice = rig.folder("s-1") / "notice"
    until((rig.folder("s-1") / "notice.json").exists)
    assert notice.read_text() == "GPU busy\ufffd[2J\nlevel: warn\nrule: ladder.warn\nuntil: 2023-11-14T22:13:20Z\n"
    assert json.loads((rig.folder("s-1") / "notice.json").read_text())["text"] == "GPU busy\x1b[2J"
    rig.send("notice", "s-1", level="clear", text="")
    until(lambda: not notice.exists())
    assert not (rig.folder("s-1") / "notice.json").exists()


def test_a_grace_signals_the_program_and_sees_that_it_saved(rig: Rig) -> None:
    rig.start()
    answer = 'trap \'sleep 0.1; touch "$FAIRTIER_DIR/saved"\' USR1; touch "$FAIRTIER_DIR/saved"; echo up; '
    saves = answer + "while :; do sleep 0.05; done"
    rig.running("s-1", argv=("sh", "-c", saves), grace_signal="USR1")
    until(lambda: "up" in (rig.folder("s-1") / "log").read_text())
    assert not rig.session("s-1").saved
    rig.send("notice", "s-1", level="grace", text="save now")
    until(lambda: rig.session("s-1").saved, 2, "an old file is no answer, the new one is")
    rig.send("notice", "s-1", level="clear", text="")
    until(lambda: not rig.session("s-1").saved)


def test_a_grace_without_an_answer_is_not_saved(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sh", "-c", 'touch "$FAIRTIER_DIR/saved"; sleep 60'))
    until((rig.folder("s-1") / "saved").exists)
    rig.send("notice", "s-1", level="grace", text="save now")
    time.sleep(0.8)
    assert not rig.session("s-1").saved


def test_a_stop_asks_first_and_keeps_what_the_program_said(rig: Rig) -> None:
    rig.start()
    argv = (
        sys.executable,
        "-S",
        "-c",
        "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(5)); print(1, flush=True); time.sleep(60)",
    )
    rig.running("s-1", argv=argv)
    until(lambda: (rig.folder("s-1") / "log").read_text())
    rig.send("throttle", "s-1", granted_m=1, lease_ms=60_000)
    stop = rig.send("stop", "s-1", outcome="evicted", wait_ms=5000)
    ended = rig.ended("s-1", 3)
    assert (ended.outcome, ended.exit_code) == ("evicted", 5)
    assert until(lambda: rig.result(stop)).result == "done"
    assert rig.left() == {"processes": 0, "cgroups": 0}


def test_a_stop_does_not_wait_longer_than_it_was_told(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=DEAF)
    time.sleep(0.2)
    began = time.monotonic()
    rig.send("stop", "s-1", outcome="cancelled", wait_ms=600)
    ended = rig.ended("s-1", 3)
    assert 0.5 < time.monotonic() - began < 1.5
    assert (ended.outcome, ended.exit_code) == ("cancelled", 137)


def test_a_session_that_had_ended_keeps_its_own_outcome(rig: Rig) -> None:
    rig.start()
    rig.send("start", "s-1", argv=("true",))
    rig.ended("s-1")
    stop = rig.send("stop", "s-1", outcome="evicted", wait_ms=0)
    assert until(lambda: rig.result(stop)).result == "done"
    assert rig.session("s-1").outcome == "completed"


def test_a_stop_that_overtook_its_start_wins(rig: Rig) -> None:
    """After a flush commands come again in any order."""
    rig.start()
    rig.send("stop", "s-1", outcome="cancelled", wait_ms=0)
    assert rig.ended("s-1").outcome == "cancelled"
    start = rig.send("start", "s-1", argv=("true",))
    assert until(lambda: rig.result(start)).detail == "known already"
    assert not rig.folder("s-1").exists()


def test_what_a_program_leaves_behind_ends_with_it(rig: Rig) -> None:
    rig.start()
    rig.send("start", "s-1", argv=("sh", "-c", "setsid sleep 60 & exit 0"))
    assert rig.ended("s-1").outcome == "completed"
    assert rig.left() == {"processes": 0, "cgroups": 0}


def test_a_log_is_capped_and_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTIER_LOG_CAP_BYTES", "65536")
    rig.start()
    rig.running("s-1", argv=("sh", "-c", "seq 1 40000; sleep 0.6; echo more; sleep 60"))
    log = rig.folder("s-1") / "log"
    until(lambda: log.read_text() == "more\n", 4)
    kept = (rig.folder("s-1") / "log.1").read_text()
    assert len(kept) == 32768
    assert kept.endswith("40000\n")


def test_an_expired_command_is_answered_and_not_obeyed(rig: Rig) -> None:
    rig.start()
    start = rig.send("start", "s-1", argv=("true",), expires_ms=now_ms() - 1)
    assert until(lambda: rig.result(start)).result == "expired"
    assert rig.session("s-1") is None
    assert not rig.folder("s-1").exists()


def test_a_session_that_is_forgotten_is_told_no_more_and_its_folder_stays(rig: Rig) -> None:
    rig.start()
    rig.send("start", "s-1", argv=("true",))
    rig.ended("s-1")
    forget = rig.send("forget", "s-1")
    until(lambda: rig.result(forget))
    seen = len(rig.read())
    until(lambda: any(report.full for report in rig.read()[seen + 1 :]))
    assert rig.read()[-1].sessions == ()
    assert (rig.folder("s-1") / "exit").read_text() == "0\n"


def test_what_cannot_be_obeyed_fails_with_a_reason(rig: Rig) -> None:
    rig.start()
    for kind, fields in [
        ("throttle", {"granted_m": 500, "lease_ms": 1000}),
        ("notice", {"level": "warn", "text": "x"}),
        ("start", {"argv": ("true",), "gpus": (9,)}),
        ("start", {"argv": ("a\0b",)}),
    ]:
        command = rig.send(kind, f"{kind}-{len(fields)}-x", **fields)
        result = until(lambda c=command: rig.result(c))
        assert result.result == "failed"
        assert result.detail
    assert rig.ended("start-1-x").outcome == "failed"


def test_unreadable_commands_are_skipped_and_logged(rig: Rig) -> None:
    rig.start()
    for raw in (b"", b"[" * 50_000, b'{"kind":"start"}', b"\xff\xfe"):
        rig.client.xadd(f"ft:cmd:{HOST}", {"m": raw})
    rig.client.xadd(f"ft:cmd:{HOST}", {"other": b"field"})
    rig.running("s-1", argv=("sleep", "60"))
    assert rig.log().count("unreadable command skipped") == 4


def test_reports_are_counted_and_nothing_secret_is_logged(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sh", "-c", "sleep 60 # hush"))
    assert [report.seq for report in rig.read()] == list(range(1, len(rig.reports) + 1))
    assert {report.epoch for report in rig.reports} == {1}
    assert "hush" not in rig.log()
    assert all(json.loads(line)["event"] for line in rig.log().splitlines())


def test_a_full_disk_fails_a_start_and_nothing_else(rig: Rig) -> None:
    with small_disk(rig.state, "512k"):
        rig.start()
        rig.running("s-1", argv=("sleep", "60"))
        until(lambda: len(rig.pids("s-1")) == 2)
        fill(rig.state / "filler")
        starts = [rig.send("start", f"full-{n}", argv=("true",)) for n in range(40)]
        until(lambda: any(r and r.result == "failed" for r in map(rig.result, starts)), 5)
        stop = rig.send("stop", "s-1", outcome="cancelled", wait_ms=100)
        assert rig.ended("s-1").outcome == "cancelled"
        (rig.state / "filler").unlink()
        rig.send("start", "s-2", argv=("true",))
        assert rig.ended("s-2").outcome == "completed"
        assert until(lambda: rig.result(stop)).result == "done"
        rig.close()


def test_options_out_of_bounds_are_refused_with_their_name() -> None:
    for arguments, words in [
        (["--redis", "unix:///x"], "--emulate"),
        (["--redis", "redis://:pw@x", "--emulate", "1"], "FAIRTIER_REDIS"),
        (["--emulate", "1"], "--redis"),
        (["--redis", "localhost", "--emulate", "1"], "--redis"),
        (["--redis", "unix:///x", "--emulate", "1", "--report-s", "0"], "--report-s"),
        (["--redis", "unix:///x", "--emulate", "1", "--host", "../x"], "--host"),
    ]:
        answer = CliRunner(env={"FAIRTIER_REDIS": None}).invoke(worker, arguments)
        assert answer.exit_code == 2
        assert words in answer.output
        assert "pw@" not in answer.output
