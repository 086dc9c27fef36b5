"""What an instance of FairTier has left on a host: processes and cgroups of its sessions; count them, remove them."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

from workers import proc
from workers.containment import Cgroups, bases, recorded_root
from workers.settings import instance_of

_PAUSE_S = 0.02


def leftovers(instance: str, state: Path) -> dict[str, int]:
    """Processes and cgroups that sessions of an instance have on this host now.

    Args:
        instance: its name (`Settings.name`); "" = that of the state folder.
        state: its state folder.
    """
    roots = _roots(instance or instance_of(state), state)
    return {
        "processes": len(_processes(roots, state)),
        "cgroups": sum(len(root.sessions()) for root in roots),
    }


def sweep(instance: str, state: Path, wait_s: float = 5.0) -> dict[str, int]:
    """Kill and remove everything that an instance left; for when the whole instance stops, and its next start.

    No worker of the instance may run. What is left after `wait_s` (a process stuck in the kernel) is the answer.
    """
    name = instance or instance_of(state)
    until = time.monotonic_ns() + int(wait_s * 1e9)
    while True:
        roots = _roots(name, state)
        _kill(roots, state)
        _remove(roots, name)
        left = leftovers(name, state)
        if not any(left.values()) or time.monotonic_ns() > until:
            return left
        time.sleep(_PAUSE_S)


def _roots(instance: str, state: Path) -> list[Cgroups]:
    """One for each host of the instance that has cgroups here: where we would make them, and where workers did."""
    folders = [base / f"fairtier-{instance}" for base in bases()]
    hosts = {host for folder in folders if folder.is_dir() for host in folder.iterdir() if host.is_dir()}
    noted = (recorded_root(own) for own in (state.expanduser().resolve() / "workers").glob("*"))
    return [Cgroups(host) for host in sorted(hosts | {root for root in noted if root is not None})]


def _processes(roots: list[Cgroups], state: Path) -> set[int]:
    """Those in the instance's cgroups, and those whose environment says that they began in one of its sessions."""
    inside = {pid for root in roots for session in root.sessions() for pid in root.pids(session)}
    return inside | {pid for pid in proc.all_pids() if _is_ours(pid, state)}


def _is_ours(pid: int, state: Path) -> bool:
    folder = proc.environment(pid).get("FAIRTIER_DIR")
    return bool(folder) and Path(folder or "").parent == state.expanduser().resolve() / "sessions" and proc.lives(pid)


def _kill(roots: list[Cgroups], state: Path) -> None:
    for root in roots:
        for session in root.sessions():
            with suppress(OSError):
                root.thaw(session)
                root.kill(session)
    for pid in proc.all_pids():
        if _is_ours(pid, state):
            proc.send(pid, signal.SIGKILL, lambda same: _is_ours(same, state))


def _remove(roots: list[Cgroups], instance: str) -> None:
    for root in roots:
        for session in root.sessions():
            root.remove(session)
        with suppress(OSError):
            root.root.rmdir()
    for folder in {*(base / f"fairtier-{instance}" for base in bases()), *(root.root.parent for root in roots)}:
        with suppress(OSError):
            folder.rmdir()
