"""`fairtier simulate` as people use it and as they break it: what is printed, exit codes, files, signals, terminals."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from fairtier.cli import main
from scheduler.policy_files import preset_names
from simulations.cli import _not_an_input
from simulations.progress import Progress, duration_text
from simulations.recorder import FILES
from simulations.replay_cli import _where_they_part
from simulations.workloads.scenario import load_scenario, scenario_names

FAIRTIER = [sys.executable, "-c", "from fairtier.cli import main; main(prog_name='fairtier')"]
HEAD = "session_id,user,submit_s,duration_s"
FULL = Path("/dev/full")
SHAPE: dict[str, Any] = {
    "schema": 0,
    "trace": "",
    "policy": "",
    "seed": 0,
    "digest": "",
    "sessions": dict.fromkeys(("submitted", "started", "completed", "evicted", "abandoned", "rejected"), 0),
    "wait_s": {"mean": 0, "p50": 0, "p95": 0, "p99": 0, "by_kind": {}, "by_tier": {}},
    "jct_s": {"mean": 0, "p50": 0, "p95": 0},
    "gpu": {"allocated": 0, "busy": 0, "busy_counts_unknown_load_as_1": False},
    "fairness": {"jain": 0, "gini": 0, "min_served_over_entitled": 0},
    "policing": dict.fromkeys(
        ("notices", "warnings", "throttles", "evictions", "wrongful_evictions", "false_warnings_per_1000"), 0
    ),
    "speed": {"wall_s": 0, "sessions_per_s": 0, "cycles": 0},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulate(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["simulate", *arguments], prog_name="fairtier")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def trace(*rows: str, head: str = HEAD, name: str = "t.csv") -> str:
    Path(name).write_text("".join(f"{line}\n" for line in (head, *rows)))
    return name


def members(value: Any) -> Any:
    """The names of a JSON document's members, in order and in depth."""
    return {name: members(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def everything(folder: Path) -> dict[str, str]:
    """Each path below a folder and what it holds; the summary without its speed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if path.name == "summary.json":
            content = json.dumps(json.loads(content) | {"speed": None}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


# ---- what a run says and writes


def test_json_has_exactly_the_members_that_scripts_rely_on() -> None:
    """Names, order and depth of `run -o json`; waits by kind and tier have the four figures each."""
    found = json.loads(simulate("run", "busy", "--days", ".3", "-o", "json").stdout)
    for group in ("by_kind", "by_tier"):
        assert found["wait_s"][group]
        for waits in found["wait_s"].pop(group).values():
            assert list(waits) == ["mean", "p50", "p95", "p99"]
        found["wait_s"][group] = {}
    assert json.dumps(members(found)) == json.dumps(members(SHAPE))
    assert found["schema"] == 1


def test_two_runs_differ_in_speed_alone() -> None:
    """Same seed: same digest, same files, same summary but for `speed`; another seed: another digest."""
    one, two, other = (
        json.loads(simulate("run", "busy", "--days", ".3", "--seed", seed, "--out", out, "-o", "json").stdout)
        for seed, out in (("7", "a"), ("7", "b"), ("8", "c"))
    )
    assert one | {"speed": 0} == two | {"speed": 0}
    assert everything(Path("a")) == everything(Path("b"))
    assert one["digest"] != other["digest"]
    assert json.loads(Path("a/summary.json").read_text()) == one


def test_the_digest_is_that_of_the_files() -> None:
    """`cat sessions.csv decisions.jsonl | sha256sum`, also when no files are kept."""
    digest = json.loads(simulate("run", "busy", "--days", ".2", "--out", "o", "-o", "json").stdout)["digest"]
    content = Path("o/sessions.csv").read_bytes() + Path("o/decisions.jsonl").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert digest == json.loads(simulate("run", "busy", "--days", ".2", "-o", "json").stdout)["digest"]
    assert {path.name for path in Path("o").iterdir()} == set(FILES)


def test_the_summary_fits_a_screen_and_is_aligned() -> None:
    """At most 24 lines of 80 columns but for the digest; one row a kind with a count, numbers to the right."""
    lines = simulate("run", "busy", "--days", ".3", "--out", "o", "--journal", "j").stdout.splitlines()
    assert len(lines) <= 26
    assert all(len(line) <= 80 for line in lines if not line.startswith(("digest", "policing", "fairness")))
    at = next(i for i, line in enumerate(lines) if line.startswith("wait"))
    table = lines[at : lines.index("", at)]
    assert table[0].split() == ["wait", "sessions", "mean", "p50", "p95", "p99"]
    assert len({len(line) for line in table}) == 1
    assert table[-1].startswith("all ")
    counts = [int(line.split()[1]) for line in table[1:]]
    assert sum(counts[:-1]) == counts[-1] > 0
    assert lines[-2:] == ["files     sessions.csv, decisions.jsonl and summary.json in o", "journal   j"]


def test_what_did_not_happen_is_not_listed() -> None:
    """No ladder under fifo, no row `all` for one kind, no measures without sessions."""
    text = simulate("run", trace("a,ann,0,60"), "--gpus", "1", "--policy", "fifo").stdout
    assert "sessions  1 submitted, 1 started, 1 completed\n" in text
    assert "policing" not in text
    assert "\nall" not in text
    empty = simulate("run", trace(), "--gpus", "1")
    assert (empty.exit_code, empty.stdout.split("\n")[2]) == (0, "sessions  0 submitted, 0 started")
    assert "fairness" not in empty.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (99.9, "99.9 s"),
        (99.96, "1.7 min"),
        (3600, "60 min"),
        (6000, "1.7 h"),
        (1e6, "12 days"),
    ],
)
def test_durations_have_a_unit_that_fits(seconds: float, text: str) -> None:
    """Three digits or so, whatever the size."""
    assert duration_text(seconds) == text


def test_a_trace_may_begin_late() -> None:
    """The hosts are there when the first session comes, whatever the axis of the trace."""
    name = trace("a,ann,70,60", "b,bob,1e6,60")
    assert simulate("run", name, "--gpus", "1", "--out", "o").exit_code == 0
    rows = Path("o/sessions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[4:8] for row in rows] == [["70", "70", "130", "0"], ["1000000"] * 2 + ["1000060", "0"]]


@pytest.mark.parametrize("policy", preset_names())
@pytest.mark.parametrize(
    ("extra", "row", "options"),
    [
        (",gpus", "5", ("--gpus", "4")),
        (",gpus", "5", ("--hosts", "2x2")),
        (",fraction", ".5", ("--gpus", "4", "--shared", "0")),
        (",gpu_type", "A100", ("--hosts", "1x4:T4")),
        (",memory_gib", "17", ("--hosts", "1x4:T4:16")),
    ],
)
def test_what_can_never_fit_is_rejected_with_its_reason(
    policy: str, extra: str, row: str, options: tuple[str, ...]
) -> None:
    """It does not wait for ever and does not block those behind it."""
    name = trace(f"big,ann,0,60,{row}", "next,bob,1,60,", head=HEAD + extra)
    result = simulate("run", name, *options, "--policy", policy, "--out", "o")
    assert "2 submitted, 1 started, 1 completed, 1 rejected" in result.stdout
    first = json.loads(Path("o/decisions.jsonl").read_text().splitlines()[0])
    assert (first["action"], first["session"], first["rule"]) == ("reject", "big", "never-fits")
    assert first["value"] > 0


def test_a_run_is_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are the caller's: relative to where the command runs."""
    (tmp_path / "deep").mkdir()
    trace("a,ann,0,60")
    first = json.loads(simulate("run", "t.csv", "--gpus", "1", "-o", "json").stdout)
    monkeypatch.chdir("deep")
    second = json.loads(simulate("run", "../t.csv", "--gpus", "1", "--out", "o", "-o", "json").stdout)
    assert first | {"speed": 0} == second | {"speed": 0}
    assert (tmp_path / "deep" / "o" / "sessions.csv").exists()


# ---- generate, import, replay


def test_a_generated_trace_runs_and_its_journal_replays() -> None:
    """From a scenario to a trace, to a run, to a replay in which every decision is equal."""
    assert simulate("generate", "busy", "--days", ".2", "--out", "t.csv.gz").stdout.startswith("t.csv.gz: ")
    assert simulate("run", "t.csv.gz", "--gpus", "64", "--out", "o", "--journal", "o/j.jsonl").exit_code == 0
    replayed = simulate("replay", "o/j.jsonl")
    assert (replayed.exit_code, "every decision equal" in replayed.stdout) == (0, True)
    found = json.loads(simulate("replay", "o/j.jsonl", "-o", "json").stdout)
    assert list(found) == ["schema", "journal", "cycles", "equal", "difference"]
    assert (found["equal"], found["difference"]) == (True, None)


def test_another_policy_stops_at_the_first_difference() -> None:
    """Exit code 1, the line, and what both decided there."""
    simulate("run", "busy", "--days", ".1", "--policy", "fifo", "--journal", "j")
    result = simulate("replay", "j", "--policy", "sjf")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: j:")
    recorded, replayed = result.stdout.splitlines()
    assert '"order.arrival"' in recorded
    assert '"order.duration"' in replayed
    found = json.loads(simulate("replay", "j", "--policy", "sjf", "-o", "json").stdout)
    assert (found["equal"], sorted(found["difference"])) == (False, ["line", "recorded", "replayed"])


def test_long_lines_are_cut_around_where_they_part() -> None:
    """A cycle with a thousand decisions still shows its difference on a screen."""
    one, other = _where_they_part("x" * 5000 + "A" + "y" * 5000, "x" * 5000 + "B" + "y" * 5000)
    assert one == "..." + "x" * 160 + "A" + "y" * 319 + "..."
    assert other[: len(one)].replace("B", "A") == one
    assert _where_they_part("same", "same+") == ("same", "same+")


def test_import_says_what_it_left_out() -> None:
    """A line for the rows written, one for each reason why rows were not."""
    Path("in.swf").write_text(
        "; head\n1 0 0 60 1 0 0 1 60 0 1 7 1 1 1 1 -1 -1\n2 5 0 -1 1 0 0 1 60 0 1 7 1 1 1 1 -1 -1\n"
    )
    result = simulate("import", "swf", "in.swf", "--out", "t.csv")
    assert result.stdout.splitlines() == ["t.csv: 1 sessions from in.swf", "left out: 1 rows, no run time"]


# ---- bad input


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "t.csv: file = '': must begin with a header"),
        ("session_id,user,submit_s\n", "t.csv:1: header = 'session_id,user,submit_s': must name the column duration_s"),
        (f"{HEAD},colour\n", "t.csv:1: header = 'colour': must be one of"),
        (f"{HEAD}\na,b,-1,1\n", "t.csv:2: submit_s = '-1': must be a number of seconds >= 0"),
        (f"{HEAD}\na,b,nan,1\n", "t.csv:2: submit_s = 'nan'"),
        (f"{HEAD}\na,b,1,inf\n", "t.csv:2: duration_s = 'inf'"),
        (f"{HEAD}\na,b,1,0\n", "t.csv:2: duration_s = '0': must be a number of seconds > 0"),
        (f"{HEAD}\na,b,soon,1\n", "t.csv:2: submit_s = 'soon'"),
        (f"{HEAD}\na,b,5,1\nc,b,4,1\n", "t.csv:3: submit_s = '4': must be sorted"),
        (f"{HEAD}\na,b,5,1\na,b,5,1\n", "t.csv:3: session_id = 'a': must be used once"),
        (f"{HEAD}\nA b,b,5,1\n", "t.csv:2: session_id = 'A b': must be 1 to 64 characters"),
        (f"{HEAD}\na,b,5\n", "t.csv:2: line = 'a,b,5': must have 4 cells, has 3"),
        (b"\x7fELF\x02\xff\xfe\n", "t.csv:1: line ="),
        ("x" * 100_000, "t.csv:1: line ="),
    ],
)
def test_a_broken_trace_names_file_line_and_field(content: str | bytes, said: str) -> None:
    """Exit code 2, one line, no files, whether it breaks at the first row or in the middle of the run."""
    Path("t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = simulate("run", "t.csv", "--gpus", "4", "--out", "o", "--journal", "j")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {said}")
    assert [path.name for path in Path().iterdir()] == ["t.csv"]


@pytest.mark.slow
def test_a_line_of_200_mb_is_refused_in_little_memory() -> None:
    """A sparse file without a newline: read in bounded pieces."""
    with Path("t.csv").open("wb") as file:
        file.truncate(200_000_000)
    limited = ["sh", "-c", 'ulimit -v 400000; exec "$@"', "sh", *FAIRTIER, "simulate", "run", "t.csv", "--gpus", "1"]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr[:21]) == (2, "error: t.csv:1: line ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("run none.csv", 3, "no such trace: none.csv"),
        ("run none.csv --gpus 4", 3, "no such trace: none.csv"),
        ("run none.toml", 3, "no such file: none.toml"),
        ("run t.csv", 2, "how large is the cluster for t.csv?"),
        ("run t.csv --gpus 4 --hosts 1x4", 2, "two ways to say the same"),
        ("run t.csv --gpus 0", 2, "--gpus 0 must be within 1..100000"),
        ("run t.csv --hosts 4", 2, "--hosts '4'"),
        ("run t.csv --gpus 4 --days 2", 2, "--days is for scenarios"),
        ("run folder --gpus 4", 2, "folder"),
        ("run folder.toml", 2, "folder.toml cannot be read: Is a directory"),
        ("run binary.toml", 2, "binary.toml: not UTF-8 (byte 0)"),
        ("run wrong.toml", 2, "wrong.toml: gpus = 'x': must be a whole number"),
        ("run busy --days 0", 2, "days = 0.0: must be a number from"),
        ("run busy --days nan", 2, "days = nan"),
        ("run busy --days inf", 2, "days = inf"),
        ("run busy --days -1", 2, "days = -1.0"),
        ("run busy --seed -1", 2, "'--seed': -1"),
        ("run busy --shared -1", 2, "'--shared': -1"),
        ("run busy --policy reserch-first", 3, "no policy 'reserch-first'"),
        ("run busy --policy none.toml", 3, "no policy 'none.toml'"),
        ("run busy --policy wrong.toml", 2, "wrong.toml:1: gpus"),
        ("run busy --out t.csv", 2, "t.csv is a file, not a folder"),
        ("run busy --out t.csv/x", 2, "cannot write to t.csv/x: Not a directory"),
        ("run busy --out /proc/x", 2, "cannot write to /proc/x"),
        ("run busy --journal folder", 2, "folder is a folder, not a file"),
        ("run busy --journal none/j", 2, "there is no folder none"),
        ("run busy --out o --journal o/sessions.csv", 2, "is a file that --out writes"),
        ("run t.csv --gpus 4 --journal t.csv", 2, "t.csv is read by this command"),
        ("run busy -o csv", 2, "'csv' is not one of"),
        ("generate none --out x.csv", 3, "no such scenario: none"),
        ("generate busy --scale nan --out x.csv", 2, "scale = nan"),
        ("generate busy --out folder", 2, "folder is a folder"),
        ("generate busy --out none/x.csv", 2, "there is no folder none"),
        ("generate wrong.toml --out wrong.toml", 2, "wrong.toml is read by this command"),
        ("import helios none --out x.csv", 3, "no such file: none"),
        ("import helios folder --out x.csv", 2, "folder"),
        ("import helios t.csv --out x.csv", 2, "t.csv:1: header"),
        ("import helios t.csv --out t.csv", 2, "t.csv is read by this command"),
        ("import nonsense t.csv --out x.csv", 2, "'nonsense' is not one of"),
        ("replay none", 3, "no such journal: none"),
        ("replay folder", 2, "folder is a folder"),
        ("replay t.csv", 2, "t.csv:1: not JSON"),
        ("replay binary.toml", 2, "binary.toml:1: not JSON"),
        ("replay empty", 2, "empty: empty, no checkpoint"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(arguments: str, code: int, said: str) -> None:
    """Exit code 2, or 3 for what does not exist; standard output stays empty, and no file appears or changes."""
    trace("a,ann,0,60")
    Path("folder").mkdir()
    Path("folder.toml").mkdir()
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("wrong.toml").write_text('gpus = "x"\n')
    Path("empty").touch()
    before = everything(Path())
    result = simulate(*arguments.split())
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert everything(Path()) == before


@pytest.mark.parametrize("option", ["--out", "--journal"])
def test_an_empty_name_is_not_the_folder_of_now(option: str) -> None:
    """An unset variable in a script must not scatter files."""
    result = simulate("run", "busy", option, "")
    assert (result.exit_code, "the name is empty" in result.stderr) == (2, True)


def test_errors_carry_what_to_do_next() -> None:
    """The hint is not lost on its way."""
    assert "hint: did you mean research-first?" in simulate("run", "busy", "--policy", "reserch-first").stderr
    assert f"hint: one of {', '.join(scenario_names())}" in simulate("generate", "none", "--out", "x").stderr
    assert "simulate import --help" in simulate("run", trace(head="u_id,user,t"), "--gpus", "1").stderr


@pytest.mark.parametrize(
    "command", ["run busy --out shut/o", "run busy --journal shut/j", "generate busy --out shut/t.csv"]
)
def test_a_folder_that_cannot_be_written_is_said(command: str) -> None:
    """Before the run, not after it (root may write anywhere: there the folder is a kernel's that takes no files)."""
    if os.geteuid():
        Path("shut").mkdir(mode=0o500)
    else:
        Path("shut").symlink_to("/sys/kernel")
    result = simulate(*command.split())
    assert result.exit_code == 2
    assert "cannot write" in result.stderr or "be written" in result.stderr


@pytest.mark.parametrize("command", ["run busy --journal", "generate busy --out"])
def test_a_pipe_or_a_device_is_left_alone(command: str) -> None:
    """A rename would replace it (a named pipe stands for both here: it can be spared)."""
    os.mkfifo("pipe")
    result = simulate(*command.split(), "pipe")
    assert (result.exit_code, "left alone" in result.stderr) == (2, True)
    assert stat.S_ISFIFO(os.lstat("pipe").st_mode)


def test_an_input_is_recognised_under_another_name() -> None:
    """Links and detours name the same file."""
    trace("a,ann,0,60")
    Path("link.csv").symlink_to("t.csv")
    with pytest.raises(Exception, match="is read by this command"):
        _not_an_input(Path("link.csv"), "./t.csv")


def test_a_huge_seed_is_a_seed() -> None:
    """Any whole number decides a run."""
    result = simulate("run", "busy", "--days", ".01", "--seed", "9" * 40, "-o", "json")
    assert json.loads(result.stdout)["seed"] == int("9" * 40)


# ---- help


def test_help_lists_what_is_shipped() -> None:
    """Every scenario with its title, every policy; the group's lines are whole."""
    text = simulate("run", "--help").stdout
    for name in (*scenario_names(), *preset_names()):
        assert f"\n  {name} " in text
    group = simulate("--help").stdout.partition("Commands:")[2]
    assert "..." not in group
    for name in ("generate", "import", "replay", "run"):
        assert f"\n  {name} " in group


# ---- where the output goes


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FAIRTIER, "simulate", *arguments], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options
    )


def test_a_pipe_gets_no_progress_and_errors_go_elsewhere() -> None:
    """Standard error stays empty without a terminal; ASCII locales, narrow columns change nothing that counts."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LANG": "C", "COLUMNS": "40"}
    done = command("run", "busy", "--days", ".1", stdout=subprocess.PIPE, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("busy under research-first, seed 1\n")


def test_a_reader_that_leaves_is_not_an_error_message() -> None:
    """`| head -1`: quiet, and the files are complete."""
    reader, writer = os.pipe()
    os.close(reader)
    done = command("run", "busy", "--days", ".1", "--out", "o", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    assert {path.name for path in Path("o").iterdir()} == set(FILES)


@pytest.mark.skipif(not (FULL.exists() and stat.S_ISCHR(FULL.stat().st_mode)), reason="no /dev/full here")
@pytest.mark.parametrize("form", ["table", "json"])
def test_output_to_a_full_disk_is_one_line(form: str) -> None:
    """No traceback, no second complaint at exit. (The device is only ever written to, never named as a file.)"""
    with FULL.open("w") as full:
        done = command("run", "busy", "--days", ".1", "-o", form, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write to standard output: No space left on device\n")
    assert len(done.stderr.splitlines()) == 2


def test_no_standard_output_is_said() -> None:
    """`>&-` leaves Python without one."""
    shell = ["sh", "-c", '"$@" >&-', "sh", *FAIRTIER, "simulate", "run", "busy", "--days", ".1"]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: there is no standard output to write to")


def test_names_of_any_bytes_can_be_shown() -> None:
    """A file name that is no text: replaced where it is shown, right where it is used."""
    name = os.fsdecode(b"t\xff.csv")
    trace("a,ann,0,60", name=name)
    assert simulate("run", name, "--gpus", "1").stdout.startswith("t\N{REPLACEMENT CHARACTER}.csv under")
    assert "n\N{REPLACEMENT CHARACTER}.csv" in simulate("run", os.fsdecode(b"n\xff.csv"), "--gpus", "1").stderr


# ---- progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """Standard error on a terminal, kept."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_has_rate_and_time_left_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing for two seconds, then a line at most four times a second, wiped at the end."""
    clock, screen, workload = Clock(), Screen(), load_scenario("busy", seed=1, days=1)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress("sessions", 1000, clock=clock) as progress:
        for clock.now, done in ((1.0, 100), (1.99, 199), (4.0, 400), (4.1, 410)):
            progress.show(done, 0, workload)
        assert screen.text == "\r\x1b[K 40 %  400 sessions, 100/s, 6 s left"
        clock.now = 10.0
        progress.show(1000, 0, workload)
        assert screen.text.endswith("\r\x1b[K100 %  1,000 sessions, 100/s, the last ones end")
    assert screen.text.endswith("\r\x1b[K")


def test_progress_of_unknown_length_claims_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed trace, a journal: what is done and how fast; narrow terminals get one line too."""
    clock, screen, workload = Clock(), Screen(), load_scenario("busy", seed=1, days=1)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "20")
    with Progress("sessions", None, timed=False, clock=clock) as progress:
        clock.now = 4.0
        progress.show(4000, 0, workload)
    assert screen.text == "\r\x1b[K4,000 sessions, 1,0\r\x1b[K"


@pytest.mark.parametrize("total", [None, 0])
def test_progress_of_nothing_divides_by_nothing(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    """No total, no time passed: no error."""
    clock, screen = Clock(), Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress("cycles", total, clock=clock)
    clock.now = 3.0
    progress.tick(0)
    progress.show(0, 0, load_scenario("busy", seed=1, days=1))
    assert "0 cycles, 0/s" in screen.text


def on_a_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """Exit code and everything that a terminal of that width is sent."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the command itself
        os.execv(sys.executable, [*FAIRTIER, "simulate", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    sent, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:
                break
            sent += chunk
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sent.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
def test_a_long_run_shows_progress_on_a_terminal(columns: int) -> None:
    """Percent, count, rate and time left in one line of the terminal's width, gone before the summary."""
    code, sent = on_a_terminal("generate", "flood", "--scale", "20", "--out", "t.csv", columns=columns)
    assert code == 0
    lines = sent.split("\r\x1b[K")
    assert len(lines) > 2
    assert [line for line in lines[1:-1] if len(line) >= columns] == []
    assert " %  " in lines[1]
    assert " sessions, " in lines[1]
    assert lines[-1].startswith("t.csv: ")


# ---- being stopped


def test_ignored_signals_stay_ignored_and_handlers_are_put_back() -> None:
    """`nohup fairtier ...` survives a hang-up; a caller in the same process keeps its handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = handlers_inside()
        assert seen[signal.SIGHUP] is signal.SIG_IGN
        assert seen[signal.SIGTERM] != before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in before} == before


def handlers_inside() -> dict[int, Any]:
    seen: dict[int, Any] = {}
    group = type(main.get_command(click.Context(main), "simulate"))("group")

    @group.command()
    def look() -> None:
        seen.update({number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)})

    assert CliRunner().invoke(group, ["look"]).exit_code == 0
    return seen


SLOW_RUN = ("run", "busy", "--days", "2", "--out", "o", "--journal", "j")


def stopped(number: int, after_s: float, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command that gets a signal after a while."""
    process = subprocess.Popen(
        [*FAIRTIER, "simulate", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after_s)
    process.send_signal(number)
    return process.wait(timeout=60), process.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n"), (signal.SIGHUP, 129, "hung up\n")],
)
def test_a_run_that_is_stopped_leaves_one_complete_set_of_files(number: int, code: int, line: str) -> None:
    """At many moments: the older files or the new ones, whole, nothing besides, one line, exit code 128 + signal."""
    began = time.monotonic()
    assert simulate(*SLOW_RUN, "--seed", "2").exit_code == 0
    assert command(*SLOW_RUN, "--seed", "2", stdout=subprocess.DEVNULL).returncode == 0
    new, took = everything(Path()), (time.monotonic() - began) / 2
    said = []
    for step in range(16):
        assert simulate("run", "busy", "--days", ".1", "--out", "o", "--journal", "j").exit_code == 0
        old = everything(Path())
        said.append(stopped(number, took * (step + 0.5) / 12, *SLOW_RUN, "--seed", "2"))
        assert everything(Path()) in (old, new), said[-1]
    assert (code, line) in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trace_that_is_being_written_goes_with_the_command(number: int) -> None:
    """No draft stays behind, and no half trace."""
    status, _ = stopped(number, 1.5, "generate", "flood", "--scale", "50", "--out", "t.csv")
    assert status == 128 + number
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_two_runs_into_one_folder_leave_the_files_of_one() -> None:
    """Whoever ends last has it; never some of each."""
    both = [
        subprocess.Popen(
            [*FAIRTIER, "simulate", "run", "busy", "--days", "1", "--seed", seed, "--out", "o"],
            stdout=subprocess.DEVNULL,
        )
        for seed in "12"
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    content = Path("o/sessions.csv").read_bytes() + Path("o/decisions.jsonl").read_bytes()
    assert json.loads(Path("o/summary.json").read_text())["digest"] == hashlib.sha256(content).hexdigest()
    assert {path.name for path in Path("o").iterdir()} == set(FILES)
