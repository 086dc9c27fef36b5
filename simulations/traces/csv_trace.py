"""Our trace CSV: read as a stream, written whole or not at all.

A file is UTF-8 text (a byte order mark and CRLF are fine), plain or gzip when its name ends in `.gz`. The header names
the columns in any order; one line is one row, cells may be quoted, empty lines are passed over.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from simulations.traces.row import COLUMNS, PARSERS, REQUIRED, Row, TraceError

MAX_LINE_BYTES = 65_536

_BOM = b"\xef\xbb\xbf"
_MAX_COLUMNS = 256
_serial = itertools.count()


def read_trace(path: Path) -> Iterator[Row]:
    """The rows of a trace file in file order, one at a time.

    Memory is flat in the length of the file but for the ids seen, kept to find duplicates: about 100 bytes a session.
    The file is opened with the first row asked for and closed after the last, or when the iterator is dropped.

    Raises:
        TraceError: at the first thing wrong: an unreadable or empty file, text that is not UTF-8, a line over 64 KiB,
            a missing, unknown or repeated column, a row with too many or too few cells, a bad cell, a repeated
            session_id, a row that is submitted before the one above it. Rows before it have been yielded.
    """
    lines = records(path)
    plan, width = _plan(str(path), next(lines, None))
    order = _Order(str(path))
    for line, cells in lines:
        if len(cells) != width:
            raise TraceError(str(path), line, "line", ",".join(cells), f"must have {width} cells, has {len(cells)}")
        cells.append("")  # what the columns that are not there hold
        try:
            row = Row._make([parse(cells[at]) for parse, at in plan])
        except ValueError:
            _blame(str(path), line, [cells[at] for _, at in plan])
        order.check(line, row)
        yield row


def write_trace(path: Path, rows: Iterable[Row]) -> int:
    """Write rows to a trace file and return how many; `read_trace` gives back equal rows.

    The file appears whole or stays as it was: rows go to a temporary file in the same folder that is synced and
    renamed, or removed on any exception. A name that ends in `.gz` is written as gzip.

    Raises:
        TraceError: a row that `read_trace` would refuse or read differently.
        OSError: the folder cannot be written.
    """
    written = 0
    with ExitStack() as undo:
        draft = path.with_name(f".{path.name[:40]}.{os.getpid()}-{next(_serial)}.tmp")
        draft.unlink(missing_ok=True)
        undo.callback(draft.unlink, missing_ok=True)
        with draft.open("xb") as raw:
            with _packed(path, raw) as stream:
                stream.write((",".join(COLUMNS) + "\n").encode())
                for written, text in enumerate(_lines_of(str(path), rows), start=1):  # noqa: B007  # the last is the count
                    stream.write(text.encode())
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
        undo.pop_all()
    return written


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file that are not empty, as line number from 1 and cells.

    Raises:
        TraceError: as for `text_lines`, and for quotes that do not match.
    """
    for line, text in text_lines(path):
        if '"' in text:
            try:
                yield line, next(csv.reader([text], strict=True))
            except (csv.Error, StopIteration) as error:
                raise TraceError(str(path), line, "line", text, f"must be one CSV row: {error}") from None
        elif text:
            yield line, text.split(",")


def table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The named columns of a CSV file that may have more, as line number and cells in the order asked for.

    Raises:
        TraceError: as for `records` and `columns_of`, and for a row with too many or too few cells.
    """
    lines = records(path)
    line, header = next(lines, (0, []))
    places = columns_of(str(path), line, header, columns)
    picks = [places[name] for name in columns]
    for line, cells in lines:
        if len(cells) != len(header):
            allowed = f"must have {len(header)} cells, has {len(cells)}"
            raise TraceError(str(path), line, "line", ",".join(cells), allowed)
        yield line, [cells[at] for at in picks]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends, numbered from 1; memory is bounded whatever the file holds.

    Raises:
        TraceError: the file cannot be read, or a line is over `MAX_LINE_BYTES` or not UTF-8.
    """
    try:
        with path.open("rb") as raw_file, _unpacked(path, raw_file) as stream:
            for line in itertools.count(1):
                raw = stream.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                yield line, _decode(str(path), line, raw)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise TraceError(str(path), 0, "file", path.name, f"must be a readable file: {why}") from None


def columns_of(file: str, line: int, header: list[str], required: Iterable[str]) -> dict[str, int]:
    """Where each column of a header is.

    Raises:
        TraceError: a column is named twice, or a required one is missing.
    """
    if len(header) > _MAX_COLUMNS:
        raise TraceError(file, line, "header", ",".join(header), f"must name at most {_MAX_COLUMNS} columns")
    places = {name: at for at, name in enumerate(header)}
    if len(places) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise TraceError(file, line, "header", twice, "must name each column once")
    missing = [name for name in required if name not in places]
    if missing:
        raise TraceError(file, line, "header", ",".join(header), f"must name the column {' and '.join(missing)}")
    return places


def seconds_text(value_ms: int) -> str:
    """Seconds with up to 3 decimals and no zeros at the end; reads back to the same millisecond."""
    whole, rest = divmod(value_ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


class _Order:
    """What rows must satisfy together: submitted in order, ids used once, parts only of a single GPU."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._seen: set[str] = set()
        self._latest_ms = 0

    def check(self, line: int, row: Row) -> None:
        """Raise TraceError for a row that may not follow those seen before."""
        if row.submit_ms < self._latest_ms:
            allowed = f"must be sorted: the row above is submitted at {seconds_text(self._latest_ms)}"
            raise TraceError(self._file, line, "submit_s", seconds_text(row.submit_ms), allowed)
        if row.session_id in self._seen:
            raise TraceError(self._file, line, "session_id", row.session_id, "must be used once in a trace")
        if row.gpus != 1 and row.fraction != 1:
            allowed = f"must be 1 with {row.gpus} gpus: only a single GPU is shared"
            raise TraceError(self._file, line, "fraction", _plain(row.fraction), allowed)
        self._latest_ms = row.submit_ms
        self._seen.add(row.session_id)


def _plan(file: str, first: tuple[int, list[str]] | None) -> tuple[list[tuple[Any, int]], int]:
    """For each field of a row its parser and its cell (the cell past the last for absent columns), and the width."""
    if first is None:
        raise TraceError(file, 0, "file", "", f"must begin with a header that names {', '.join(REQUIRED)}")
    line, header = first
    unknown = next((name for name in header if name not in COLUMNS), None)
    if unknown is not None:
        if not set(REQUIRED) & set(header):
            allowed = f"must name {', '.join(REQUIRED)}: the header is missing"
            raise TraceError(file, line, "header", ",".join(header), allowed)
        raise TraceError(file, line, "header", unknown, f"must be one of {', '.join(COLUMNS)}")
    places = columns_of(file, line, header, REQUIRED)
    return [(parse, places.get(name, len(header))) for name, parse in zip(COLUMNS, PARSERS, strict=True)], len(header)


def _blame(file: str, line: int, cells: list[str]) -> NoReturn:
    """Find the first bad cell (cells in the order of `COLUMNS`) and raise for it."""
    for name, parse, cell in zip(COLUMNS, PARSERS, cells, strict=True):
        try:
            parse(cell)
        except ValueError as error:
            allowed = f"{error}, without NUL bytes" if "\0" in cell else str(error)
            raise TraceError(file, line, name, cell, allowed) from None
    raise AssertionError("a row was refused that has no bad cell")  # pragma: no cover


def _decode(file: str, line: int, raw: bytes) -> str:
    """The text of one line without its end, and without the byte order mark on the first."""
    if len(raw) > MAX_LINE_BYTES:
        raise TraceError(file, line, "line", repr(raw[:80])[2:-1], f"must be at most {MAX_LINE_BYTES} bytes")
    if line == 1:
        raw = raw.removeprefix(_BOM)
    try:
        return raw.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise TraceError(file, line, "line", repr(raw[:80])[2:-1], "must be UTF-8 text") from None


def _lines_of(file: str, rows: Iterable[Row]) -> Iterator[str]:
    """Each row as one line of text, proven to read back equal."""
    order = _Order(file)
    for line, row in enumerate(rows, start=2):
        cells = [show(value) for show, value in zip(_SHOW, row, strict=True)]
        try:
            back = Row._make([parse(cell) for parse, cell in zip(PARSERS, cells, strict=True)])
        except ValueError:
            _blame(file, line, cells)
        if back != row:
            differs = next(at for at in range(len(row)) if back[at] != row[at])
            raise TraceError(file, line, COLUMNS[differs], str(row[differs]), f"would read back as {back[differs]}")
        order.check(line, row)
        yield ",".join(cells) + "\n"


def _unpacked(path: Path, raw: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The stream to read from."""
    return cast(IO[bytes], gzip.GzipFile(mode="rb", fileobj=raw)) if path.suffix == ".gz" else nullcontext(raw)


def _packed(path: Path, raw: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The stream to write to; leaving it keeps `raw` open. Gzip bytes hold no name and no time."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
    return nullcontext(raw)


def _plain(value: float | str | None) -> str:
    """A cell: empty for unknown, the shortest decimal that reads back for a number."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)


def _seconds(value_ms: int | None) -> str:
    return "" if value_ms is None else seconds_text(value_ms)


_SHOW: tuple[Callable[[Any], str], ...] = tuple(_seconds if name.endswith("_s") else _plain for name in COLUMNS)
