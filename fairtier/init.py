"""A directory to start from: a policy to edit, a service file for this machine's interpreter, and what to do next.

Files appear under their names when all of them are written, and none ever takes the place of another.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scheduler.errors import BadInput, FairTierError, Refused
from scheduler.policy_files import DEFAULT_PRESET, preset_text

STATE = "/var/lib/fairtier"
"""Where systemd makes the state directory of a unit with StateDirectory=fairtier."""

README = "README.txt"

_NOTIFY = """\
# Where notices about sessions go. To use it: remove the # before what you need, and copy it as the README says.
# A file that holds a secret (a webhook's address often is one) must be readable by its owner alone: chmod 600.

levels = ["warn", "throttle", "grace", "evict", "reject", "restrict"]  # what is told at all
per_user_hour = 20  # most notices about one user's sessions within an hour, 1 to 1000

# A program that is told by POST. Redirects are not followed.
#[webhook]
#url = "https://chat.example.org/hooks/fairtier"
#secret_file = "webhook.secret"  # its first line signs each message; relative to this file

# Mail to the users whose records have an address.
#[mail]
#host = "mail.example.org"
#port = 587
#starttls = true
#user = "fairtier"  # with password_file, or leave both away
#password_file = "mail.password"
#from = "fairtier@example.org"
"""

_HARDENING = """\
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
"""

_SERVICE = """\
[Unit]
Description=FairTier, fair-share GPU quota scheduler
After=network.target

[Service]
Type=exec
User=fairtier
StateDirectory=fairtier
StateDirectoryMode=0700
# This version serves emulated GPUs only; HxG are H hosts of G GPUs each.
ExecStart={python} -P -m fairtier up --state {state} --policy {policy} --http 8080 --emulate 2x2
# Sessions are held in cgroups below the unit's own.
Delegate=yes
# The instance ends its sessions itself, within 10 s; what is left then is killed.
KillMode=mixed
TimeoutStopSec=15
Restart=on-failure
RestartSec=2
# Wrong options, or another instance on the same directory: starting again would only repeat it.
RestartPreventExitStatus=2 5
{hardening}
[Install]
WantedBy=multi-user.target
"""

_WORKER = """\
[Unit]
Description=FairTier worker, GPUs of this host
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User=fairtier
StateDirectory=fairtier
StateDirectoryMode=0700
# FAIRTIER_REDIS is in there, because its password must not be on a command line.
EnvironmentFile={environment}
# This version serves emulated GPUs only; N of --emulate is their number.
ExecStart={python} -P -m fairtier worker --state {state} --emulate 1
# Sessions are held in cgroups below the unit's own, and go on while the worker restarts: only it is ended.
Delegate=yes
KillMode=process
TimeoutStopSec=15
Restart=on-failure
RestartSec=2
# Wrong options: starting again would only repeat it.
RestartPreventExitStatus=2
{hardening}
[Install]
WantedBy=multi-user.target
"""

_WORKER_ENV = """\
# The transport of the control plane, the same for all hosts. Keep this file readable by root alone: chmod 600.
FAIRTIER_REDIS=rediss://:PASSWORD@control.example.org:6379/0
"""

_README = """\
policy.toml            what is fair; edit it, then: fairtier policy check {folder}/policy.toml
notify.toml.example    where notices go; copy it to {state}/notify.toml, mode 600, owner fairtier
fairtier.service       runs FairTier on this machine

Next, three commands:

  sudo useradd --system --home-dir {state} --shell /usr/sbin/nologin fairtier
  sudo install -m 644 {folder}/fairtier.service /etc/systemd/system/
  sudo systemctl enable --now fairtier

Then `sudo -u fairtier {python} -m fairtier doctor --state {state}` says whether all is well.
"""

_WORKER_README = """\
worker.env.example        where the control plane's transport is; edit a copy of it, {folder}/worker.env, mode 600
fairtier-worker.service   runs the worker of this GPU host

Next, three commands, once {folder}/worker.env is there:

  sudo useradd --system --home-dir {state} --shell /usr/sbin/nologin fairtier
  sudo install -m 644 {folder}/fairtier-worker.service /etc/systemd/system/
  sudo systemctl enable --now fairtier-worker

Then `sudo -u fairtier {python} -m fairtier doctor --state {state}` says whether the host has what a worker needs.
"""


def files(folder: Path, *, host: bool) -> dict[str, str]:
    """Names and texts of what an administrator starts from.

    Args:
        folder: where they will be, absolute; service files name it.
        host: for a GPU host, instead of the control plane.

    Raises:
        BadInput: the folder's or the interpreter's name has a character that no service file can carry.
    """
    plain = {"folder": shlex.quote(str(folder)), "state": STATE, "python": shlex.quote(sys.executable)}
    unit = {
        "state": STATE,
        "python": _word(sys.executable),
        "policy": _word(str(folder / "policy.toml")),
        "environment": _checked(str(folder / "worker.env")).replace("%", "%%"),
        "hardening": _HARDENING,
    }
    if host:
        return {
            "fairtier-worker.service": _WORKER.format_map(unit),
            "worker.env.example": _WORKER_ENV,
            README: _WORKER_README.format_map(plain),
        }
    return {
        "policy.toml": preset_text(DEFAULT_PRESET),
        "notify.toml.example": _NOTIFY,
        "fairtier.service": _SERVICE.format_map(unit),
        README: _README.format_map(plain),
    }


def make(folder: Path, *, host: bool) -> list[Path]:
    """Write the files of `files` into a folder, made if need be; their paths.

    Raises:
        Refused: one of them is there already. Nothing was written, as with every error.
        BadInput: see `files`.
        FairTierError: the folder cannot be written to.
    """
    texts = files(folder, host=host)
    taken = [str(folder / name) for name in texts if os.path.lexists(folder / name)]
    if taken:
        raise _taken(taken)
    try:
        with _folder(folder):
            return _put(folder, texts)
    except FileExistsError as error:
        raise _taken([str(error.filename2 or error.filename)]) from None
    except OSError as error:
        raise FairTierError(f"{folder} cannot be written to: {error.strerror}", "name another directory") from None


def _taken(paths: list[str]) -> Refused:
    there = "exists" if len(paths) == 1 else "exist"
    return Refused(f"{', '.join(paths)} {there} already: nothing was written", "name another directory")


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """The folder is there; after an error those that were made for it are gone again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _put(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Write all of them out of sight, then give each its name; `FileExistsError` when somebody else was faster.

    A link, not a rename: a rename would take the place of a file that has just appeared.
    """
    draft = Path(tempfile.mkdtemp(prefix=".fairtier-init-", dir=folder))
    made: list[Path] = []
    try:
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        for name in texts:
            (folder / name).hardlink_to(draft / name)
            made.append(folder / name)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(draft)
    return made


def _checked(path: str) -> str:
    """A path that fits on a line of a service file; `BadInput` otherwise."""
    if not path.isprintable():
        raise BadInput(f"{path!r} has a character that no service file can carry", "name another directory")
    return path


def _word(path: str) -> str:
    """A path as one word of ExecStart= (systemd.service(5), "Command lines"); plain ones as they are."""
    text = _checked(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if all(c.isalnum() or c in "/._-+:@%$" for c in text) else f'"{text}"'
