"""What a task leaves on disk: `STATE/tasks/TASK/` with its files, its result, and a lock while it runs.

The result is the only thing that says a task has ended. It appears whole or not at all, and it is read as data that
somebody else may have written: of bounded size, a regular file, every member checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import Any

RESULT, LOCK, DRAFT = "result.json", "lock", ".result.json.new"
LIMIT = 1024 * 1024
"""Bytes of a result; files of any size go beside it."""
LONGEST_ERROR = 2000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOOKS, _LOOK_S = 10, 0.01


class TooLarge(ValueError):
    """A result of more than `LIMIT` bytes."""


def is_task(name: str) -> bool:
    """Whether a name can be a task's: letters, digits, `_` and `-`, at most 64."""
    return _NAME.fullmatch(name) is not None


def folder(state: Path, task: str) -> Path:
    """Where a task's files are; ValueError for a name that can be none."""
    if not is_task(task):
        raise ValueError(f"{task!r} is no name of a task")
    return state / "tasks" / task


def claim(state: Path, task: str) -> int | None:
    """Take the task's lock and make its folder; a file descriptor that holds it, or None while somebody runs it.

    The lock is inherited by child processes and falls when the last of them has ended, however it ended.
    """
    place = folder(state, task)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for _ in range(_LOOKS):  # `is_claimed` holds it for a moment to look
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        time.sleep(_LOOK_S)
    os.close(handle)
    return None


def is_claimed(state: Path, task: str) -> bool:
    """Whether somebody runs the task now."""
    try:
        handle = os.open(folder(state, task) / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def write_outcome(state: Path, task: str, outcome: dict[str, Any]) -> None:
    """Put a task's result in place; it is on disk when this returns. `TooLarge`, `OSError`."""
    raw = json.dumps(outcome, allow_nan=False).encode()
    if len(raw) > LIMIT:
        raise TooLarge(f"a result of {len(raw)} bytes: at most {LIMIT} are kept; larger data goes into a file")
    place = folder(state, task)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = place / DRAFT
    with draft.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(place / RESULT)
    _sync(place)


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_outcome(state: Path, task: str, made_ms: int) -> dict[str, Any] | None:
    """A task's result: `ok`, `attempt`, and `result` (an object) or `error` and `retry`.

    One that cannot be read counts as a failure that is final. None = there is none, or it is of another task, made at
    another time than `made_ms`, that had this name.
    """
    try:
        raw = _read(folder(state, task) / RESULT)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _broken(f"cannot be read: {error.strerror or error}")
    if raw is None:
        return _broken(f"is no regular file of at most {LIMIT} bytes")
    try:
        return _checked(json.loads(raw), made_ms)
    except (ValueError, RecursionError):
        return _broken("is not JSON")


def clear(state: Path, task: str, keep: tuple[str, ...] = (LOCK,)) -> None:
    """Empty a task's folder of what an earlier run left that was killed, or another task of this name."""
    for entry in folder(state, task).iterdir():
        if entry.name not in keep:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def remove(state: Path, task: str) -> None:
    """Delete everything that a task left; nothing happens when there is nothing."""
    shutil.rmtree(folder(state, task), ignore_errors=True)


def _read(path: Path) -> bytes | None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LIMIT:
            return None
        return file.read(LIMIT)


def _checked(entry: object, made_ms: int) -> dict[str, Any] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("ok"), bool):
        return _broken("is not of the form that it should be")
    if entry.get("made_ms") != made_ms:
        return None
    attempt, ok = entry.get("attempt"), entry["ok"]
    body = entry.get("result") if ok else entry.get("error")
    if type(attempt) is not int or not isinstance(body, dict if ok else str):
        return _broken("is not of the form that it should be")
    if ok:
        return {"ok": True, "attempt": attempt, "result": body}
    retry = entry.get("retry") is True
    return {"ok": False, "attempt": attempt, "error": str(body)[:LONGEST_ERROR], "retry": retry}


def _broken(what: str) -> dict[str, Any]:
    return {"ok": False, "attempt": 0, "error": f"its {RESULT} {what}", "retry": False}
