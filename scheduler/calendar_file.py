"""A calendar as a TOML file: `[[reservation]]` and `[[maintenance]]`, every mistake at once, each with its line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.calendar import MAINTENANCE, RESERVATION, Calendar, Entry
from policies.param_file import ParamError, PolicyError, json_able, syntax_error
from policies.toml_locate import Path, locate
from scheduler.duration import When, instant_of, seconds_of, when_of
from scheduler.errors import NotFound, Refused
from scheduler.requests import LAST_MS

if TYPE_CHECKING:
    from pathlib import Path as FilePath

LARGEST_FILE = 1024 * 1024
"""Bytes."""
MOST_ENTRIES = 200
DRAIN_S = 3600
"""So long before maintenance nothing new is placed on its hosts, unless it says otherwise."""

ENDLESS_M = 10**12
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_A_NAME = "a name: a-z, 0-9 and . _ - , at most 64 of them"
_A_TIME = "a time with its offset from UTC, as 2026-12-01T22:00Z"


class CalendarFileError(PolicyError):
    """A calendar file cannot be used; `errors` holds every mistake in it, by line."""


class Wrong(ValueError):
    """A value that its key does not take; says what would be right."""


class FileEntry(NamedTuple):
    """An entry of a file.

    Attributes:
        line: where it begins.
        asked: members of `scheduler.requests.Planned`.
    """

    line: int
    asked: dict[str, Any]

    @property
    def entry(self) -> Entry:
        """As the calendar would hold it."""
        asked = self.asked
        until_ms = asked.get("until_ms") or asked["from_ms"] + asked["until_s"] * 1000
        gpus_m = asked.get("gpus", 0) * 1000
        hosts, group = tuple(asked.get("hosts", ())), asked.get("group", "")
        return Entry(asked["entry"], asked["kind"], asked["from_ms"], until_ms, gpus_m, group, hosts)


def read_calendar(path: FilePath) -> list[FileEntry]:
    """The entries of a file, in its order of kinds.

    Raises:
        CalendarFileError: with every mistake, by line.
        NotFound: there is no such file.
    """
    return parse_calendar(_text_of(path), str(path))


def parse_calendar(text: str, file: str) -> list[FileEntry]:
    """As `read_calendar`, of a text; `file` is how messages name it."""
    try:
        data, lines = tomllib.loads(text), locate(text)
    except (ValueError, RecursionError) as error:
        raise CalendarFileError((syntax_error(text, file, error),)) from None
    reader = _Reader(file, lines)
    entries = reader.entries(data)
    if reader.errors:
        raise CalendarFileError(tuple(sorted(reader.errors, key=lambda error: (error.line, error.key))))
    return entries


def check_overlaps(entries: list[FileEntry], file: str) -> None:
    """Refuse a file whose entries cannot all hold, whatever else is agreed: `Refused` names each pair."""
    calendar, found = Calendar(), []
    for entry in entries:
        problem = calendar.conflict(entry.entry, ENDLESS_M)
        if problem is None:
            calendar.entries[entry.entry.id] = entry.entry
        else:
            found.append(f"{file}:{entry.line}: {entry.entry.kind} {entry.entry.id}: {problem}")
    if found:
        raise Refused("; ".join(found), "nothing of the file was agreed")


def _text_of(path: FilePath) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
        text = raw.decode()
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CalendarFileError((ParamError(str(path), 1, "", str(words), "a TOML file"),)) from None
    if len(raw) > LARGEST_FILE:
        problem = ParamError(str(path), 1, "", f"more than {LARGEST_FILE} bytes", f"at most {LARGEST_FILE}")
        raise CalendarFileError((problem,))
    return text


# -- what each key takes: the members of the request that it becomes, or Wrong -----------------------------------------


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Wrong(_A_NAME)
    return value


def _hosts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(host, str) and _NAME.fullmatch(host) for host in value):
        raise Wrong("a list of hosts' names; left out, or empty: all hosts")
    if len(set(value)) < len(value):
        raise Wrong("a list that names no host twice")
    return list(value)


def _gpus(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise Wrong("a whole number of GPUs, 1 to 1000000")
    return value


def _drain(value: object) -> int:
    seconds = seconds_of(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if seconds is None:
        raise Wrong('a length of time, as "1h", "30m" or "0s"')
    return seconds


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
        raise Wrong("a text of one line, at most 200 characters")
    return value


def _time(value: object, *, after: bool) -> When:
    try:
        when = when_of(value) if after and isinstance(value, str) else When(_instant(value), None)
    except ValueError as error:
        more = ', or so long after its begin, as "+2h"' if after else ""
        raise Wrong(f"{_A_TIME}{more} ({error})") from None
    if when.at_ms is not None and not 0 <= when.at_ms <= LAST_MS:
        raise Wrong("a time from 1970 to 9999")
    if when.after_s == 0:
        raise Wrong("longer than 0 s")
    return when


def _instant(value: object) -> int:
    if not isinstance(value, str | datetime):
        raise ValueError("a date or a time of day alone is no instant")
    return instant_of(value)


def _begin(value: object) -> int:
    at_ms = _time(value, after=False).at_ms
    assert at_ms is not None  # noqa: S101 - nothing but an instant was asked for
    return at_ms


_BOTH: Mapping[str, tuple[str, Callable[[Any], Any], bool]] = {
    "name": ("entry", _name, True),
    "from": ("from_ms", _begin, True),
    "until": ("until", lambda value: _time(value, after=True), True),
    "text": ("text", _text, False),
}
_KEYS = {
    RESERVATION: {**_BOTH, "group": ("group", _name, True), "gpus": ("gpus", _gpus, True)},
    MAINTENANCE: {**_BOTH, "hosts": ("hosts", _hosts, False), "drain": ("drain_s", _drain, False)},
}
"""Key to (member, how it is read, must be there)."""


class _Reader:
    """Collects mistakes while it turns parsed TOML into entries."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file = file
        self.lines = lines
        self.errors: list[ParamError] = []
        self._names: dict[str, int] = {}

    def wrong(self, path: Path, value: object, allowed: str) -> None:
        """Note one mistake."""
        self.errors.append(ParamError(self.file, self.line(path), ".".join(path), json_able(value), allowed))

    def line(self, path: Path) -> int:
        """Where something stands, or else what it belongs to."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)

    def entries(self, data: Mapping[str, Any]) -> list[FileEntry]:
        """All entries of the document."""
        found: list[FileEntry] = []
        for kind, tables in data.items():
            if kind not in _KEYS:
                self.wrong((kind,), tables, "[[reservation]] or [[maintenance]]" + _near(kind, _KEYS))
            elif not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
                self.wrong((kind,), tables, f"[[{kind}]], with two brackets, once for each")
            else:
                found += [self.entry(kind, (kind, str(number)), table) for number, table in enumerate(tables)]
        if not data:
            self.wrong((), "nothing", "at least one [[reservation]] or [[maintenance]]")
        if len(found) > MOST_ENTRIES:
            self.wrong((), len(found), f"at most {MOST_ENTRIES} entries in a file")
        return found

    def entry(self, kind: str, path: Path, table: Mapping[str, Any]) -> FileEntry:
        """One entry; members that are wrong are left out."""
        known = _KEYS[kind]
        asked: dict[str, Any] = {"kind": kind}
        for name, value in table.items():
            if name not in known:
                self.wrong((*path, name), value, f"a known key: {', '.join(known)}{_near(name, known)}")
                continue
            member, read, _ = known[name]
            try:
                asked[member] = read(value)
            except Wrong as error:
                self.wrong((*path, name), value, str(error))
        for name, (_, _, needed) in known.items():
            if needed and name not in table:
                self.wrong((*path, name), "(absent)", f"given for every {kind}")
        self._between(path, table, asked)
        if kind == MAINTENANCE:
            asked.setdefault("drain_s", DRAIN_S)
        return FileEntry(self.line(path), asked)

    def _between(self, path: Path, table: Mapping[str, Any], asked: dict[str, Any]) -> None:
        """What only holds between keys, and between entries."""
        until = asked.pop("until", None)
        if until is not None and until.at_ms is not None:
            asked["until_ms"] = until.at_ms
            if until.at_ms <= asked.get("from_ms", -1):
                self.wrong((*path, "until"), table["until"], f"after from = {table['from']}")
        elif until is not None:
            asked["until_s"] = until.after_s
        name = asked.get("entry")
        if name in self._names:
            self.wrong((*path, "name"), name, f"another name than that of line {self._names[name]}")
        elif name is not None:
            self._names[name] = self.line((*path, "name"))


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
