"""The documents tell the truth: diagrams, rules, keys, words, paths and links are those of the code.

Prose is what is left of a document without code, quotes and tables; there the words of the glossary hold.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from fairtier.cli import COMMANDS, INTERRUPTED
from fairtier.policy_cli import policy
from policies.explain import CHANGES, RULES
from policies.limits import CODE_OF
from policies.param_keys import KEYS, TIER_KEYS, WEIGHT, default_text
from policies.params import Params
from scheduler import errors
from scheduler.lifecycle import mermaid
from scheduler.policy_files import preset_names
from scheduler.requests import Act, AnswerAppeal, FileAppeal, Pardon, Plan, Restrict, Unplan
from scheduler.task_rows import KINDS
from simulations.traces.importers import IMPORTERS
from simulations.traces.row import COLUMNS
from simulations.workloads.scenario import read_scenario, scenario_names

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PACKAGES = ("policies", "workers", "scheduler", "simulations", "fairtier")

# fmt: off
WORDS = (
    "session", "host", "slot", "fraction", "allocation", "lease", "tier", "shares", "usage", "half-life",
    "committed", "standing", "credit", "load", "heavy", "headroom", "contention", "notice", "warn", "throttle",
    "grace", "evict", "cooldown", "preempt", "requeue", "cycle", "snapshot", "decision", "plan", "reason",
    "event", "command", "journal",
)
# fmt: on
"""What the glossary has to explain."""

NOT_USED = re.compile(r"\b(jobs?|nodes?|abus\w+)\b", re.IGNORECASE)
"""Words that mean something else here, or nothing exact."""


OPERATORS = tuple(
    f"admin.{act}"
    for kind in (Act, Restrict, Pardon, FileAppeal, AnswerAppeal, Plan, Unplan)
    for act in get_args(kind.model_fields["op"].annotation)
)
"""Rules of operators' acts on a session or a user."""


def sources(folder: str, pattern: str) -> str:
    """The text of all files of a folder whose names match."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob(pattern)))


def page(name: str) -> str:
    """The text of a document."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def named(path: Path) -> str:
    """How a test is called for a document."""
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """Without code, quotes, tables and the targets of links."""
    text = without_code(text)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "", text)
    text = re.sub(r"\"[^\"\n]*\"", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def table_rows(text: str) -> dict[str, list[str]]:
    """The rows of every table by what their first cell names in code."""
    rows = {}
    for line in without_code(text).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and (name := re.fullmatch(r"`([^`]+)`", cells[0])):
            rows[name[1]] = cells[1:]
    return rows


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- what is generated or listed


def test_the_lifecycle_diagram_is_the_one_of_the_table() -> None:
    """The block between the markers is what `python -m scheduler.lifecycle` prints."""
    block = re.search(r"<!-- lifecycle:begin -->\n(.*?)<!-- lifecycle:end -->", page("architecture"), re.DOTALL)
    assert block is not None
    assert block[1] == f"```mermaid\n{mermaid()}\n```\n"


@pytest.mark.parametrize("rule", sorted({*RULES, *CODE_OF, *OPERATORS}))
def test_every_rule_has_a_heading(rule: str) -> None:
    """Each rule that a decision can name is explained under its name, with formula, parameters and remedy."""
    section = re.search(rf"^### `{re.escape(rule)}`$(.*?)(?=^##)", page("policies"), re.DOTALL | re.MULTILINE)
    assert section is not None
    for part in ("- Formula: ", "- Parameters: ", "- A user can: "):
        assert part in section[1]


def test_no_heading_names_a_rule_that_is_gone() -> None:
    assert set(re.findall(r"^### `(.*)`$", page("policies"), re.MULTILINE)) == {*RULES, *CODE_OF, *OPERATORS}


def test_every_rule_that_policies_name_is_listed_with_a_text() -> None:
    """A literal that looks like a rule, anywhere in `policies`, is one of `RULES`."""
    source = sources("policies", "*.py")
    tables = r"order|ladder|host|limit|lifetime|idle|reclaim|maintenance"
    assert set(re.findall(rf"\"((?:{tables})\.[a-z-]+|use\.RULE|never-fits)\"", source)) == {*RULES, *CODE_OF}


def test_the_codes_of_why_are_those_of_the_code() -> None:
    """Every code that `fairtier why` can name, and every code of a change, in their tables; none more."""
    codes = set(re.findall(r"\"([A-Z][a-z]+(?:[A-Z][a-z]+)*)\"", sources("scheduler", "why*.py")))
    rows = table_rows(page("policies").partition("\n## What `why` says\n")[2].partition("\n## ")[0])
    assert rows.keys() == codes | set(CODE_OF.values()) | CHANGES.keys()
    assert {code: rows[code] for code in CHANGES} == {code: [text] for code, text in CHANGES.items()}


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_named(preset: str) -> None:
    assert f"`{preset}`" in page("policies")


def test_the_metrics_are_those_of_the_code() -> None:
    """Names as Prometheus shows them."""
    suffixes = {"Counter": "_total", "Info": "_info", "Gauge": "", "Histogram": ""}
    found = re.findall(r"(\w+)MetricFamily\(\s*\"(fairtier_\w+)\"", sources("scheduler/api", "metrics.py"))
    shown = [name for name in table_rows(page("operations")) if name.startswith("fairtier_")]
    assert sorted(shown) == sorted(name + suffixes[kind] for kind, name in found)


def test_the_exit_codes_are_those_of_the_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")]
    text = page("operations").partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert shown == {0, INTERRUPTED, *(kind.exit_code for kind in kinds)}


def test_every_kind_of_background_work_is_in_its_table() -> None:
    assert KINDS.keys() <= table_rows(page("operations")).keys()


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_commands_that_are_named_exist(path: Path) -> None:
    """`fairtier NAME` in code, whether in a line or in a block."""
    text = path.read_text(encoding="utf-8")
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = {name for piece in code for name in re.findall(r"(?:^|[/\s;])fairtier ([a-z]+)\b", piece)}
    assert found <= {*COMMANDS, "completion"}


def test_the_table_of_keys_is_the_one_of_the_code() -> None:
    """Key, default, unit, bounds and meaning; no key more or less."""
    rows = table_rows(page("policies").partition("\n## Policy file\n")[2])
    named = {f"{key.table}.{key.name}": key for key in KEYS} | {"gpu_weight.MODEL": WEIGHT}
    named |= {f"tiers.T.{key.name}": key for key in TIER_KEYS}
    expected = {name: [default_text(key), key.unit, key.allowed, key.does] for name, key in named.items()}
    assert rows == expected
    assert Params().tier("free").baseline_gpus is None


def test_the_comparison_of_two_policies_is_what_the_command_says() -> None:
    """The output shown is the real one but for the folding of long lines."""
    shown = page("policies").partition("$ fairtier policy diff research-first colab-2022\n")[2].partition("```")[0]
    said = CliRunner().invoke(policy, ["diff", "research-first", "colab-2022"])
    assert (said.exit_code, shown.split()) == (0, said.output.split())


def test_the_keys_that_rules_name_exist() -> None:
    """`ladder.warn_s` and the like, in the text about rules."""
    known = {f"{key.table}.{key.name}" for key in KEYS} | {f"tiers.T.{key.name}" for key in TIER_KEYS}
    used = set(re.findall(r"`((?:usage|order|headroom|ladder|idle|telemetry|tiers)\.[\w.]*_\w+)`", page("policies")))
    assert used <= known


def test_the_trace_format_is_the_one_that_is_read() -> None:
    text = page("simulate")
    assert [name for name in table_rows(text.partition("\n## Clusters\n")[0]) if name in COLUMNS] == list(COLUMNS)


def test_every_importer_and_scenario_is_in_its_table() -> None:
    rows = table_rows(page("simulate"))
    assert set(IMPORTERS) <= rows.keys()
    for name in scenario_names():
        scenario = read_scenario(name)
        assert rows[name] == [f"{scenario.offered_load:.1f}", scenario.title]


# ---- words


@pytest.mark.parametrize("word", WORDS)
def test_the_glossary_explains_the_word(word: str) -> None:
    """As the first cell of a row, alone or in a list such as `cell, lane, bench`."""
    listed = [line.split("|")[1].strip() for line in page("glossary").splitlines() if line.startswith("| ")]
    assert word in {entry for cell in listed for entry in cell.split(", ")}


def test_the_glossary_says_where_each_word_is_in_the_code() -> None:
    """Every dotted name in its tables can be imported."""
    names = re.findall(rf"`((?:{'|'.join(PACKAGES)})\.[\w.]+)`", page("glossary"))
    assert len(names) > len(WORDS)
    assert [name for name in names if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; attributes set in `__init__` count."""
    parts = name.split(".")
    for at in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError:
            continue
        for part in parts[at:]:
            if not hasattr(found, part):
                fields = getattr(found, "__annotations__", {}) | getattr(found, "__dataclass_fields__", {})
                return part in fields or f"{part}:" in (getattr(found, "__doc__", "") or "") or part in _doc(found)
            found = getattr(found, part)
        return True
    return False


def _doc(found: object) -> set[str]:
    """Attributes that the docstring of a class lists."""
    return set(re.findall(r"\b\w+\b", (found.__doc__ or "").partition("Attributes:")[2]))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_prose_uses_the_words_of_the_glossary(path: Path) -> None:
    """No document says in its prose what the glossary says not to."""
    found = [line for line in prose(path.read_text(encoding="utf-8")).splitlines() if NOT_USED.search(line)]
    assert found == []


# ---- what is referred to


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_relative_links_resolve(path: Path) -> None:
    """The file exists, and so does the heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_files_and_methods_that_are_named_exist(path: Path) -> None:
    """`policies/order.py` is a file; `FairQueue.add` is a name of a class that has it."""
    text = without_code(path.read_text(encoding="utf-8"))
    for file in re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests|benchmarks|docs)/[\w./-]*)`", text):
        assert (ROOT / file).exists() or re.search(r"\b[A-Z]{2,}\b", file), file  # NAME, HOST: stands for any
    source = "\n".join(sources(name, "*.py") for name in PACKAGES)
    for name, member in re.findall(r"`([A-Z][a-z]\w+)\.(\w+)(?:\([^`]*\))?`", text):
        body = re.search(rf"^class {name}\b.*?(?=^\S|\Z)", source, re.DOTALL | re.MULTILINE)
        assert body is not None, name
        assert re.search(rf"\b{member}\b", body[0]), f"{name}.{member}"


@pytest.mark.parametrize("name", PACKAGES)
def test_the_table_of_files_names_every_module(name: str) -> None:
    """Each module lies in a row of the architecture, itself or by its folder."""
    rows = [entry for entry in table_rows(page("architecture")) if "/" in entry]
    missing = []
    for file in sorted((ROOT / name).rglob("*.py")):
        path = str(file.relative_to(ROOT))
        if file.name != "__init__.py" and not any(path == row or path.startswith(f"{row}") for row in rows):
            missing.append(path)
    assert missing == []


# ---- planted faults


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The node is full.", True),
        ("Each job waits.", True),
        ("| node | host |", False),
        ("Say host, not `node`.", False),
        ("```\nnode\n```", False),
        ('The source calls it "job".', False),
    ],
)
def test_the_check_of_prose_finds_words_in_prose_only(text: str, found: bool) -> None:
    assert bool(NOT_USED.search(prose(text))) is found


def test_the_check_of_commands_finds_them_in_code_only() -> None:
    """In a block behind a prompt or a path, in a line of code; not in prose."""
    pattern = r"(?:^|[/\s;])fairtier ([a-z]+)\b"
    assert re.findall(pattern, ".venv/bin/fairtier demo") == ["demo"]
    assert re.findall(pattern, "sudo systemctl status fairtier-worker") == []


def test_the_check_of_names_finds_what_does_not_exist() -> None:
    assert exists("policies.model.Session.granted_m")
    assert not exists("policies.model.Sessions")
    assert not exists("policies.model.Session.cloud")
