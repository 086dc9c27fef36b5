"""The line of every key in a TOML document, for messages: the parser of the standard library gives none.

The scanner expects a document that `tomllib` has accepted; it finds where things are, it does not validate. What it
says about a document that `tomllib` refuses is unspecified.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
# A multi-line string ends at its first three quotes; up to two more quotes right behind them still belong to it.
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + _QUOTED.pattern, re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\r\n]*")


def locate(text: str) -> dict[Path, int]:
    """The 1-based line of every key, table and array element of a TOML document.

    Args:
        text: a document that `tomllib.loads` accepts.

    Returns:
        Path to line. A path holds the names from the root, unquoted; an element of an array (also a table of
        `[[name]]`) is its index from 0 as text, so `[[rule]]` twice gives `("rule", "0")` and `("rule", "1")`.
        A table written only as part of a longer name has the line where it was first named.
    """
    return _Scanner(text).scan()


class _Scanner:
    """One pass over the text; `at` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self.lines: dict[Path, int] = {}
        self.tables_of: dict[Path, int] = {}  # arrays of tables: how many tables each has so far

    def scan(self) -> dict[Path, int]:
        """Walk the document: headers move the table that the keys after them belong to."""
        table: Path = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.lines

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Move past a match at this place (possibly empty) and return it."""
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"line {self.line()}: not a TOML document")
        self.at = match.end()
        return match[0]

    def line(self) -> int:
        """The line of this place, from 1."""
        return bisect_right(self.starts, self.at)

    def header(self) -> Path:
        """`[a.b]` or `[[a.b]]`: note the table and return its path."""
        line, brackets = self.line(), 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        *parents, last = self.key()
        self.at += brackets
        path: Path = ()
        for part in parents:
            path = self.newest((*path, part), line)
        path = (*path, last)
        if brackets == 1:
            self.lines[path] = line  # wins over a line where it was named only on the way to a table inside it
            return path
        index = self.tables_of.get(path, 0)
        self.tables_of[path] = index + 1
        self.lines.setdefault(path, line)
        self.lines[*path, str(index)] = line
        return (*path, str(index))

    def newest(self, path: Path, line: int) -> Path:
        """Note a table on the way; of an array of tables, its newest table is meant."""
        self.lines.setdefault(path, line)
        return (*path, str(self.tables_of[path] - 1)) if path in self.tables_of else path

    def key(self) -> list[str]:
        """A dotted key: its parts, unquoted."""
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            if self.text[self.at] in "\"'":
                parts.append(tomllib.loads("key = " + self.skip(_QUOTED))["key"])
            else:
                parts.append(self.skip(_BARE))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def pair(self, table: Path) -> None:
        """`key = value` inside a table: note the key, every table on its way, and what the value holds."""
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        """Move past a value; note the keys and elements inside it."""
        opening = self.text[self.at]
        if opening in "\"'":
            self.skip(_STRING)
        elif opening == "[":
            self.array(path)
        elif opening == "{":
            self.inline_table(path)
        else:
            self.skip(_SCALAR)

    def array(self, path: Path) -> None:
        """`[a, b, ...]` over any number of lines."""
        index = 0
        while not self.closes("]"):
            element = (*path, str(index))
            self.lines[element] = self.line()
            self.value(element)
            index += 1

    def inline_table(self, path: Path) -> None:
        """`{a = 1, b = 2}`."""
        while not self.closes("}"):
            self.pair(path)

    def closes(self, bracket: str) -> bool:
        """Step over the opening bracket or a comma, then over the closing bracket if it follows."""
        self.skip(_BLANK)
        if not self.text.startswith(bracket, self.at):
            self.at += 1
            self.skip(_BLANK)
        if not self.text.startswith(bracket, self.at):
            return False
        self.at += 1
        return True
