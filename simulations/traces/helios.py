"""Helios (SenseTime) GPU jobs as the Gen-Parallel-Workloads data set lists them.

CSV with the columns `user`, `gpu_num`, `run_time` (seconds) and `t` (submit time, seconds from the file's own zero);
others are passed over.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from simulations.traces.csv_trace import table
from simulations.traces.row import DEFAULT_GROUP, DEFAULT_TIER, Imported, Row, cell, count, identifier, numbered
from simulations.traces.row import seconds_ms as seconds

_COLUMNS = ("user", "gpu_num", "run_time", "t")


def import_helios(path: Path) -> Imported:
    """Rows of a Helios file: user `7` becomes `u7`, a run time of 0 counts as 1 s, jobs without GPUs are left out.

    Raises:
        TraceError: the file, a column or a cell is not as above.
    """
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    file = str(path)
    for line, (user, gpu_num, run_time, t) in table(path, _COLUMNS):
        gpus = cell(file, line, "gpu_num", gpu_num, lambda text: count(text, least=0))
        row = Row(
            session_id="",
            user=cell(file, line, "user", user, lambda text: identifier(f"u{text}")),
            group=DEFAULT_GROUP,
            tier=DEFAULT_TIER,
            submit_ms=cell(file, line, "t", t, seconds),
            duration_ms=cell(file, line, "run_time", run_time, seconds) or 1000,
            gpus=gpus,
        )
        if gpus:
            rows.append(row)
        else:
            left_out["no GPUs"] += 1
    return Imported(rows=numbered("helios", rows), left_out=dict(left_out))
