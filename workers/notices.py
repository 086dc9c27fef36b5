"""What a session's people are told, and how its program says that it has saved its work.

In the session's folder: `notice` for people, `notice.json` for programs (a Jupyter extension). During a grace the
program answers by creating or touching `saved`.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.protocol import Notice

FILES = ("notice", "notice.json")


def write(folder: Path, notice: Notice) -> None:
    """Put a notice where the session's people look, or take it back (`clear`). OSError when that is impossible."""
    if notice.level == "clear":
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return
    until = _utc(notice.until_ms) if notice.until_ms is not None else None
    lines = [_printable(notice.text), f"level: {notice.level}", f"rule: {_printable(notice.rule)}"]
    document = {"schema": 1, "level": notice.level, "text": notice.text, "rule": notice.rule, "until": until}
    _replace(folder / "notice", "\n".join([*lines, *([f"until: {until}"] if until else [])]) + "\n")
    _replace(folder / "notice.json", json.dumps(document) + "\n")


def mark(folder: Path) -> str:
    """What `saved` is now: a later one that differs was made after this. "" = there is none."""
    try:
        found = (folder / "saved").stat()
    except OSError:
        return ""
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"


def _replace(file: Path, text: str) -> None:
    """Whole or not at all, also for who reads at this moment."""
    new = file.with_name(file.name + ".new")
    try:
        new.write_text(text, encoding="utf-8", errors="replace")
        new.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _utc(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError):
        return "9999-12-31T23:59:59Z"


def _printable(text: str) -> str:
    """Text that a terminal cannot take for an order."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
