"""Reading a policy file: every mistake at once, each with its line, and writing one.

The steps: parse (`tomllib`), locate (`policies.toml_locate`), check each key against `policies.param_keys`, then check
what only holds between keys. A check between keys is left out when one of its keys is itself wrong.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.acceptable_use import Rule
from policies.param_keys import IDENTIFIER, KEYS, POLICIES, RULES, TABLES, TOP_LEVEL, WEIGHT, Setting, keys_of
from policies.rule_file import read_rules
from policies.toml_locate import Path, locate

ParamValue = str | int | float | bool | None
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParamError:
    """One mistake in a policy file.

    Attributes:
        file: the name of the file, for the message.
        line: from 1.
        key: dotted, `ladder.grace_s`; empty where the text is not TOML at all.
        value: what stands there; values that JSON cannot hold are given as text. For broken TOML, the parser's words.
        allowed: what would be right, to follow `must be`.
    """

    file: str
    line: int
    key: str
    value: ParamValue
    allowed: str

    def __str__(self) -> str:
        what = f"{self.key} = {_shown(self.value)}" if self.key else self.value
        return f"{self.file}:{self.line}: {what}: must be {self.allowed}"


class PolicyError(ValueError):
    """A policy file cannot be used; `errors` holds every mistake in it, by line."""

    def __init__(self, errors: tuple[ParamError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


@dataclass(slots=True)
class Document:
    """What a policy file says, checked; keys that it does not give are absent.

    Attributes:
        top: `name`, `summary`, `policy`.
        values: table to key to value, as the parameters hold them.
        gpu_weight: model to weight.
        tiers: tier to key to value.
        rules: of acceptable use.
    """

    top: dict[str, str] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    gpu_weight: dict[str, float] = field(default_factory=dict)
    tiers: dict[str, Values] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


def read(text: str, file: str) -> Document:
    """Check the text of a policy file.

    Raises:
        PolicyError: with every mistake, ordered by line.
    """
    try:
        data = tomllib.loads(text)
        lines = locate(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError((syntax_error(text, file, error),)) from None
    reader = _Reader(file, lines)
    document = reader.document(data)
    if reader.errors:
        raise PolicyError(tuple(sorted(reader.errors, key=lambda e: (e.line, e.key))))
    return document


def write(values: Mapping[str, Any]) -> str:
    """A TOML document of nested dictionaries of numbers and texts; None is left out."""
    return "\n".join(_table_lines((), values)).lstrip("\n") + "\n"


class _Reader:
    """Collects mistakes while it turns parsed TOML into a `Document`."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file = file
        self.lines = lines
        self.errors: list[ParamError] = []
        self.bad: set[Path] = set()

    def wrong(self, path: Path, value: object, allowed: str) -> None:
        """Note one mistake."""
        self.bad.add(path)
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)
        self.errors.append(ParamError(self.file, line, ".".join(map(_key, path)), json_able(value), allowed))

    def document(self, data: Mapping[str, Any]) -> Document:
        """Check the whole document."""
        found = Document(top=self.top_level(data))
        self.unknown((), data, (*TOP_LEVEL, *TABLES, RULES))
        plain = found.top.get("policy", POLICIES[0])
        if plain != POLICIES[0]:
            for name in (name for name in (*TABLES, RULES) if name in data):
                self.wrong((name,), data[name], f'absent with policy = "{plain}", which has no parameters')
            return found
        tables = {name: self.table((name,), data[name]) for name in TABLES if name in data}
        given = {name: self.values((name,), tables.get(name, {})) for name in {key.table: None for key in KEYS}}
        found.values = {name: _converted(name, values) for name, values in given.items()}
        found.gpu_weight = self.weights(tables.get("gpu_weight", {}))
        found.tiers = self.tiers(tables.get("tiers", {}))
        found.rules = read_rules(data.get(RULES, []), self.wrong, self.unknown)
        self.between(given)
        return found

    def top_level(self, data: Mapping[str, Any]) -> dict[str, str]:
        """`name`, `summary` and `policy`."""
        found: dict[str, str] = {}
        one_of = "one of " + ", ".join(f'"{name}"' for name in POLICIES)
        for name, ok, allowed in (
            ("name", _is_identifier, f"a text of the form {IDENTIFIER.pattern}"),
            ("summary", lambda value: isinstance(value, str), "a text"),
            ("policy", lambda value: value in POLICIES, one_of),
        ):
            if name in data and ok(data[name]):
                found[name] = data[name]
            elif name in data:
                self.wrong((name,), data[name], allowed)
        return found

    def table(self, path: Path, value: object) -> dict[str, Any]:
        """A value that must be a table; an empty one stands in for anything else."""
        if isinstance(value, dict):
            return value
        self.wrong(path, value, f"a table [{'.'.join(map(_key, path))}]")
        return {}

    def unknown(self, path: Path, table: Mapping[str, Any], known: Iterable[str]) -> None:
        """Refuse keys that mean nothing here, naming those that do."""
        known = tuple(known)
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                self.wrong((*path, name), table[name], f"a known key: {', '.join(known)}{hint}")

    def value(self, path: Path, key: Setting, value: Any) -> Any:
        """A value that its key accepts, else None and a mistake."""
        if key.accepts(value):
            return value
        self.wrong(path, value, key.allowed)
        return None

    def values(self, path: Path, table: Mapping[str, Any]) -> Values:
        """A table with a fixed set of keys, in the file's units."""
        known = keys_of(path[0])
        self.unknown(path, table, known)
        return {key: self.value((*path, key), known[key], value) for key, value in table.items() if key in known}

    def weights(self, table: Mapping[str, Any]) -> dict[str, float]:
        """`[gpu_weight]`: any model name, a number."""
        checked = {model: self.value(("gpu_weight", model), WEIGHT, value) for model, value in table.items()}
        return {model: float(weight) for model, weight in checked.items() if weight is not None}

    def tiers(self, table: Mapping[str, Any]) -> dict[str, Values]:
        """`[tiers.T]`, for any name of a tier."""
        found: dict[str, Values] = {}
        for tier, value in table.items():
            path = ("tiers", tier)
            if not IDENTIFIER.fullmatch(tier):
                self.wrong(path, value, f"named in the form {IDENTIFIER.pattern}")
            given = self.values(path, self.table(path, value))
            found[tier] = _converted("tiers", given)
            self.in_order(path, given, "lifetime_s", "longest_s")
        return found

    def in_order(self, path: Path, given: Values, low: str, high: str) -> None:
        """The one key must not be above the other, where the file gives both."""
        first, last = given.get(low), given.get(high)
        if first is not None and last is not None and first > last:
            self.wrong((*path, low), first, f"at most {'.'.join(map(_key, path))}.{high} = {last:g}")

    def between(self, given: Mapping[str, Values]) -> None:
        """What only holds between keys; each mistake stands at a key that the file gives."""
        defaults = {(key.table, key.name): key.default for key in KEYS}

        def value(path: tuple[str, str]) -> float:
            """A value or its default; NaN, which no comparison finds wrong, for one that is off or wrong itself."""
            found = given[path[0]].get(path[1], defaults[path])
            return math.nan if path in self.bad or found is None else found

        def refuse(path: tuple[str, str], other: tuple[str, str], allowed: str, allowed_other: str) -> None:
            at, text = (path, allowed) if path in self.lines else (other, allowed_other)
            self.wrong(at, value(at), text)

        stale, lost = ("telemetry", "stale_s"), ("telemetry", "lost_s")
        if value(stale) > value(lost):
            refuse(
                stale,
                lost,
                f"at most telemetry.lost_s = {value(lost):g}",
                f"at least telemetry.stale_s = {value(stale):g}",
            )
        grace, report = ("ladder", "grace_s"), ("telemetry", "report_s")
        if 0 < value(grace) < 2 * value(report):
            refuse(
                grace,
                report,
                f"0 or at least two reports, 2 x telemetry.report_s = {2 * value(report):g}",
                f"at most half of ladder.grace_s = {value(grace):g}: a grace period must see two reports",
            )
        fixed = given["headroom"].get("fixed_gpus")
        if fixed is not None and given["headroom"].get("confidence") is not None:
            self.wrong(("headroom", "fixed_gpus"), fixed, "absent where headroom.confidence is given: the goal sets it")
        self.in_order(("idle",), given["idle"], "warn_s", "release_s")
        delta, half_life = ("ladder", "rotate_delta_gpu_h"), ("usage", "half_life_h")
        steady = value(half_life) / math.log(2)
        if value(delta) >= steady:
            self.wrong(delta, value(delta), f"less than usage.half_life_h / ln 2 = {steady:g}, or nobody ever swaps")


def _converted(table: str, given: Values) -> Values:
    """Values of a file as the parameters hold them, by the name of their attribute; wrong ones are left out."""
    known = keys_of(table)
    return {known[name].field: known[name].convert(value) for name, value in given.items() if value is not None}


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and IDENTIFIER.fullmatch(value) is not None


def json_able(value: object) -> ParamValue:
    """A value as JSON can hold it; tables and arrays by what they are, the rest as text."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):  # Python refuses to write very long integers in decimal
        return value if abs(value) < 2**63 else f"{value:#x}"
    return str(value)


def _shown(value: ParamValue) -> str:
    """A value on one line, as it stands in a file where that is short."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 60 else text[:57] + "..."


def syntax_error(text: str, file: str, error: Exception) -> ParamError:
    """Where the parser stopped; it names the line in its words, or the end of the document, or nothing."""
    words = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    at = re.search(r" \(at line (\d+), column (\d+)\)$", words)
    if at:
        words, line = f"{words[: at.start()]} (column {at[2]})", int(at[1])
    else:
        line = len(text.splitlines()) or 1 if words.endswith("(at end of document)") else 1
    return ParamError(file, line, "", words, "valid TOML")


def _key(name: str) -> str:
    """A name as a TOML key, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, save that DEL too must be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    """A number, a text, true or false, or a list or an inline table of these."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(name)} = {_value(v)}' for name, v in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else repr(value)


def _table_lines(path: Path, table: Mapping[str, Any]) -> list[str]:
    """The lines of one table: its own keys first, then the tables in it."""
    plain = {
        name: value
        for name, value in table.items()
        if value is not None and not isinstance(value, Mapping) and not (not path and _are_tables(value))
    }
    lines = [f"{_key(name)} = {_value(v)}" for name, v in plain.items()]
    if path and (plain or not table):
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += _table_lines((*path, name), value)
        elif not path and _are_tables(value):
            for entry in value:
                lines += ["", f"[[{_key(name)}]]"]
                lines += [f"{_key(key)} = {_value(v)}" for key, v in entry.items() if v is not None]
    return lines


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)
