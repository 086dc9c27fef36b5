"""Philly (Microsoft) GPU jobs as one table: CSV with `timestamp`, `duration` (seconds) and `num_gpus`, in any order.

Published replays of these tables count seconds from 2017-10-01 00:00:45, where the study period begins, and not from a
virtual cluster's own first job; so do we, and files of several clusters share one axis.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime
from pathlib import Path

from simulations.traces.csv_trace import table
from simulations.traces.row import DEFAULT_GROUP, DEFAULT_TIER, Imported, Row, cell, count, numbered
from simulations.traces.row import seconds_ms as seconds

_COLUMNS = ("timestamp", "duration", "num_gpus")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_EPOCH = datetime(1, 1, 1)  # noqa: DTZ001  # the source's times have no zone: only differences count


def import_philly(path: Path) -> Imported:
    """Rows of a Philly table; the user is `unknown`, a duration of 0 counts as 1 s, jobs without GPUs are left out.

    `submit_ms` counts from 2017-10-01 00:00:45, or from the file's first job where that is earlier.

    Raises:
        TraceError: the file, a column or a cell is not as above.
    """
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    file = str(path)
    for line, (timestamp, duration, num_gpus) in table(path, _COLUMNS):
        gpus = cell(file, line, "num_gpus", num_gpus, lambda text: count(text, least=0))
        row = Row(
            session_id="",
            user="unknown",
            group=DEFAULT_GROUP,
            tier=DEFAULT_TIER,
            submit_ms=cell(file, line, "timestamp", timestamp, _calendar_ms),
            duration_ms=cell(file, line, "duration", duration, seconds) or 1000,
            gpus=gpus,
        )
        if gpus:
            rows.append(row)
        else:
            left_out["no GPUs"] += 1
    zero_ms = min((row.submit_ms for row in rows), default=_ZERO_MS)
    zero_ms = min(zero_ms, _ZERO_MS)
    from_zero = (row._replace(submit_ms=row.submit_ms - zero_ms) for row in rows)
    return Imported(rows=numbered("philly", from_zero), left_out=dict(left_out))


def _calendar_ms(text: str) -> int:
    """Milliseconds on the calendar for `YYYY-MM-DD HH:MM:SS`, whole seconds."""
    allowed = "must be a time such as 2017-10-09 07:01:55"
    if not _TIMESTAMP.fullmatch(text):
        raise ValueError(allowed)
    try:
        since = datetime.fromisoformat(text) - _EPOCH
    except ValueError:
        raise ValueError(allowed) from None
    return (since.days * 86_400 + since.seconds) * 1000


_ZERO_MS = _calendar_ms("2017-10-01 00:00:45")
