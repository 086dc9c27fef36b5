"""Trace files read back as written, stream in flat memory, and every bad cell is named with file, line and column."""

from __future__ import annotations

import gzip
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.traces.csv_trace import MAX_LINE_BYTES, read_trace, seconds_text, write_trace
from simulations.traces.row import COLUMNS, KINDS, PARSERS, Row, TraceError, cell, seconds_ms

HEADER = "session_id,user,submit_s,duration_s\n"
FULL = ",".join(COLUMNS) + "\n"
GOOD = dict(
    zip(
        COLUMNS,
        ["s-1", "ann", "lab", "pro", "5", "60", "1", "1", "A100", "8", ".5", "30", "900", "student"],
        strict=True,
    )
)
ROW = Row("s-1", "ann", "lab", "pro", 5_000, 60_000, 1, 1.0, "A100", 8.0, 0.5, 30_000, 900_000, "student")


def rows_of(folder: Path, content: str | bytes, name: str = "t.csv") -> list[Row]:
    """What a file with that content holds."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_trace(path))


def refusal(folder: Path, content: str | bytes, name: str = "t.csv") -> TraceError:
    """The error that reading such a file raises."""
    with pytest.raises(TraceError) as caught:
        rows_of(folder, content, name)
    assert caught.value.file == str(folder / name)
    return caught.value


def line_with(**cells: str) -> str:
    """One full line that is good but for the cells given."""
    return ",".join({**GOOD, **cells}.values()) + "\n"


# ---- reading


def test_every_column_arrives_in_its_field(tmp_path: Path) -> None:
    assert rows_of(tmp_path, FULL + line_with()) == [ROW]


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    names = sorted(COLUMNS)
    assert rows_of(tmp_path, ",".join(names) + "\n" + ",".join(GOOD[name] for name in names)) == [ROW]


def test_absent_and_empty_columns_take_the_defaults(tmp_path: Path) -> None:
    expected = [Row("a", "ann", "default", "free", 0, 1_000, 1, 1.0, None, None, None, None, 900_000, "other")]
    assert rows_of(tmp_path, HEADER + "a,ann,0,1\n") == expected
    assert rows_of(tmp_path, FULL + "a,ann,,,0,1,,,,,,,,\n") == expected


@pytest.mark.parametrize("content", [FULL, FULL.strip(), FULL + "\n\n"])
def test_a_header_without_rows_is_an_empty_trace(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path, content) == []


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + FULL + line_with(),
        (FULL + line_with()).replace("\n", "\r\n"),
        (FULL + line_with()).strip(),
        FULL + "\n" + line_with() + "\n",
        FULL + line_with(user='"ann"'),
        FULL.replace("user", '"user"') + line_with(),
    ],
    ids=["bom", "crlf", "no-last-newline", "empty-lines", "quoted-cell", "quoted-column"],
)
def test_what_spreadsheets_do_to_a_file_is_accepted(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path, content) == [ROW]


def test_gzip_is_read(tmp_path: Path) -> None:
    assert rows_of(tmp_path, gzip.compress((FULL + line_with()).encode()), "t.csv.gz") == [ROW]


@pytest.mark.parametrize(
    ("text", "value_ms"),
    [
        ("0", 0),
        ("5", 5_000),
        ("007", 7_000),
        ("1.", 1_000),
        (".25", 250),
        ("1e3", 1_000_000),
        ("1.5E-1", 150),
        ("0.0005", 0),
        ("0.0015", 2),
        ("0.0025", 2),
        ("0.00250000000000000000000000000001", 3),
        ("1.0005", 1_000),
        ("123456789.1235", 123_456_789_124),
        ("10000000000", 10_000_000_000_000),
        ("1e-999", 0),
    ],
)
def test_times_go_to_the_millisecond_half_even_by_their_decimals(text: str, value_ms: int) -> None:
    assert seconds_ms(text) == value_ms


@given(st.decimals(min_value=0, max_value=10**10, places=6))
def test_the_quick_and_the_exact_way_agree(value: object) -> None:
    assert seconds_ms(f"{value}") == seconds_ms(f"{value}0000000000000e0")


def test_equal_and_finer_times_keep_file_order(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, HEADER + "b,u,1.0004,1\na,u,1.0001,1\nc,u,1,1\n")
    assert [row.session_id for row in rows] == ["b", "a", "c"]


def test_reading_is_lazy_and_yields_rows_before_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "a,u,0,1\nb,u,x,1\n")
    rows = read_trace(path)
    assert next(rows).session_id == "a"
    with pytest.raises(TraceError):
        next(rows)


# ---- refusing


SECONDS = "must be a number of seconds >= 0"
POSITIVE = "must be a number of seconds > 0 (at least 0.001)"
NAME = "must be 1 to 64 characters of a-z 0-9 . _ - and begin with a letter or digit"
GPUS = "must be a whole number from 1 to 100000"
PART = "must be a number > 0 and <= 1 with at most 3 decimals"
LOAD = "must be a number from 0 to 1, or empty for unknown"
MEMORY = "must be a number of GiB > 0, or empty"
NOT_NUMBERS = [
    "abc",
    "-1",
    "nan",
    "NaN",
    "inf",
    "-inf",
    " 5",
    "5 ",
    "+5",
    "1_000",
    "0x10",
    "1e",
    "e3",
    ".",
    "٣",
    "²",
    "1" * 65,
]
BAD_CELLS = [
    *(("submit_s", value, SECONDS) for value in [*NOT_NUMBERS, "", "1e1000"]),
    ("submit_s", "1e11", "must be a number of seconds <= 10000000000"),
    *(("duration_s", value, POSITIVE) for value in [*NOT_NUMBERS, "", "0", "0.0004", "0e5"]),
    *(("patience_s", value, SECONDS) for value in NOT_NUMBERS),
    *(("checkpoint_s", value, POSITIVE) for value in [*NOT_NUMBERS, "0"]),
    *(("gpus", value, GPUS) for value in [*NOT_NUMBERS, "0", "1.5", "100001", "1e9", "9" * 5000]),
    *(("fraction", value, PART) for value in [*NOT_NUMBERS, "0", "1.001", "2", "0.0001", ".12345", "1e-9"]),
    *(("load", value, LOAD) for value in [*NOT_NUMBERS, "1.01", "50"]),
    *(("memory_gib", value, MEMORY) for value in [*NOT_NUMBERS, "0", "1e999", "1e-999", "8GiB"]),
    *(
        (name, value, NAME)
        for name in ("session_id", "user")
        for value in ["", "-a", "Ann", "a b", "é", "a/b", "a" * 65, "a\t"]
    ),
    *((name, value, NAME) for name in ("group", "tier") for value in ["_a", "A", "../x", "a" * 65]),
    *(("gpu_type", value, "must be 1 to 64 letters") for value in [" ", "é", "A100;", "A" * 65, "=1+1"]),
    *(("kind", value, f"must be one of {', '.join(KINDS)}") for value in ["Student", "gamer", " "]),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_CELLS, ids=lambda text: ascii(text[:20]))
def test_a_bad_cell_is_named(tmp_path: Path, field: str, value: str, allowed: str) -> None:
    error = refusal(tmp_path, FULL + line_with(session_id="s-0") + line_with(**{field: value}))
    assert (error.line, error.field) == (3, field)
    assert error.value == value if len(value) <= 80 else (len(error.value) == 80 and value.startswith(error.value[:79]))
    assert error.allowed.startswith(allowed)


def test_the_message_says_where_what_and_what_is_allowed(tmp_path: Path) -> None:
    rows = "".join(f"s{at},u,{at},1\n" for at in range(15))
    error = refusal(tmp_path, HEADER + rows + "s,u,abc,1\n", "file.csv")
    assert str(error) == f"{tmp_path}/file.csv:17: submit_s = 'abc': must be a number of seconds >= 0"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


BAD_FILES: list[tuple[str, str | bytes, int, str, str]] = [
    ("no bytes", b"", 0, "file", "must begin with a header that names session_id, user, submit_s, duration_s"),
    ("only a mark", b"\xef\xbb\xbf", 0, "file", "must begin with a header"),
    ("only empty lines", "\n\n", 0, "file", "must begin with a header"),
    ("no header", "s-1,ann,0,1\n", 1, "header", "the header is missing"),
    ("unknown column", HEADER.replace("\n", ",colour\n"), 1, "header", "must be one of session_id, user"),
    ("upper case column", HEADER.replace("user", "User"), 1, "header", "must be one of session_id, user"),
    ("blank in a column", HEADER.replace(",user", ", user"), 1, "header", "must be one of session_id, user"),
    ("missing column", "session_id,user,submit_s\n", 1, "header", "must name the column duration_s"),
    ("missing columns", "user,submit_s\n", 1, "header", "must name the column session_id and duration_s"),
    ("column twice", HEADER.replace("\n", ",user\n"), 1, "header", "must name each column once"),
    ("too few cells", HEADER + "a,u,0\n", 2, "line", "must have 4 cells, has 3"),
    ("too many cells", HEADER + "a,u,0,1,\n", 2, "line", "must have 4 cells, has 5"),
    ("blank line", HEADER + " \n", 2, "line", "must have 4 cells, has 1"),
    ("not sorted", HEADER + "a,u,5.5,1\nb,u,5,1\n", 3, "submit_s", "must be sorted: the row above is submitted at 5.5"),
    ("id twice", HEADER + "a,u,0,1\nb,u,0,1\na,u,5,1\n", 4, "session_id", "must be used once in a trace"),
    ("parts of many", FULL + line_with(gpus="2", fraction=".5"), 2, "fraction", "must be 1 with 2 gpus"),
    ("NUL in a cell", HEADER + "a\0,u,0,1\n", 2, "session_id", "without NUL bytes"),
    ("NUL bytes", HEADER.encode() + bytes(100), 2, "line", "must have 4 cells, has 1"),
    ("not UTF-8", HEADER.encode() + b"a,\xff,0,1\n", 2, "line", "must be UTF-8 text"),
    ("UTF-16", HEADER.encode("utf-16"), 1, "line", "must be UTF-8 text"),
    ("open quote", HEADER + 'a,"u,0,1\n', 2, "line", "must be one CSV row"),
    ("text after a quote", HEADER + 'a,"u"x,0,1\n', 2, "line", "must be one CSV row"),
    ("old line ends", (HEADER + "a,u,0,1\n").replace("\n", "\r"), 1, "header", "must be one of"),
    ("long line", HEADER + "a" * (MAX_LINE_BYTES + 1), 2, "line", "must be at most 65536 bytes"),
    ("many columns", "," * 60_000, 1, "header", "the header is missing"),
]


@pytest.mark.parametrize(
    ("content", "line", "field", "allowed"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str | bytes, line: int, field: str, allowed: str) -> None:
    error = refusal(tmp_path, content)
    assert (error.line, error.field) == (line, field)
    assert allowed in error.allowed
    assert len(str(error)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(HEADER.encode())[:-9], gzip.compress(HEADER.encode())[:10] + b"\xff" * 50],
    ids=["empty", "no gzip", "cut off", "garbage"],  # a gzip header holds the time: no two workers would agree on it
)
def test_damaged_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content, "t.csv.gz").field in {"file", "header"}


def test_a_folder_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "absent.csv", "No such file")):
        with pytest.raises(TraceError, match=why) as caught:
            list(read_trace(path))
        assert (caught.value.line, caught.value.field) == (0, "file")


@pytest.mark.parametrize("head", ["", HEADER, FULL + line_with()])
def test_an_endless_line_is_refused_without_reading_it(tmp_path: Path, head: str) -> None:
    path = tmp_path / "long.csv"
    with path.open("wb") as file:
        file.write(head.encode())
        file.truncate(200_000_000)  # a hole: one line of zeros
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match="at most 65536 bytes"):
            list(read_trace(path))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_memory_grows_by_the_ids_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(f"s-{at},u{at % 50},{at},60\n" for at in range(20_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_trace(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 20_000 * 200
    finally:
        tracemalloc.stop()


# ---- writing


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
times_ms = st.integers(0, 10**13)
sizes = st.one_of(
    st.tuples(st.integers(1, 100_000), st.just(1.0)),
    st.tuples(st.just(1), st.integers(1, 1000).map(lambda steps: steps / 1000)),
)


@st.composite
def traces(draw: st.DrawFn) -> list[Row]:
    """Rows that a trace may hold, sorted."""
    ids = draw(st.lists(names, unique=True, max_size=6))
    rows = []
    for session_id, submit_ms in zip(
        ids, sorted(draw(st.lists(times_ms, min_size=len(ids), max_size=len(ids)))), strict=True
    ):
        gpus, fraction = draw(sizes)
        rows.append(
            Row(
                session_id=session_id,
                user=draw(names),
                group=draw(names),
                tier=draw(names),
                submit_ms=submit_ms,
                duration_ms=draw(st.integers(1, 10**13)),
                gpus=gpus,
                fraction=fraction,
                gpu_type=draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._/+()-]{0,63}", fullmatch=True)),
                memory_gib=draw(st.none() | st.floats(0, exclude_min=True, allow_infinity=False)),
                load=draw(st.none() | st.floats(0, 1)),
                patience_ms=draw(st.none() | times_ms),
                checkpoint_ms=draw(st.integers(1, 10**13)),
                kind=draw(st.sampled_from(KINDS)),
            )
        )
    return rows


@settings(deadline=None)  # a disk may be slow
@given(traces(), st.sampled_from(["t.csv", "t.csv.gz"]))
def test_what_is_written_reads_back_identically(rows: list[Row], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write_trace(path, rows) == len(rows)
        assert list(read_trace(path)) == rows
        first = path.read_bytes()
        write_trace(path, read_trace(path))
        assert path.read_bytes() == first
        assert [entry.name for entry in Path(folder).iterdir()] == [name]
        assert name == "t.csv" or first[4:8] == bytes(4)  # gzip's own time, or equal traces would differ in bytes


@pytest.mark.parametrize(
    ("value_ms", "text"), [(0, "0"), (1, "0.001"), (1_500, "1.5"), (90_000, "90"), (10_010, "10.01")]
)
def test_seconds_have_no_zeros_at_the_end(value_ms: int, text: str) -> None:
    assert seconds_text(value_ms) == text


def test_the_file_is_plain_text(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.csv", [ROW, ROW._replace(session_id="s-2", gpu_type="v1.0", load=None, fraction=0.125)])
    assert (tmp_path / "t.csv").read_text() == FULL + (
        "s-1,ann,lab,pro,5,60,1,1,A100,8,0.5,30,900,student\ns-2,ann,lab,pro,5,60,1,0.125,v1.0,8,,30,900,student\n"
    )


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_ends_early_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def rows() -> Iterator[Row]:
        yield ROW
        raise failure

    path = tmp_path / "t.csv"
    path.write_text("old")
    with pytest.raises(failure):
        write_trace(path, rows())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"session_id": "A"}, "session_id"),
        ({"submit_ms": -1}, "submit_s"),
        ({"duration_ms": 0}, "duration_s"),
        ({"gpus": 0}, "gpus"),
        ({"session_id": "s-2", "gpus": 2, "fraction": 0.5}, "fraction"),
        ({"fraction": 1 / 3}, "fraction"),
        ({"load": float("nan")}, "load"),
        ({"memory_gib": float("inf")}, "memory_gib"),
        ({"gpu_type": ""}, "gpu_type"),
        ({"gpu_type": "a,b"}, "gpu_type"),
        ({"tier": ""}, "tier"),
        ({"kind": "gamer"}, "kind"),
        ({"submit_ms": 4_999, "session_id": "s-2"}, "submit_s"),
        ({}, "session_id"),
    ],
)
def test_a_row_that_would_not_read_back_is_not_written(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(TraceError) as caught:
        write_trace(tmp_path / "t.csv", [ROW, ROW._replace(**changes)])  # type: ignore[arg-type]
    assert (caught.value.line, caught.value.field) == (3, field)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_trace(tmp_path / "absent" / "t.csv", [ROW])


def test_a_folder_in_the_way_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_trace(tmp_path / "t.csv", [ROW])
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


# ---- anything at all


pieces = st.sampled_from(
    [b",", b"\n", b"\r", b'"', b"\0", b"\xff", b"1e3", b"nan", b"s-2", FULL.encode(), line_with().encode(), b"9" * 99]
)
junk = st.one_of(
    st.binary(max_size=300),
    st.lists(pieces | st.binary(max_size=5), max_size=20).map(b"".join),
    st.lists(pieces | st.binary(max_size=5), max_size=20).map(lambda parts: FULL.encode() + b"".join(parts)),
)


def trace_error_of(attempt: Callable[[], object]) -> TraceError | None:
    """The TraceError that an attempt ends in; any other exception passes."""
    try:
        attempt()
    except TraceError as error:
        return error
    return None


@settings(deadline=None)  # a disk may be slow
@given(junk, st.sampled_from(["t.csv", "t.csv.gz", "zipped"]))
def test_any_bytes_read_or_raise_a_trace_error(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.csv.gz" if name == "zipped" else name)
        path.write_bytes(gzip.compress(content) if name == "zipped" else content)
        error = trace_error_of(lambda: [row.user for row in read_trace(path)])
        assert error is None or (error.allowed.startswith("must ") and len(error.value) <= 80)


@given(st.sampled_from(COLUMNS), st.text(max_size=40) | st.text("0123456789.eE+-_ nai", max_size=12))
def test_any_cell_parses_or_says_what_is_allowed(column: str, text: str) -> None:
    error = trace_error_of(lambda: cell("t.csv", 2, column, text, PARSERS[COLUMNS.index(column)]))
    assert error is None or error.allowed.startswith("must ")
