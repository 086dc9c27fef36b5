"""Standard Workload Format of the Parallel Workloads Archive: 18 fields a line, `;` begins a comment, -1 is unknown.

Source: https://www.cs.huji.ac.il/labs/parallel/workload/swf.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from simulations.traces.csv_trace import text_lines
from simulations.traces.row import (
    DEFAULT_GROUP,
    DEFAULT_TIER,
    Imported,
    Row,
    TraceError,
    cell,
    count,
    identifier,
    numbered,
    seconds_ms,
)

_FIELDS = 18
_SUBMIT, _RUN, _ALLOCATED, _REQUESTED, _STATUS, _USER, _GROUP = 1, 3, 4, 7, 10, 11, 12  # from 0
_UNKNOWN = "-1"
_PARTS = ("2", "3", "4")  # bursts of a job that another line lists whole


def import_swf(path: Path) -> Imported:
    """Rows of an SWF file, one processor as one GPU: allocated processors, or requested where those are unknown.

    User 7 becomes `u7` (`unknown` where the file has -1), group 2 becomes `g2` (`default`). Jobs that never ran or
    have no processors, and lines that list parts of a job, are left out.

    Raises:
        TraceError: the file, a line or a field is not as above.
    """
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    empty = True
    for line, text in text_lines(path):
        empty = False
        fields = text.split()
        if not fields or fields[0].startswith(";"):
            continue
        row = _row(str(path), line, fields)
        if isinstance(row, Row):
            rows.append(row)
        else:
            left_out[row] += 1
    if empty:
        raise TraceError(str(path), 0, "file", "", "must not be empty")
    return Imported(rows=numbered("swf", rows), left_out=dict(left_out))


def _row(file: str, line: int, fields: list[str]) -> Row | str:
    """The row for one line, or why it is left out."""
    if len(fields) != _FIELDS:
        raise TraceError(file, line, "line", " ".join(fields), f"must have {_FIELDS} fields, has {len(fields)}")
    processors = "allocated" if fields[_ALLOCATED] != _UNKNOWN else "requested"
    place = _ALLOCATED if processors == "allocated" else _REQUESTED
    submit_ms = cell(file, line, "submit time", fields[_SUBMIT], seconds_ms)
    duration_ms = cell(file, line, "run time", fields[_RUN], lambda text: _or_zero(text, seconds_ms))
    gpus = cell(file, line, f"{processors} processors", fields[place], lambda text: _or_zero(text, _processors))
    if fields[_STATUS] in _PARTS:
        return "part of another line's job"
    if not duration_ms:
        return "no run time"
    if not gpus:
        return "no processors"
    return Row(
        session_id="",
        user=cell(file, line, "user", fields[_USER], lambda text: _name("u", text, "unknown")),
        group=cell(file, line, "group", fields[_GROUP], lambda text: _name("g", text, DEFAULT_GROUP)),
        tier=DEFAULT_TIER,
        submit_ms=submit_ms,
        duration_ms=duration_ms,
        gpus=gpus,
    )


def _processors(text: str) -> int:
    return count(text, least=0)


def _or_zero(text: str, parse: Callable[[str], int]) -> int:
    """0 for the format's unknown."""
    return 0 if text == _UNKNOWN else parse(text)


def _name(prefix: str, text: str, unknown: str) -> str:
    return unknown if text == _UNKNOWN else identifier(prefix + text)
