"""One way to print rows: a table for people, JSON, JSON lines and CSV for programs.

The first argument of `emit` is a list of rows (mappings). `columns` are what a table or a CSV shows, in order; JSON
and JSON lines give each row whole, in the row's own order, with `"schema": 1`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TextIO, TypeVar, overload

import click

from scheduler.errors import FairTierError

SCHEMA = 1
FORMATS = ("table", "json", "jsonl", "csv")

Row = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


@overload
def output_option(command: F, /) -> F: ...
@overload
def output_option(*, formats: Sequence[str] = FORMATS) -> Callable[[F], F]: ...
def output_option(command: F | None = None, /, *, formats: Sequence[str] = FORMATS) -> F | Callable[[F], F]:
    """Add `-o/--output`, passed to the command as `output`; the first format is the default.

    Use it bare (`@output_option`) for all formats, or with the formats that the command has.
    """
    option = click.option(
        "-o", "--output", type=click.Choice(list(formats)), default=formats[0], show_default=True, help="Output format."
    )
    return option if command is None else option(command)


def emit(
    rows: Sequence[Row],
    columns: Sequence[str],
    format: str = "table",  # noqa: A002 - the word of the option it serves
    key: str = "users",
    stream: TextIO | None = None,
    *,
    unknown: str = "-",
    right: Collection[str] = (),
) -> None:
    """Print rows in one of `FORMATS`.

    Args:
        rows: JSON-able values; None means unknown. Not-a-number and infinity are refused (ValueError).
        columns: the columns of a table or CSV; a row without one of them shows it as unknown.
        format: one of `FORMATS`, else ValueError.
        key: the member of the JSON document that holds the rows.
        stream: where to, default the standard output of now.
        unknown: what a table shows for None. CSV leaves the field empty.
        right: the columns that a table aligns to the right.
    """
    out = _stream(stream)
    if format == "json":
        emit_json({key: [dict(row) for row in rows]}, out)
    elif format == "jsonl":
        out.writelines(_dump({"schema": SCHEMA, **row}, indent=None) + "\n" for row in rows)
    elif format == "csv":
        _emit_csv(rows, columns, out)
    elif format == "table":
        _emit_table([[_cell(row.get(c), unknown) for c in columns] for row in rows], columns, out, right)
    else:
        raise ValueError(f"format {format!r} must be one of {', '.join(FORMATS)}")


def emit_json(document: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print one JSON document with `"schema": 1` first. NaN and infinity are refused (ValueError)."""
    _stream(stream).write(_dump({"schema": SCHEMA, **document}, indent=1) + "\n")


def _stream(stream: TextIO | None) -> TextIO:
    """The stream given, or the standard output of now; Python has none when the caller closed it (`>&-`)."""
    out = stream if stream is not None else sys.stdout
    if out is None:
        raise FairTierError("there is no standard output to write to", "do not close it; > /dev/null discards it")
    return out


def _dump(document: Mapping[str, Any], indent: int | None) -> str:
    return json.dumps(document, indent=indent, allow_nan=False)


def _emit_csv(rows: Iterable[Row], columns: Sequence[str], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(c) is None else _scalar(row[c]) for c in columns])


def _scalar(value: object) -> object:
    """A value as CSV holds it: text and numbers as they are (unrounded), the rest as JSON writes it."""
    return json.dumps(value) if isinstance(value, bool | list | tuple | dict) else value


def _cell(value: object, unknown: str) -> str:
    """A value as a person reads it: six significant digits, on one line, without control characters."""
    if value is None:
        return unknown
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(_scalar(value))
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _emit_table(cells: Sequence[Sequence[str]], columns: Sequence[str], out: TextIO, right: Collection[str]) -> None:
    """Plain aligned columns where nobody looks (a pipe, a file); rich only on a terminal."""
    if out.isatty():
        _emit_rich(cells, columns, out, right)
        return
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    put = [str.rjust if name in right else str.ljust for name in columns]
    lines = (
        "  ".join(p(text, width) for p, text, width in zip(put, row, widths, strict=True)) for row in (columns, *cells)
    )
    out.writelines(line.rstrip() + "\n" for line in lines)


def _emit_rich(cells: Iterable[Sequence[str]], columns: Sequence[str], out: TextIO, right: Collection[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich takes longer to import than a command takes to run
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(Text(name), overflow="fold", justify="right" if name in right else "left")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=out).print(table)
