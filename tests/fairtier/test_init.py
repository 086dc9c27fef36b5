"""What an administrator starts from: files that other commands and systemd accept, all of them or none."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fairtier import init
from fairtier.cli import main
from fairtier.up_cli import up
from scheduler.notify_config import NotifyConfig
from scheduler.policy_files import DEFAULT_PRESET, read_policy
from workers.cli import worker

PLANE = {"policy.toml", "notify.toml.example", "fairtier.service", "README.txt"}
HOST = {"fairtier-worker.service", "worker.env.example", "README.txt"}


def made(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["init", str(folder), *options])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("options", "expected"), [((), PLANE), (("--host",), HOST)])
def test_what_is_made_is_printed(tmp_path: Path, options: tuple[str, ...], expected: set[str]) -> None:
    """A line each, and nothing else is in the folder."""
    result = made(tmp_path / "a" / "b", *options)
    assert result.exit_code == 0
    assert names(tmp_path / "a" / "b") == expected
    assert {line.rpartition("/")[2] for line in result.output.splitlines() if line.startswith("made ")} == expected


def test_the_policy_passes_its_check_and_is_the_default(tmp_path: Path) -> None:
    """`fairtier policy check` accepts what was written, comments are kept."""
    made(tmp_path)
    file = tmp_path / "policy.toml"
    result = CliRunner().invoke(main, ["policy", "check", str(file)])
    assert (result.exit_code, result.output) == (0, f"{file}: ok\n")
    assert read_policy(str(file)) == read_policy(DEFAULT_PRESET)
    assert "#" in file.read_text()


def test_the_example_of_notices_is_valid_as_it_is_and_with_everything_switched_on(tmp_path: Path) -> None:
    """A comment that is a setting has no blank after its #."""
    made(tmp_path)
    text = (tmp_path / "notify.toml.example").read_text()
    plain = NotifyConfig.model_validate(tomllib.loads(text))
    assert (plain.webhook, plain.mail) == (None, None)
    assert plain == NotifyConfig(per_user_hour=plain.per_user_hour)
    full = NotifyConfig.model_validate(tomllib.loads(re.sub(r"(?m)^#(?=[a-z\[])", "", text)))
    assert full.webhook is not None
    assert full.mail is not None


@pytest.mark.parametrize(
    ("options", "unit", "command"),
    [((), "fairtier.service", up), (("--host",), "fairtier-worker.service", worker)],
)
def test_the_service_runs_a_command_that_exists(
    tmp_path: Path, options: tuple[str, ...], unit: str, command: click.Command
) -> None:
    """With this interpreter, and options that the command takes."""
    made(tmp_path, *options)
    (line,) = (text for text in (tmp_path / unit).read_text().splitlines() if text.startswith("ExecStart="))
    python, *arguments = shlex.split(line.removeprefix("ExecStart="))
    assert python == sys.executable
    assert arguments[:4] == ["-P", "-m", "fairtier", command.name]
    given = command.make_context(str(command.name), arguments[4:]).params
    assert given["state"] == Path(init.STATE)
    assert given["emulate"]
    if not options:
        assert given["policy"] == str(tmp_path / "policy.toml")


def test_the_services_are_hardened(tmp_path: Path) -> None:
    """What a review would look for first."""
    made(tmp_path / "a")
    made(tmp_path / "b", "--host")
    both = {"User=fairtier", "StateDirectory=fairtier", "Delegate=yes", "NoNewPrivileges=yes", "ProtectSystem=strict"}
    plane = {"KillMode=mixed", "TimeoutStopSec=15", "Restart=on-failure"}
    host = {f"EnvironmentFile={tmp_path / 'b' / 'worker.env'}"}
    assert both | plane <= set((tmp_path / "a" / "fairtier.service").read_text().splitlines())
    assert both | host <= set((tmp_path / "b" / "fairtier-worker.service").read_text().splitlines())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed; CI installs it")
@pytest.mark.parametrize("name", ["plain", 'with blanks, 100% "quotes" $HOME and \\'])
def test_systemd_understands_the_services(tmp_path: Path, name: str) -> None:
    """Also with a folder whose name systemd would otherwise read as something else."""
    folder = tmp_path / name
    for options, unit in (((), "fairtier.service"), (("--host",), "fairtier-worker.service")):
        assert made(folder / unit, *options).exit_code == 0
        file = shutil.copy(folder / unit / unit, tmp_path / unit)
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_words_of_a_command_line() -> None:
    """systemd.service(5): quotes and backslashes are escaped, % and $ doubled, plain paths left alone."""
    assert init._word("/opt/a-b_c/python3.11") == "/opt/a-b_c/python3.11"
    assert init._word("/a b") == '"/a b"'
    assert init._word('/a"b\\c%d$e') == '"/a\\"b\\\\c%%d$$e"'


def test_a_name_that_no_service_file_can_carry_is_bad_input(tmp_path: Path) -> None:
    """A line break would begin another setting."""
    result = made(tmp_path / "a\nExecStartPre=b")
    assert result.exit_code == 2
    assert names(tmp_path) == set()


@pytest.mark.parametrize("options", [(), ("--host",)])
def test_the_readme_has_three_commands(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each a line to copy, also where the folder's name has a blank."""
    made(tmp_path / "a b", *options)
    commands = [line for line in (tmp_path / "a b" / "README.txt").read_text().splitlines() if line.startswith("  ")]
    assert [shlex.split(command)[:2] for command in commands] == [
        ["sudo", "useradd"],
        ["sudo", "install"],
        ["sudo", "systemctl"],
    ]
    assert Path(shlex.split(commands[1])[4]).is_file()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A second time: exit 5, each file is named and none has changed."""
    made(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    result = made(tmp_path)
    assert result.exit_code == 5
    assert all(name in result.output for name in PLANE)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before


def test_one_file_in_the_way_is_enough(tmp_path: Path) -> None:
    """A link to nowhere is in the way too: nothing at all is written."""
    (tmp_path / "fairtier.service").symlink_to(tmp_path / "nowhere")
    result = made(tmp_path)
    assert result.exit_code == 5
    assert "fairtier.service" in result.output
    assert names(tmp_path) == {"fairtier.service"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """Between the look and the last file: it stays, what was made before it goes."""
    (tmp_path / "b").write_text("theirs")
    with pytest.raises(FileExistsError):
        init._put(tmp_path, {"a": "ours", "b": "ours", "c": "ours"})
    assert names(tmp_path) == {"b"}
    assert (tmp_path / "b").read_text() == "theirs"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Exit 1 with the reason; folders made on the way are gone again."""
    result = made(tmp_path / "a" / "b" / ("x" * 300))
    assert result.exit_code == 1
    assert "name too long" in result.output
    assert names(tmp_path) == set()
    (tmp_path / "file").touch()
    assert made(tmp_path / "file").exit_code == 2
    assert made(tmp_path / "file" / "a").exit_code == 1
