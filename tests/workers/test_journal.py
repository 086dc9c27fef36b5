"""The journal keeps what was obeyed and what runs, in one commit for a batch, and does not grow for ever."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.workers.rig import fill, small_disk
from workers.journal import KEEP_MS, Journal, JournalError
from workers.protocol import Result, Start
from workers.session import Session


def start(number: int) -> Start:
    return Start(
        action=f"a-{number}",
        session=f"s-{number}",
        issued_ms=0,
        expires_ms=1,
        user="ada",
        argv=("true",),
        gpus=(0,),
        fraction_m=1000,
    )


def test_a_command_delivered_again_is_answered_and_not_repeated(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j" / "journal.sqlite")
    assert journal.accept([start(1), start(2)], 0).new == [start(1), start(2)]
    again = journal.accept([start(1), start(3)], 0)
    assert again.new == [start(3)]
    assert again.answered == []  # still at work
    done = Result(action="a-1", result="done", detail="x")
    journal.save([], [done])
    assert journal.accept([start(1)], 0).answered == [done]
    journal.close()


def test_another_worker_finds_sessions_unfinished_commands_and_counts_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    assert journal.next_epoch() == 1
    journal.accept([start(1), start(2)], 0)
    session = Session.of(start(1))
    session.begin(4711, 99, "boot", 5)
    session.granted_ns = 1 << 60
    journal.save([session], [Result(action="a-1", result="done")])
    journal.close()
    journal = Journal(path)
    assert journal.next_epoch() == 2
    assert journal.sessions() == [session]
    assert journal.unfinished() == [start(2)]
    journal.save([], forgotten=["s-1"])
    assert journal.sessions() == []
    journal.close()


def test_a_second_worker_of_the_same_host_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(JournalError, match="another worker"):
        Journal(tmp_path / "journal.sqlite")
    journal.close()
    Journal(tmp_path / "journal.sqlite").close()


def test_finished_actions_go_after_a_day_and_unfinished_ones_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.accept([start(1), start(2)], 1000)
    journal.save([], [Result(action="a-1", result="done")])
    assert journal.prune(1000 + KEEP_MS) == 0
    assert journal.prune(1001 + KEEP_MS) == 1
    assert journal.unfinished() == [start(2)]
    journal.close()


def test_a_hundred_commands_cost_one_commit(tmp_path: Path) -> None:
    """100 starts/s must be possible: a batch takes far less than a second, also on a slow disk."""
    journal = Journal(tmp_path / "journal.sqlite")
    began = time.monotonic()
    journal.accept([start(n) for n in range(100)], 0)
    assert time.monotonic() - began < 0.5
    journal.close()


def test_a_disk_without_space_is_an_error_that_says_so(tmp_path: Path) -> None:
    """And once there is space again the journal goes on."""
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        journal = Journal(disk / "journal.sqlite")
        fill(disk / "filler")
        with pytest.raises(JournalError, match="full"):
            journal.accept([start(n) for n in range(500)], 0)
        (disk / "filler").unlink()
        assert journal.accept([start(1)], 0).new == [start(1)]
        journal.close()
