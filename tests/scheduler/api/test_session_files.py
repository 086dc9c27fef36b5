"""What sessions wrote is read as data of strangers: regular files of the session only, and no more than asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scheduler.api.session_files import LOG_LIMIT, notebook_url, read_log

SERVER = {"url": "http://127.0.0.1:8888/", "token": "abc", "pid": 1}


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = tmp_path / "sessions" / "s-1"
    (path / "runtime").mkdir(parents=True)
    return path


def test_a_log_is_read_piece_by_piece(tmp_path: Path, session: Path) -> None:
    (session / "log").write_bytes(b"0123456789")
    assert read_log(tmp_path, "s-1", 0, 4) == (0, b"0123", 10)
    assert read_log(tmp_path, "s-1", 4, 100) == (4, b"456789", 10)
    assert read_log(tmp_path, "s-1", 10, 100) == (10, b"", 10)
    assert read_log(tmp_path, "s-1", -3, 100) == (7, b"789", 10)
    assert read_log(tmp_path, "s-1", -100, 100) == (0, b"0123456789", 10)


def test_a_log_that_was_cut_is_read_from_its_begin(tmp_path: Path, session: Path) -> None:
    (session / "log").write_bytes(b"new")
    assert read_log(tmp_path, "s-1", 1_000_000, 100) == (0, b"new", 3)


def test_no_more_than_the_limit_is_given(tmp_path: Path, session: Path) -> None:
    (session / "log").write_bytes(b"x" * (LOG_LIMIT + 1))
    assert len(read_log(tmp_path, "s-1", 0, 1 << 40).content) == LOG_LIMIT


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read_log(tmp_path, "s-1", 5, 100) == (0, b"", 0)


def test_links_pipes_and_folders_are_not_read(tmp_path: Path, session: Path) -> None:
    """A pipe would never end, a link may point anywhere."""
    (tmp_path / "secret").write_bytes(b"secret")
    log = session / "log"
    log.symlink_to(tmp_path / "secret")
    assert read_log(tmp_path, "s-1", 0, 100).content == b""
    log.unlink()
    os.mkfifo(log)
    assert read_log(tmp_path, "s-1", 0, 100).content == b""
    log.unlink()
    log.mkdir()
    assert read_log(tmp_path, "s-1", 0, 100).content == b""


def test_the_address_has_the_token(tmp_path: Path, session: Path) -> None:
    assert notebook_url(tmp_path, "s-1") is None
    (session / "runtime" / "jpserver-7.json").write_text(json.dumps(SERVER))
    assert notebook_url(tmp_path, "s-1") == "http://127.0.0.1:8888/?token=abc"
    assert notebook_url(tmp_path, "s-2") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 60_000,
        json.dumps(SERVER)[:-9],
        json.dumps(SERVER | {"url": "javascript:alert(1)"}),
        json.dumps(SERVER | {"token": 1}),
        json.dumps({"url": "http://x/"}),
        json.dumps(SERVER | {"more": "x" * 70_000}),
    ],
)
def test_an_address_that_is_none_is_not_shown(tmp_path: Path, session: Path, content: str) -> None:
    (session / "runtime" / "jpserver-7.json").write_text(content)
    assert notebook_url(tmp_path, "s-1") is None


def test_an_address_is_not_read_through_a_link(tmp_path: Path, session: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps(SERVER))
    (session / "runtime" / "jpserver-7.json").symlink_to(tmp_path / "elsewhere")
    assert notebook_url(tmp_path, "s-1") is None
