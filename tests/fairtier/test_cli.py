"""The command itself: help without imports, exit codes, messages without tracebacks, completion, output formats."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fairtier.cli import COMMANDS, LazyGroup, main
from policies.params import load
from scheduler.errors import BadInput, FairTierError, NotFound, Refused, Unreachable
from scheduler.output import emit, output_option

COMMAND = Path(sys.executable).parent / "fairtier"

needs_command = pytest.mark.skipif(not COMMAND.exists(), reason="the project is not installed in this environment")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_names_every_command_with_its_line() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in result.output
        assert line.split(".")[0] in " ".join(result.output.split())
    assert "completion" in result.output


def test_help_and_version_import_no_command_and_nothing_heavy() -> None:
    done = python(
        "import sys\n"
        "from fairtier.cli import main\n"
        "for option in ('--help', '--version'):\n"
        "    try: main([option], prog_name='fairtier')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "fairtier.cli" in loaded
    heavy = {name for name in loaded if name.partition(".")[0] in ("simulations", "rich")}
    assert heavy | loaded & {"fairtier.policy_cli", "scheduler.core", "policies.shares"} == set()


@needs_command
def test_the_installed_command_runs() -> None:
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fairtier, version 0.")


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for arguments in (["polciy"], ["--colour"], ["policy", "shwo"], ["policy", "rank"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2


def group_raising(error: BaseException) -> LazyGroup:
    group = LazyGroup("test", lazy={})

    @group.command()
    def fail() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code"),
    [(FairTierError, 1), (BadInput, 2), (NotFound, 3), (Unreachable, 4), (Refused, 5)],
)
def test_each_error_has_its_exit_code_and_no_traceback(error: type[FairTierError], code: int) -> None:
    result = CliRunner().invoke(group_raising(error("it broke", "mend it")), ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "error: it broke\nhint: mend it\n")
    assert CliRunner().invoke(group_raising(error("it broke")), ["fail"]).stderr == "error: it broke\n"


def test_a_policy_error_is_one_line_per_mistake() -> None:
    group = LazyGroup("test", lazy={})
    group.command("read")(lambda: load("[usage]\nhalf_life_h = 0\nidle_charge = 2\n", "x.toml") and None)
    result = CliRunner().invoke(group, ["read"])
    assert result.exit_code == 2
    assert [line.partition(" = ")[0] for line in result.stderr.splitlines()] == [
        "error: x.toml:2: usage.half_life_h",
        "error: x.toml:3: usage.idle_charge",
    ]


def test_an_interrupt_is_one_line() -> None:
    result = CliRunner().invoke(group_raising(KeyboardInterrupt()), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_defect_of_ours_is_not_dressed_up_as_the_callers_mistake() -> None:
    result = CliRunner().invoke(group_raising(ZeroDivisionError("ours")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


@needs_command
def test_ctrl_c_while_reading() -> None:
    process = subprocess.Popen(
        [COMMAND, "policy", "rank", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        process.stdin.write(b" " * 1024**2)  # more than a pipe holds: once it is written, the command is reading
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"interrupted\n")


@needs_command
def test_a_reader_that_leaves_is_no_error_message() -> None:
    process = subprocess.Popen(
        [COMMAND, "policy", "show", "research-first"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_lazy_command_that_is_none_is_a_defect() -> None:
    group = LazyGroup("test", lazy={"x": ("fairtier.cli:COMMANDS", "Nothing.")})
    assert isinstance(CliRunner().invoke(group, ["x"]).exception, TypeError)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_FAIRTIER_COMPLETE={shell}_complete" in result.stdout
    assert CliRunner().invoke(main, ["completion", "csh"]).exit_code == 2


@needs_command
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_the_bash_script_is_bash_and_completes() -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, timeout=30).returncode == 0
    done = subprocess.run(
        [COMMAND],
        env={"COMP_WORDS": "fairtier policy ", "COMP_CWORD": "2", "_FAIRTIER_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [
        f"plain,{name}"
        for name in ("activate", "check", "diff", "presets", "rank", "rollback", "shadow", "show", "versions")
    ]


ROWS: list[dict[str, Any]] = [
    {"user": "ann", "load": 0.1 + 0.2, "gpus": [1, 2], "ok": True, "wait": None},
    {"user": 'bob\x1b[31m, "the"', "load": 2.0, "gpus": [], "ok": False, "wait": 5},
]
COLUMNS = ("user", "load", "ok", "wait")


def printed(kind: str, **options: Any) -> str:
    out = io.StringIO()
    emit(ROWS, COLUMNS, kind, "sessions", out, **options)
    return out.getvalue()


def test_json_has_a_schema_and_whole_rows() -> None:
    assert json.loads(printed("json")) == {"schema": 1, "sessions": ROWS}
    lines = printed("jsonl").splitlines()
    assert [json.loads(line) for line in lines] == [{"schema": 1, **row} for row in ROWS]


def test_csv_has_the_columns_unrounded() -> None:
    assert list(csv.reader(io.StringIO(printed("csv")))) == [
        list(COLUMNS),
        ["ann", "0.30000000000000004", "true", ""],
        ['bob\x1b[31m, "the"', "2.0", "false", "5"],
    ]


def test_a_table_in_a_pipe_is_plain_and_whole() -> None:
    assert printed("table", unknown="?").splitlines() == [
        "user             load  ok     wait",
        "ann              0.3   true   ?",
        'bob\N{REPLACEMENT CHARACTER}[31m, "the"  2     false  5',
    ]
    out = io.StringIO()
    emit([{"long": "x" * 500}], ("long",), stream=out)
    assert "x" * 500 in out.getvalue()


def test_a_table_on_a_terminal_takes_no_markup_or_escapes_from_data() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    emit([{"user": "[bold]ann[/]\x1b[2J"}], ("user",), stream=out)
    assert "[bold]ann[/]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_no_output_holds_a_number_that_json_has_not() -> None:
    for kind in ("json", "jsonl"):
        with pytest.raises(ValueError, match="Out of range float values"):
            emit([{"x": float("nan")}], ("x",), kind, stream=io.StringIO())
    with pytest.raises(ValueError, match="must be one of table, json, jsonl, csv"):
        emit([], (), "xml", stream=io.StringIO())


def test_the_output_option_has_the_formats_of_the_command() -> None:
    @click.command()
    @output_option
    def every(output: str) -> None:
        click.echo(output)

    @click.command()
    @output_option(formats=("json", "toml"))
    def some(output: str) -> None:
        click.echo(output)

    assert CliRunner().invoke(every, []).output == "table\n"
    assert CliRunner().invoke(every, ["-o", "csv"]).output == "csv\n"
    assert CliRunner().invoke(some, []).output == "json\n"
    assert CliRunner().invoke(some, ["--output", "table"]).exit_code == 2
