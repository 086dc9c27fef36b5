"""Every key that the TOML parser sees has a line, and it is the line where it stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from policies import toml_locate
from policies.toml_locate import Path, locate

DOCUMENT = '''\
a.b = 1  # [not.a.table]
"quoted . key" = """two
[lines]
k = 1 """"
\'single\' = \'\'\'
x = 1
\'\'\'

[[rule]]
list = [ 1, # ]
  [2, {a = 1, b.c = {d = []}}],
  "]",
]
[rule.sub]
date = 1979-05-27 07:32:00
[[rule]]
  [rule.sub]
  e = "escaped \\" quote # no comment"

[p.q.r]
[p]
"\\u0041" = -inf
empty = {}
'''

LINES = {
    ("a",): 1,
    ("a", "b"): 1,
    ("quoted . key",): 2,
    ("single",): 5,
    ("rule",): 9,
    ("rule", "0"): 9,
    ("rule", "0", "list"): 10,
    ("rule", "0", "list", "0"): 10,
    ("rule", "0", "list", "1"): 11,
    ("rule", "0", "list", "1", "0"): 11,
    ("rule", "0", "list", "1", "1"): 11,
    ("rule", "0", "list", "1", "1", "a"): 11,
    ("rule", "0", "list", "1", "1", "b"): 11,
    ("rule", "0", "list", "1", "1", "b", "c"): 11,
    ("rule", "0", "list", "1", "1", "b", "c", "d"): 11,
    ("rule", "0", "list", "2"): 12,
    ("rule", "0", "sub"): 14,
    ("rule", "0", "sub", "date"): 15,
    ("rule", "1"): 16,
    ("rule", "1", "sub"): 17,
    ("rule", "1", "sub", "e"): 18,
    ("p", "q"): 20,
    ("p", "q", "r"): 20,
    ("p",): 21,
    ("p", "A"): 22,
    ("p", "empty"): 23,
}


def paths(value: object, path: Path = ()) -> set[Path]:
    """Every path of a parsed document."""
    items: list[tuple[str, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(i), element) for i, element in enumerate(value)]
    found = {path} if path else set()
    return found.union(*(paths(inner, (*path, name)) for name, inner in items))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_construct_has_its_line(ending: str) -> None:
    text = DOCUMENT.replace("\n", ending)
    assert locate(text) == LINES
    assert paths(tomllib.loads(text)) == set(LINES)


def test_an_empty_document_and_one_of_comments_have_no_keys() -> None:
    assert locate("") == locate("# a = 1\n\n  # [b]") == {}


BARE = st.text("abAB_-", min_size=1, max_size=3)
QUOTED = st.text("ab.#[]= é", max_size=4).map(lambda text: f'"{text}"')
FEW = st.sampled_from("ab")  # so that headers often name the same tables
KEY = st.one_of(FEW, FEW, FEW, BARE, QUOTED, QUOTED.map(lambda key: key.replace('"', "'")))
STRING = st.text("ab #=[]{},\\'", max_size=6).map(lambda text: '"' + text.replace("\\", "\\\\") + '"')
LONG = st.text("ab #=[]{},\n'", max_size=8).map(lambda text: f'"""{text}"""')
LITERAL = st.text('ab #=[]{},\\\n"', max_size=8).map(lambda text: f"'''{text}'''")
SCALAR = st.one_of(st.sampled_from(["1", "-1.5e3", "true", "inf", "07:32:00", "1979-05-27 07:32:00"]), STRING)
GAP = st.sampled_from(["", " ", "\n", " # ] } x = 1\n", "\n\n  "])


def inside(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays over several lines with comments, and inline tables, of these values."""
    array = st.tuples(GAP, st.lists(st.tuples(value, GAP).map("".join), max_size=3), GAP).map(
        lambda parts: "[" + parts[0] + ",".join(parts[1]) + parts[2] + "]"
    )
    pairs = st.lists(st.tuples(KEY, value).map(" = ".join), max_size=2).map(", ".join)
    return st.one_of(array, pairs.map(lambda text: "{ " + text + " }"))


VALUE = st.recursive(st.one_of(SCALAR, LONG, LITERAL), inside, max_leaves=6)
DOTTED = st.lists(KEY, min_size=1, max_size=3).map(" . ".join)
STATEMENT = st.one_of(
    st.tuples(DOTTED, VALUE).map(" = ".join),
    DOTTED.map(lambda key: f"[{key}]"),
    FEW.map(lambda key: f"[[{key}]]"),
    DOTTED.map(lambda key: f"[[ {key} ]] # comment"),
    st.sampled_from(["", "# x = 1"]),
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A valid document: statements one after another, those that the parser refuses left out."""
    text = ""
    for statement in draw(st.lists(STATEMENT, max_size=16)):
        try:
            tomllib.loads(text + statement + "\n")
        except tomllib.TOMLDecodeError:
            continue
        text += statement + "\n"
    return text


def check_every_path(text: str) -> None:
    """The locator and the parser see the same paths, on lines of the document."""
    lines = locate(text)
    assert set(lines) == paths(tomllib.loads(text))
    assert all(1 <= line <= text.count("\n") for line in lines.values())


def check_moves(text: str) -> None:
    """Three lines above the text move every key by three."""
    assert locate("# more\n\n# more\n" + text) == {path: line + 3 for path, line in locate(text).items()}


def refutes(check: Callable[[str], None], text: str) -> bool:
    """Whether a document shows a fault."""
    try:
        check(text)
    except (AssertionError, ValueError, IndexError):
        return True
    return False


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_path_that_the_parser_sees_has_a_line(text: str) -> None:
    check_every_path(text)
    check_moves(text)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("array", lambda scanner, path: scanner.skip(re.compile(r"\[[^\]]*\]"))),
        ("newest", lambda scanner, path, line: scanner.lines.setdefault(path, line) and path),
        ("line", lambda scanner: len(scanner.lines) + 1),
    ],
    ids=["arrays are stepped over", "arrays of tables have one table", "keys are counted instead of lines"],
)
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, fault: object) -> None:
    monkeypatch.setattr(toml_locate._Scanner, name, fault)
    once = settings(max_examples=300, deadline=None, phases=[Phase.generate], derandomize=True)
    find(documents(), lambda text: refutes(check_every_path, text) or refutes(check_moves, text), settings=once)
