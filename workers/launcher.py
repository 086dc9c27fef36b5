"""Start a session's program so that it needs no worker to live, and so that its exit code outlives a killed worker.

A session's folder, `SESSIONS/<id>/`, is readable by its owner alone:

    work/       where the program runs               log, log.1   its output, capped
    pid         of the shell that waits for it       exit         its exit code, a line
    notice, notice.json, saved                       see `workers.notices`
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from workers import notebook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.protocol import Start

SHELL = "/bin/sh"
NOT_STARTED = 125
"""What the script below ends with when it did not come to run the program."""

# Constant: data travels as arguments, never inside. The shell joins its cgroup before it says that it exists, and the
# pid file is created exclusively, so that a start that was given twice runs once. Signals are caught, not ignored,
# because what is ignored stays ignored in the program. `exec` finds programs only, never functions of the shell.
SCRIPT = """\
trap : HUP INT QUIT TERM USR1 USR2
dir=$1
cgroup=$2
shift 2
if [ -n "$cgroup" ]; then echo 0 >"$cgroup/cgroup.procs" || exit 125; fi
cd "$dir/work" || exit 125
set -C
echo $$ >"$dir/pid" || exit 125
set +C
(exec "$@")
code=$?
echo $code >"$dir/exit"
exit $code
"""
_JUPYTER = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
_UNREADABLE = 0o600


class LaunchError(Exception):
    """A session's program could not be started; says why."""


def launch(start: Start, folder: Path, cgroup: str, base: Mapping[str, str]) -> int:
    """Start a session's program and return the pid of the shell that waits for it.

    Args:
        start: what to run.
        folder: the session's own; made here.
        cgroup: the folder that its processes belong into, "" = none.
        base: environment that every session gets.

    Raises:
        LaunchError: no space, no memory, arguments too long, no notebook server here.
    """
    try:
        program = start.argv or notebook.command()
    except notebook.NoNotebook as error:
        raise LaunchError(str(error)) from error
    arguments = [SHELL, "-c", SCRIPT, "fairtier-session", str(folder), cgroup, *program]
    try:
        _make(folder)
        return os.posix_spawn(
            SHELL,
            arguments,
            environment(start, folder, base),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(folder / "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, _UNREADABLE),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM),
        )
    except (OSError, ValueError) as error:
        raise LaunchError(f"it could not be started: {getattr(error, 'strerror', None) or error}") from error


def environment(start: Start, folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """What the program finds in its environment; of FairTier nothing but what the session is."""
    gpus = ",".join(map(str, start.gpus))
    own = {
        "FAIRTIER_SESSION": start.session,
        "FAIRTIER_USER": start.user,
        "FAIRTIER_DIR": str(folder),
        "FAIRTIER_GPUS": gpus,
        "CUDA_VISIBLE_DEVICES": gpus,
    }
    jupyter = {name: str(folder / _place(name)) for name in _JUPYTER} if start.notebook else {}
    return {**base, **own, **jupyter}


def pid_on_file(folder: Path) -> int | None:
    """The pid that the shell wrote, None = it never came so far."""
    return _line(folder / "pid")


def exit_code(folder: Path) -> int | None:
    """The code that the shell wrote when the program had ended."""
    code = _line(folder / "exit")
    return code if code is not None and 0 <= code <= 255 else None


def cap_log(folder: Path, cap_bytes: int) -> bool:
    """Cut a log that grew past its cap: the newest half of the cap goes to `log.1`; whether it was cut.

    The program goes on writing into the same file: it was opened for appending, so it follows the cut.
    """
    log = folder / "log"
    try:
        size = log.stat().st_size
        if size <= cap_bytes:
            return False
        with log.open("r+b") as source, (folder / "log.1").open("wb") as kept:
            source.seek(size - cap_bytes // 2)
            kept.write(source.read(cap_bytes // 2))
            source.truncate(0)
    except OSError:
        # On a full disk the end matters less than the space.
        with contextlib.suppress(OSError):
            os.truncate(log, 0)
    return True


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "work").mkdir(mode=0o700, exist_ok=True)


def _place(variable: str) -> str:
    """`runtime` for JUPYTER_RUNTIME_DIR and so on."""
    return variable.removeprefix("JUPYTER_").removesuffix("DIR").removesuffix("_").lower()


def _line(file: Path) -> int | None:
    """A number on a line of its own; a line without its end was cut off by a full disk."""
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.endswith("\n") and text.strip().isdecimal() else None
