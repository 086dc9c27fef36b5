"""A run's files: complete or not there, never over what is no file, and the digest of what was written."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from scheduler.errors import BadInput, FairTierError
from simulations import recorder as recorders
from simulations.loop import Batch, Work
from simulations.recorder import FILES, Recorder, check_target, held, move_all, session_line
from simulations.traces.row import Row


def work(name: str, start_ms: int = -1, end_ms: int = -1, outcome: str = "") -> Work:
    made = Work(Row(name, "ann", "default", "free", 1500, 60_000, kind="student"))
    made.start_ms, made.end_ms, made.outcome = start_ms, end_ms, outcome
    return made


def record(out: Path | None, journal: Path | None = None, name: str = "a", summary: str = "{}") -> Recorder:
    with Recorder(out, journal) as recorder:
        recorder.write(Batch([], [work(name, 2000, 62_000, "completed")], 62_000))
        recorder.finish()
        recorder.publish(summary)
    return recorder


def begin_and_raise(out: Path, journal: Path | None, error: type[BaseException]) -> None:
    with Recorder(out, journal) as recorder:
        recorder.write(Batch([], [work("new", 2000, 3000, "completed")], 3000))
        recorder.finish()
        raise error


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_session_line_has_times_in_seconds_and_unknown_fields_empty() -> None:
    """Waits end with the start or the outcome; a session that still waits has neither end nor wait."""
    done = session_line(work("a", 2000, 62_001, "completed"))
    assert done == "a,ann,free,student,1.5,2,62.001,0.5,completed,1,,0.0,0.0,0,0,0\n"
    gone = session_line(work("b", -1, 4000, "abandoned"))
    assert gone == "b,ann,free,student,1.5,,4,2.5,abandoned,1,,0.0,0.0,0,0,0\n"
    assert session_line(work("c")) == "c,ann,free,student,1.5,,,,,1,,0.0,0.0,0,0,0\n"


def test_the_digest_is_of_the_files_and_the_same_without_them(tmp_path: Path) -> None:
    """SHA-256 of sessions.csv followed by decisions.jsonl, whether or not they are kept."""
    out = tmp_path / "deep" / "out"
    kept = record(out)
    content = (out / "sessions.csv").read_bytes() + (out / "decisions.jsonl").read_bytes()
    assert kept.digest == hashlib.sha256(content).hexdigest() == record(None).digest
    assert names(out) == set(FILES)


def test_sessions_are_written_in_the_order_of_their_arrival() -> None:
    """A session that ended earlier waits for those before it; one without an end comes last of all."""
    with Recorder(None, None) as recorder:
        first, second = work("first", 2000), work("second", 2000, 3000, "completed")
        recorder.write(Batch([], [first, second], 3000))
        assert recorder.tally.submitted == 0
        first.end_ms, first.outcome = 4000, "completed"
        recorder.write(Batch([], [work("third")], 4000))
        assert recorder.tally.submitted == 2
        recorder.finish()
        assert (recorder.tally.submitted, recorder.waited) == (3, {"student": 2})


def test_what_is_not_published_leaves_the_older_files_and_nothing_else(tmp_path: Path) -> None:
    """An exception, at whatever point, keeps the complete older run."""
    out, journal = tmp_path / "out", tmp_path / "j.jsonl"
    record(out, journal, "old")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for error in (KeyboardInterrupt, SystemExit, ZeroDivisionError):
        with pytest.raises(error):
            begin_and_raise(out, journal, error)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == {"out", "j.jsonl"}
    assert names(out) == set(FILES)


def test_folders_made_for_a_run_that_failed_are_gone(tmp_path: Path) -> None:
    """`--out a/b/c` leaves no empty folders behind."""
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path / "a" / "b", tmp_path / "a" / "b" / "j"):
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_the_journal_goes_beside_the_files_or_elsewhere(tmp_path: Path) -> None:
    """Its folder may be the one that --out makes; otherwise it has to exist."""
    record(tmp_path / "out", tmp_path / "out" / "j.jsonl")
    assert names(tmp_path / "out") == {*FILES, "j.jsonl"}
    with pytest.raises(BadInput, match="there is no folder") as caught:
        Recorder(None, tmp_path / "none" / "j.jsonl")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'none'}"


def test_a_journal_follows_a_link_to_its_file(tmp_path: Path) -> None:
    """The link stays a link."""
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old")
    link.symlink_to(real)
    record(None, link)
    assert link.is_symlink()
    assert real.read_text() == ""


@pytest.mark.parametrize("place", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "pipe", "folder"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, place: str) -> None:
    """A rename would put a file where a device was: only names that can hold a file are taken."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    target = tmp_path / place
    before = os.lstat(target).st_mode
    with pytest.raises(BadInput, match=r"left alone|is a folder"):
        check_target(target)
    with pytest.raises(BadInput):
        Recorder(None, target)
    assert os.lstat(target).st_mode == before


def test_places_that_cannot_take_the_files_are_refused_at_once(tmp_path: Path) -> None:
    """A file where a folder must be, a folder where a file must be, two files of one name."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out" / "summary.json").mkdir(parents=True)
    for out, journal, message in (
        (tmp_path / "file", None, "is a file, not a folder"),
        (tmp_path / "out", None, "is a folder, not a file"),
        (tmp_path / "new", tmp_path / "new" / "sessions.csv", "is a file that --out writes"),
    ):
        with pytest.raises(BadInput, match=message):
            Recorder(out, journal)
    with pytest.raises(BadInput, match="Not a directory"), Recorder(tmp_path / "file" / "x", None):
        raise AssertionError
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"file", "out"}


class FullDisk:
    """A file on a disk without space; what it holds fails once more when it is closed."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def writelines(self, lines: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_to_a_full_disk(out: Path) -> None:
    with Recorder(out, None) as recorder:
        recorder._decisions = FullDisk(recorder._decisions)  # type: ignore[assignment]
        recorder._files[1] = recorder._decisions
        recorder.write(Batch([], [], 0))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """The error of the write wins over those of closing, and the drafts are removed."""
    record(tmp_path / "out", name="old")
    old = (tmp_path / "out" / "sessions.csv").read_bytes()
    with pytest.raises(FairTierError, match="No space left on device; nothing there was changed") as caught:
        write_to_a_full_disk(tmp_path / "out")
    assert (caught.value.exit_code, caught.value.hint) == (1, "free some space, or write to another disk")
    assert names(tmp_path / "out") == set(FILES)
    assert (tmp_path / "out" / "sessions.csv").read_bytes() == old


def test_when_one_file_cannot_be_moved_those_before_it_are_put_back(tmp_path: Path) -> None:
    """Whoever looks finds one run's files, also where the last rename fails."""
    drafts, out = tmp_path / "drafts", tmp_path / "out"
    for folder, content in ((drafts, "new"), (out, "old")):
        folder.mkdir()
        (folder / "a").write_text(content)
    (drafts / "b").write_text("new")
    moves = [(drafts / "a", out / "a"), (drafts / "b", out / "b"), (drafts / "missing", out / "c")]
    with pytest.raises(FileNotFoundError):
        move_all(moves)
    assert (names(out), (out / "a").read_text()) == ({"a"}, "old")


def test_a_file_system_without_hard_links_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older file is kept as a copy while the new ones are moved."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(recorders.os, "link", refuse)
    test_when_one_file_cannot_be_moved_those_before_it_are_put_back(tmp_path)


def test_runs_that_end_together_leave_the_files_of_one(tmp_path: Path) -> None:
    """Many writers of one folder: sessions.csv and summary.json always belong together."""

    def write(name: str) -> None:
        for _ in range(20):
            record(tmp_path, name=name, summary=name)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = (tmp_path / "summary.json").read_text().strip()
    assert (tmp_path / "sessions.csv").read_text().splitlines()[1].startswith(f"{summary},")
    assert names(tmp_path) == set(FILES)


def test_signals_held_back_take_effect_afterwards() -> None:
    """Ctrl-C inside is neither lost nor early."""
    reached = []

    def interrupted() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
