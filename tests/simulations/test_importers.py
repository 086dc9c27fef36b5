"""Public files become rows: the real ones join their published replays row by row, and bad ones are named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.traces.csv_trace import read_trace, write_trace
from simulations.traces.importers import IMPORTERS, import_trace
from simulations.traces.row import Row, TraceError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
REPLAYS = SHARED / "reference" / "replays"
HELIOS = SHARED / "traces" / "helios_10796.csv"
PHILLY = SHARED / "traces" / "philly_11cb48.csv"
HPC2N = SHARED / "traces" / "hpc2n_first3170.swf"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real traces is not beside this one")

HELIOS_HEAD = "u_id,user,gpu_num,cpu_num,node_num,interval,run_time,wall_time,new_status,t\n"
PHILLY_HEAD = "timestamp,duration,num_gpus,gpu_time,cluster\n"


def made(folder: Path, source: str, content: str | bytes) -> tuple[list[Row], dict[str, int]]:
    """What an importer makes of a file with that content."""
    path = folder / f"in.{source}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    imported = import_trace(source, path)
    return imported.rows, imported.left_out


def replay(name: str) -> list[dict[str, str]]:
    """The rows of a published replay."""
    with (REPLAYS / name).open(newline="") as file:
        return list(csv.DictReader(file))


# ---- the real files


@needs_shared
def test_helios_joins_its_replay_row_by_row() -> None:
    imported = import_trace("helios", HELIOS)
    expected = [
        (f"helios-{row['row']}", int(row["submit_s"]) * 1000) for row in replay("helios_10796_fifo_768pooled.csv")
    ]
    assert [(row.session_id, row.submit_ms) for row in imported.rows] == expected
    assert len(expected) == 10_796
    assert imported.left_out == {}
    assert len({row.user for row in imported.rows}) == 95


@needs_shared
def test_philly_joins_its_replay_in_order() -> None:
    imported = import_trace("philly", PHILLY)
    expected = [
        (int(row["gpus"]), int(row["submit_s"]) * 1000, int(row["duration_s"]) * 1000)
        for row in replay("philly_11cb48_fifo_consolidate_16x8.csv")
    ]
    assert [(row.gpus, row.submit_ms, row.duration_ms) for row in imported.rows] == expected
    assert len(expected) == 11_897
    assert (imported.left_out, {row.user for row in imported.rows}) == ({}, {"unknown"})


@needs_shared
def test_hpc2n_leaves_out_what_never_ran() -> None:
    imported = import_trace("swf", HPC2N)
    assert (len(imported.rows), imported.left_out) == (3_145, {"no run time": 25})
    assert (imported.rows[0].gpus, imported.rows[0].duration_ms, imported.rows[0].group) == (30, 31_405_000, "g1")


@needs_shared
@pytest.mark.parametrize(("source", "path"), [("helios", HELIOS), ("philly", PHILLY), ("swf", HPC2N)])
def test_an_imported_file_is_a_good_trace(tmp_path: Path, source: str, path: Path) -> None:
    rows = import_trace(source, path).rows
    assert [row.session_id for row in rows] == [f"{source}-{at}" for at in range(len(rows))]
    write_trace(tmp_path / "t.csv", rows)
    assert list(read_trace(tmp_path / "t.csv")) == rows


# ---- rules by example


def test_helios_rules(tmp_path: Path) -> None:
    rows, left_out = made(
        tmp_path,
        "helios",
        HELIOS_HEAD
        + "0,7,2,1,1,0,0,0,Pass,20\n1,8,0,1,1,0,9,0,Pass,5\n2,9,1,1,1,0,9.5,0,Killed,10\n3,7,1,1,1,0,3,0,Pass,20\n",
    )
    assert rows == [
        Row("helios-0", "u9", "default", "free", 10_000, 9_500, 1),
        Row("helios-1", "u7", "default", "free", 20_000, 1_000, 2),
        Row("helios-2", "u7", "default", "free", 20_000, 3_000, 1),
    ]
    assert left_out == {"no GPUs": 1}


def test_philly_counts_from_the_start_of_the_study(tmp_path: Path) -> None:
    rows, left_out = made(
        tmp_path,
        "philly",
        PHILLY_HEAD
        + "2017-10-01 00:01:55,61.0,1,61.0,x\r\n2017-10-01 00:00:45,0,8,0,x\r\n2017-10-02 00:00:45,5,0,0,x\r\n",
    )
    assert rows == [
        Row("philly-0", "unknown", "default", "free", 0, 1_000, 8),
        Row("philly-1", "unknown", "default", "free", 70_000, 61_000, 1),
    ]
    assert left_out == {"no GPUs": 1}


def test_philly_counts_from_an_earlier_first_job(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, "philly", PHILLY_HEAD + "2017-08-07 10:00:00,5,1,5,x\n2017-08-06 10:00:00,5,1,5,x\n")
    assert [row.submit_ms for row in rows] == [0, 86_400_000]


def swf_line(
    submit: object = 0, run: object = 60, allocated: object = 4, requested: object = 8, status: object = 1
) -> str:
    """One line of the Standard Workload Format, by user 3 of group 2."""
    return f"  1 {submit} 0 {run} {allocated} -1 -1 {requested} -1 -1 {status} 3 2 -1 -1 1 -1 -1\n"


def test_swf_rules(tmp_path: Path) -> None:
    rows, left_out = made(
        tmp_path,
        "swf",
        "; Version: 2.2\n;\n\n"
        + swf_line(submit=9)
        + swf_line(submit=5, allocated=-1, run=1.5)
        + swf_line(submit=5).replace(" 3 2 ", " -1 -1 ")
        + swf_line(run=0)
        + swf_line(run=-1)
        + swf_line(allocated=0)
        + swf_line(allocated=-1, requested=-1)
        + swf_line(status=2)
        + swf_line(status=3),
    )
    assert rows == [
        Row("swf-0", "u3", "g2", "free", 5_000, 1_500, 8),
        Row("swf-1", "unknown", "default", "free", 5_000, 60_000, 4),
        Row("swf-2", "u3", "g2", "free", 9_000, 60_000, 4),
    ]
    assert left_out == {"no run time": 2, "no processors": 2, "part of another line's job": 2}


@pytest.mark.parametrize(
    ("source", "content"), [("helios", HELIOS_HEAD), ("philly", PHILLY_HEAD), ("swf", "; nothing ran\n")]
)
def test_a_file_without_jobs_is_an_empty_trace(tmp_path: Path, source: str, content: str) -> None:
    assert made(tmp_path, source, content) == ([], {})


# ---- refusing


BAD_FILES: list[tuple[str, str | bytes, int, str, str]] = [
    ("helios", b"", 0, "header", "must name the column user and gpu_num and run_time and t"),
    ("helios", "u_id,user,gpu_num,t\n0,1,1,0\n", 1, "header", "must name the column run_time"),
    ("helios", "user,gpu_num,run_time,t,t\n", 1, "header", "must name each column once"),
    ("helios", "user,gpu_num,run_time,t\n1,1,1\n", 2, "line", "must have 4 cells, has 3"),
    ("helios", "user,gpu_num,run_time,t\n1,1,1,0\n1,x,1,0\n", 3, "gpu_num", "must be a whole number from 0 to 100000"),
    ("helios", "user,gpu_num,run_time,t\n1,-1,1,0\n", 2, "gpu_num", "must be a whole number"),
    ("helios", "user,gpu_num,run_time,t\n1,1,-5,0\n", 2, "run_time", "must be a number of seconds >= 0"),
    ("helios", "user,gpu_num,run_time,t\n1,1,5,nan\n", 2, "t", "must be a number of seconds >= 0"),
    ("helios", "user,gpu_num,run_time,t\nAnn B,1,5,0\n", 2, "user", "must be 1 to 64 characters"),
    ("helios", b"user,gpu_num,run_time,t\n\xff,1,5,0\n", 2, "line", "must be UTF-8 text"),
    ("philly", "timestamp,num_gpus\n", 1, "header", "must name the column duration"),
    ("philly", PHILLY_HEAD + "2017-10-01,5,1,5,x\n", 2, "timestamp", "must be a time such as 2017-10-09 07:01:55"),
    ("philly", PHILLY_HEAD + "2017-02-30 00:00:00,5,1,5,x\n", 2, "timestamp", "must be a time"),
    ("philly", PHILLY_HEAD + "None,5,1,5,x\n", 2, "timestamp", "must be a time"),
    ("philly", PHILLY_HEAD + "2017-10-01 00:00:45,inf,1,5,x\n", 2, "duration", "must be a number of seconds >= 0"),
    ("philly", PHILLY_HEAD + "2017-10-01 00:00:45,5,1.5,5,x\n", 2, "num_gpus", "must be a whole number"),
    ("swf", b"", 0, "file", "must not be empty"),
    ("swf", "; c\n1 2 3\n", 2, "line", "must have 18 fields, has 3"),
    ("swf", swf_line(submit=-1), 1, "submit time", "must be a number of seconds >= 0"),
    ("swf", swf_line(run=-2), 1, "run time", "must be a number of seconds >= 0"),
    ("swf", swf_line(allocated="x"), 1, "allocated processors", "must be a whole number from 0 to 100000"),
    ("swf", swf_line(allocated=-1, requested="x"), 1, "requested processors", "must be a whole number"),
    ("swf", swf_line().replace(" 3 2 ", " ! 2 "), 1, "user", "must be 1 to 64 characters"),
    ("swf", swf_line().replace(" 3 2 ", " 3 ! "), 1, "group", "must be 1 to 64 characters"),
    ("swf", "a" * 70_000, 1, "line", "must be at most 65536 bytes"),
]


@pytest.mark.parametrize(("source", "content", "line", "field", "allowed"), BAD_FILES)
def test_a_bad_file_is_named(
    tmp_path: Path, source: str, content: str | bytes, line: int, field: str, allowed: str
) -> None:
    with pytest.raises(TraceError) as caught:
        made(tmp_path, source, content)
    error = caught.value
    assert (error.file, error.line, error.field) == (str(tmp_path / f"in.{source}"), line, field)
    assert allowed in error.allowed


@pytest.mark.parametrize("source", IMPORTERS)
def test_an_absent_file_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(TraceError, match="No such file"):
        import_trace(source, tmp_path / "absent")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format 'pbs' is unknown: must be one of helios, philly, swf"):
        import_trace("pbs", tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("importers")


pieces = st.sampled_from(
    [b",", b"\n", b" ", b'"', b"\0", b";", b"-1", b"1", b"2017-10-01 00:00:45", swf_line().encode(), b"1,1,5,0\n"]
)
heads = st.sampled_from([b"", HELIOS_HEAD.encode(), b"user,gpu_num,run_time,t\n", PHILLY_HEAD.encode(), b"; comment\n"])


@settings(deadline=None)  # a disk may be slow
@given(st.sampled_from(sorted(IMPORTERS)), heads, st.lists(pieces | st.binary(max_size=6), max_size=25).map(b"".join))
def test_any_bytes_import_or_raise_a_trace_error(folder: Path, source: str, head: bytes, body: bytes) -> None:
    try:
        rows, _ = made(folder, source, head + body)
    except TraceError:
        return
    assert [row.session_id for row in rows] == [f"{source}-{at}" for at in range(len(rows))]
    assert all(row.duration_ms > 0 and row.gpus > 0 for row in rows)
