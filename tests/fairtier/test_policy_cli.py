"""`fairtier policy`: what operators script against, and what a wrong file says."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fairtier import policy_cli
from fairtier.cli import main
from policies.params import Params, PolicyError, load
from scheduler import policy_files
from scheduler.policy_files import PolicyNotFound, preset_names, preset_text, read_policy

COMMAND = Path(sys.executable).parent / "fairtier"

TREE: dict[str, Any] = {
    "name": "root",
    "usage": 1.0,
    "children": [
        {
            "name": "A",
            "shares": 50,
            "children": [{"name": "a1", "shares": 1, "usage": 0.5}, {"name": "a2", "shares": 1}],
        },
        {
            "name": "B",
            "shares": 50,
            "children": [{"name": "b1", "shares": 1, "usage": 0.25}, {"name": "b2", "shares": 1, "usage": 0.1}],
        },
    ],
}


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, arguments)], input=stdin)


def document(result: Result) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(result.stdout)
    assert data.pop("schema") == 1
    return data


# presets


def test_presets_are_listed_with_their_summaries() -> None:
    rows = document(run("presets", "-o", "json"))["presets"]
    assert [row["name"] for row in rows] == [
        "research-first", "colab-2022", "demo", "exam-week", "fifo", "fifo-skip", "kaggle-like", "open-lab", "sjf",
        "status-quo",
    ]  # fmt: skip
    assert [row["default"] for row in rows] == [True, *[False] * 9]
    assert all(row["summary"].endswith(".") for row in rows)
    assert run("presets").stdout.splitlines()[1].split()[:3] == ["research-first", "true", "fair-share"]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_named_after_its_file(name: str) -> None:
    params = read_policy(name)
    assert params.name == name
    assert params.policy == (name if name in ("fifo", "fifo-skip", "sjf") else "fair-share")


def test_the_default_preset_says_every_default_and_keeps_headroom() -> None:
    params = read_policy("research-first")
    given = tomllib.loads(preset_text("research-first"))
    assert params.headroom.confidence == 0.95
    assert (params.usage, params.ladder, params.telemetry) == (Params().usage, Params().ladder, Params().telemetry)
    for table, values in params.as_dict().items():
        assert table in given or table in ("gpu_weight", "tiers", "order", "idle")
        if isinstance(values, dict) and table in given and table != "tiers":
            assert {name for name, value in values.items() if value is not None} == set(given[table])


@pytest.mark.parametrize("name", preset_names())
def test_every_value_of_a_preset_is_explained_in_one_line(name: str) -> None:
    """But for the names, words and examples of a rule, which are for people themselves."""
    lines = preset_text(name).splitlines()
    speaks = ("#", "id = ", "title = ", "category = ", "message = ", "positive = ", "negative = ", "steps = [", '    "')
    values = [line for line in lines[4:] if " = " in line and (not line.startswith(speaks) or line.endswith("}]"))]
    assert all("  # " in line for line in values)
    assert all(len(line) <= 120 for line in lines[4:])


# show


def test_rules_of_acceptable_use_are_shown_and_compared_in_words() -> None:
    """A row for each part of a rule; of a rule that only one policy has, one row for all of it."""
    rows = {row["key"]: row for row in csv.DictReader(io.StringIO(run("show", "colab-2022", "-o", "csv").stdout))}
    assert rows["rule.faceswap-train"]["value"] == "record it at once"
    assert rows["rule.faceswap-train.match"]["value"] == "runs faceswap.py, with the word train"
    assert rows["rule.deepfacelab-shape.shadow"]["value"] == "yes"
    differs = {row["key"] for row in document(run("diff", "research-first", "colab-2022", "-o", "json"))["differences"]}
    assert "rule.mining" in differs
    assert "rule.mining.match" not in differs


def test_show_lists_every_value_with_unit_and_meaning() -> None:
    rows = {row["key"]: row for row in csv.DictReader(io.StringIO(run("show", "research-first", "-o", "csv").stdout))}
    assert rows["usage.half_life_h"]["value"] == "48"
    assert rows["usage.half_life_h"]["unit"] == "h"
    assert rows["tiers.free.baseline_gpus"]["value"] == "auto"
    assert rows["ladder.rotate_delta_gpu_h"]["value"] == ""
    assert all(row["does"].endswith(".") for row in rows.values())
    assert " off " in run("show", "research-first").stdout


def test_show_json_gives_the_effective_values() -> None:
    data = document(run("show", "research-first", "-o", "json"))
    assert data["policy"] == read_policy("research-first").as_dict()
    assert data["derived"]["swap_period_s"] == pytest.approx(3600.06, abs=0.01)
    assert document(run("show", "fifo", "-o", "json"))["derived"] is None


def test_show_toml_prints_the_file_with_its_comments(tmp_path: Path) -> None:
    assert run("show", "research-first", "-o", "toml").stdout == preset_text("research-first")
    file = tmp_path / "site.toml"
    file.write_text("# ours\n[gpu_weight]\nA100 = 4", encoding="utf-8")
    assert run("show", file, "-o", "toml").stdout == "# ours\n[gpu_weight]\nA100 = 4"
    assert "gpu_weight.A100" in run("show", file).stdout


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("", encoding="utf-8")
    (tmp_path / "My Site.toml").write_text("", encoding="utf-8")
    (tmp_path / "other.toml").write_text('name = "own"', encoding="utf-8")
    names = [read_policy(str(tmp_path / f"{stem}.toml")).name for stem in ("site", "My Site", "other")]
    assert names == ["site", "", "own"]


@pytest.mark.parametrize("name", ["research-frist", "missing/site.toml", "/", "fifo/x", "../presets/fifo"])
def test_what_does_not_exist_is_not_found(name: str) -> None:
    result = run("show", name)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: no policy {name!r}\nhint: ")
    assert ", ".join(preset_names()) in result.stderr


def test_a_near_miss_is_named() -> None:
    with pytest.raises(PolicyNotFound) as caught:
        read_policy("research-frist")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean research-first?")
    assert caught.value.known == preset_names()


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (None, 1, "Is a directory"),
        (b"name = 'x'\nsummary = '\xff'\n", 2, "not UTF-8 (byte 22)"),
        (b"#" * (policy_files.LARGEST_FILE + 1), 1, "larger than 1048576 bytes"),
    ],
)
def test_what_cannot_be_read_is_a_mistake_of_the_file(
    tmp_path: Path, content: bytes | None, line: int, words: str
) -> None:
    file = tmp_path / "site.toml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        read_policy(str(file))
    (error,) = caught.value.errors
    assert (error.file, error.line, error.value) == (str(file), line, words)
    assert run("show", file).exit_code == 2


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_bytes(b"#" * policy_files.LARGEST_FILE)
    assert read_policy(str(file)) == Params(name="site")
    with pytest.raises(PolicyError):
        read_policy(f"{tmp_path}/\0.toml")


# check

WRONG = """\
[usage]
half_life_h = 0
[gpu_weight]
T4 = 0
[ladder]
rotate_delta_gpu_h = 0
grace_s = 5
warm_s = 1
[telemetry]
stale_s = 60
"""


def test_check_reports_every_mistake_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(WRONG, encoding="utf-8")
    result = run("check", file, "-o", "json")
    data = document(result)
    assert (result.exit_code, data["ok"]) == (2, False)
    assert [(e["line"], e["key"], e["value"]) for e in data["errors"]] == [
        (2, "usage.half_life_h", 0),
        (4, "gpu_weight.T4", 0),
        (6, "ladder.rotate_delta_gpu_h", 0),
        (7, "ladder.grace_s", 5),
        (8, "ladder.warm_s", 1),
        (10, "telemetry.stale_s", 60),
    ]
    assert all(set(e) == {"file", "line", "key", "value", "allowed"} and e["file"] == str(file) for e in data["errors"])
    text = run("check", file)
    with pytest.raises(PolicyError) as caught:
        load(WRONG, str(file))
    assert (text.exit_code, text.stdout) == (2, "")
    assert text.stderr.splitlines() == [f"error: {error}" for error in caught.value.errors]


def test_check_of_several_files_goes_on_after_the_first_wrong_one(tmp_path: Path) -> None:
    for name, text in {"a.toml": "x = ", "b.toml": "", "c.toml": "policy = 1"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [tmp_path / name for name in ("a.toml", "b.toml", "c.toml", "none.toml")]
    data = document(run("check", *files, "-o", "json"))
    assert [Path(e["file"]).name for e in data["errors"]] == ["a.toml", "c.toml", "none.toml"]
    text = run("check", *files)
    assert (text.exit_code, text.stdout) == (2, f"{files[1]}: ok\n")
    assert len(text.stderr.splitlines()) == 3
    assert run("check", files[3]).exit_code == 3


def test_check_of_right_files_is_quiet_success() -> None:
    result = run("check", *preset_names(), "-o", "json")
    assert (result.exit_code, document(result)) == (0, {"ok": True, "errors": []})
    assert run("check", "fifo").stdout == "fifo: ok\n"


# rank


@pytest.mark.parametrize("wrap", [False, True])
def test_rank_by_fair_tree(tmp_path: Path, wrap: bool) -> None:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"source": "x", "tree": TREE} if wrap else TREE), encoding="utf-8")
    users = document(run("rank", file, "-o", "json"))["users"]
    assert [(u["user"], u["rank"], u["factor"]) for u in users] == [
        ("b2", 4, 1.0),
        ("b1", 3, 0.75),
        ("a2", 2, 0.5),
        ("a1", 1, 0.25),
    ]
    assert users[2] == {"user": "a2", "path": "root/A/a2", "level_fs": None, "rank": 2, "factor": 0.5}


def test_rank_by_multifactor_from_standard_input() -> None:
    result = run("rank", "-", "--method", "multifactor", "-o", "json", stdin=json.dumps(TREE))
    found = {u["user"]: u["factor"] for u in document(result)["users"]}
    assert found == pytest.approx({"b2": 0.535887, "a2": 0.5, "b1": 0.435275, "a1": 0.25}, abs=5e-7)
    assert list(found) == ["b2", "a2", "b1", "a1"]


def test_rank_as_a_table_and_as_csv() -> None:
    lines = run("rank", "-", stdin=json.dumps(TREE)).stdout.splitlines()
    assert lines[0].split() == ["user", "path", "level_fs", "rank", "factor"]
    assert lines[3].split() == ["a2", "root/A/a2", "inf", "2", "0.5"]
    assert run("rank", "-", "-o", "csv", stdin=json.dumps(TREE)).stdout.splitlines()[3] == "a2,root/A/a2,,2,0.5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"tree": 3}', "tree: a node must be an object"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        ('{"name": "root", "children": [{"name": "a", "shares": NaN}]}', "root/a: shares is nan"),
        ('{"name": "root", "children": [{"name": "a", "shares": 1e999}]}', "root/a: shares is inf"),
        ('{"name": "root", "children": [{"name": "a", "shares": -1}]}', "root/a: shares is -1"),
        ('{"name": "root", "children": [{"shares": 1}]}', 'root: a node in root has no "name"'),
        ('{"name": "root", "children": [{"name": "a", "shares": 1, "shares": 2}]}', "'shares' stands twice"),
        ('{"name": "root", "children": [{"name": "a", "shares": ' + "1" * 5000 + "}]}", "not JSON"),
    ],
)
@pytest.mark.parametrize("method", ["fair-tree", "multifactor"])
def test_wrong_trees_say_where(text: str | bytes, words: str, method: str) -> None:
    result = run("rank", "-", "--method", method, stdin=text)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: standard input: ")
    assert words in result.stderr
    assert result.stdout == ""


def test_a_total_below_its_parts_is_refused_by_multifactor_alone() -> None:
    text = json.dumps(TREE | {"usage": 0.1})
    assert run("rank", "-", stdin=text).exit_code == 0
    assert "root: its usage 0.1 is the total" in run("rank", "-", "--method", "multifactor", stdin=text).stderr


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, directory, large = tmp_path / "none.json", tmp_path, tmp_path / "large.json"
    assert (run("rank", missing).exit_code, run("rank", missing).stderr) == (3, f"error: {missing}: no such file\n")
    assert (run("rank", directory).exit_code, run("rank", directory).stderr) == (
        2,
        f"error: {directory}: Is a directory\n",
    )
    monkeypatch.setattr(policy_cli, "LARGEST_TREE", 1024**2)
    large.write_text(json.dumps(TREE) + " " * 1024**2, encoding="utf-8")
    assert (run("rank", large).exit_code, run("rank", large).stderr) == (2, f"error: {large}: larger than 1 MiB\n")


@pytest.mark.skipif(not COMMAND.exists(), reason="the project is not installed in this environment")
def test_the_real_command(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(WRONG, encoding="utf-8")
    done = subprocess.run([COMMAND, "policy", "check", "wrong.toml"], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count(b"error: wrong.toml:")) == (2, b"", 6)
    done = subprocess.run(
        [COMMAND, "policy", "rank", "-", "-o", "jsonl"],
        input=json.dumps(TREE).encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[0])["user"] == "b2"


# diff


def test_diff_says_in_words_what_is_different() -> None:
    said = run("diff", "research-first", "kaggle-like").stdout
    assert said.startswith("kaggle-like differs from research-first in 13 values:")
    assert "  tiers.free.quota_gpu_h: off -> 30 GPU-h\n    GPU-hours that one user may hold" in said
    assert "  tiers.free.lifetime_s: off -> 9 h\n" in said
    assert "  order.by: standing -> arrival\n" in said


def test_diff_json_has_both_values(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[gpu_weight]\nA100 = 4\n[tiers.staff]\nbaseline_gpus = 2\ngpu_models = ["T4", "L4"]\n')
    rows = document(run("diff", "research-first", str(file), "-o", "json"))["differences"]
    found = {row["key"]: (row["a"], row["b"]) for row in rows}
    assert found == {
        "headroom.fixed_gpus": (None, 0),
        "headroom.confidence": (0.95, None),
        "gpu_weight.A100": (1, 4),
        "tiers.staff.baseline_gpus": ("auto", 2),
        "tiers.staff.gpu_models": (None, ["T4", "L4"]),
    }
    assert "T4, L4" in run("diff", "research-first", str(file)).stdout


@pytest.mark.parametrize("name", preset_names())
def test_a_policy_does_not_differ_from_itself(name: str) -> None:
    assert run("diff", name, name).stdout == f"{name} differs from {name} in 0 values.\n"


def test_diff_of_another_kind_of_policy() -> None:
    rows = document(run("diff", "fifo", "sjf", "-o", "json"))["differences"]
    assert [(row["key"], row["a"], row["b"]) for row in rows] == [("policy", "fifo", "sjf")]
    assert document(run("diff", "fifo", "research-first", "-o", "json"))["differences"][0]["key"] == "policy"
