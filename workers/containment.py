"""What holds a session's processes together, so that all of them can be measured, frozen and ended.

Two implementations of one interface. `Cgroups` cannot be left and ends every process at once (cgroup v2; no controller
is needed, `cgroup.freeze` and `cgroup.kill` are core files). `ProcessGroups` is for hosts without a writable cgroup: a
program that calls setsid(2) leaves it, so it serves trusted users only; `name` says which of the two is in use.

The worker creates, reads and removes; only the enforcer freezes, thaws, signals and kills.
Standard library only: the enforcer imports this and is to stay small.
"""

from __future__ import annotations

import os
import re
import signal
from abc import ABC, abstractmethod
from pathlib import Path

from workers import proc

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


class ContainmentError(OSError):
    """A session cannot be contained here; says why."""


class Containment(ABC):
    """Processes by session."""

    name: str
    """What people call it: `cgroup` or `process group`."""

    @abstractmethod
    def create(self, session: str) -> str:
        """Make room for a session; the folder that its first process has to join, "" = none."""

    @abstractmethod
    def attach(self, session: str, pid: int) -> None:
        """Learn which process leads a session."""

    @abstractmethod
    def detach(self, session: str) -> None:
        """Forget who leads a session that has ended."""

    @abstractmethod
    def pids(self, session: str) -> list[int]:
        """Its processes, exited ones not among them."""

    @abstractmethod
    def populated(self, session: str) -> bool:
        """Whether it has any process."""

    @abstractmethod
    def usage_ns(self, session: str) -> int | None:
        """CPU time of all its processes, those that are gone included; None = unknown."""

    @abstractmethod
    def remove(self, session: str) -> bool:
        """Give the room back; False while processes are in it."""

    @abstractmethod
    def sessions(self) -> list[str]:
        """Sessions that have room now."""

    @abstractmethod
    def freeze(self, session: str) -> None:
        """Stop its processes where they are."""

    @abstractmethod
    def thaw(self, session: str) -> None:
        """Let its processes go on."""

    @abstractmethod
    def kill(self, session: str) -> None:
        """SIGKILL to every process."""

    @abstractmethod
    def _holds(self, session: str, pid: int) -> bool:
        """Whether a process belongs to a session at this moment."""

    def send(self, session: str, signum: int, parent: int | None = None) -> int:
        """Signal its processes (with `parent`: the children of that one only); how many were reached."""
        chosen = [p for p in self.pids(session) if parent is None or proc.parent(p) == parent]
        return sum(proc.send(p, signum, lambda pid: self._holds(session, pid)) for p in chosen)


class Cgroups(Containment):
    """One cgroup v2 folder per session, directly below one root."""

    name = "cgroup"

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, session: str) -> str:
        """Make the session's cgroup."""
        folder = self._folder(session)
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def attach(self, session: str, pid: int) -> None:
        """Nothing: the kernel knows."""

    def detach(self, session: str) -> None:
        """Nothing to forget."""

    def pids(self, session: str) -> list[int]:
        """From cgroup.procs of the folder and all below it."""
        return [pid for folder in _tree(self._folder(session)) for pid in _procs(folder)]

    def populated(self, session: str) -> bool:
        """From cgroup.events, which looks at the folders below as well."""
        try:
            return "populated 1" in (self._folder(session) / "cgroup.events").read_text(encoding="ascii")
        except OSError:
            return False

    def usage_ns(self, session: str) -> int | None:
        """From cpu.stat, which needs no controller."""
        try:
            first = (self._folder(session) / "cpu.stat").read_text(encoding="ascii").split(maxsplit=2)
        except OSError:
            return None
        return int(first[1]) * 1000 if first[:1] == ["usage_usec"] else None

    def remove(self, session: str) -> bool:
        """Remove the folder and those below. The last process leaves a moment after it ended: try again then."""
        try:
            for folder in reversed(_tree(self._folder(session))):
                folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def sessions(self) -> list[str]:
        """Folders below the root."""
        try:
            return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name))
        except OSError:
            return []

    def freeze(self, session: str) -> None:
        """Write cgroup.freeze."""
        self._write(session, "cgroup.freeze", b"1")

    def thaw(self, session: str) -> None:
        """Write cgroup.freeze."""
        self._write(session, "cgroup.freeze", b"0")

    def kill(self, session: str) -> None:
        """Write cgroup.kill: it takes forks in progress along, and acts on frozen ones."""
        self._write(session, "cgroup.kill", b"1")

    def _holds(self, session: str, pid: int) -> bool:
        return any(pid in _procs(folder) for folder in _tree(self._folder(session)))

    def _folder(self, session: str) -> Path:
        return self.root / _checked(session)

    def _write(self, session: str, file: str, data: bytes) -> None:
        """Without O_CREAT: a cgroup that is gone has nothing to freeze or to kill."""
        try:
            handle = os.open(self._folder(session) / file, os.O_WRONLY)
        except FileNotFoundError:
            return
        try:
            os.write(handle, data)
        finally:
            os.close(handle)


class ProcessGroups(Containment):
    """The processes of one kernel session (setsid), by its leader's pid."""

    name = "process group"

    def __init__(self) -> None:
        self._leaders: dict[str, tuple[int, int | None]] = {}

    def create(self, session: str) -> str:
        """Nothing to make: the first process opens its own kernel session."""
        _checked(session)
        return ""

    def attach(self, session: str, pid: int) -> None:
        """Remember the leader; its start time, so that a number used again is not taken for it."""
        if pid <= 1 or pid == os.getsid(0):
            raise ContainmentError(f"session {session}: process {pid} can lead no session of a user")
        self._leaders[_checked(session)] = (pid, proc.start_ticks(pid))

    def detach(self, session: str) -> None:
        """Its number may be another's from now on."""
        self._leaders.pop(session, None)

    def pids(self, session: str) -> list[int]:
        """Processes whose kernel session is the leader's."""
        return [pid for pid in proc.all_pids() if self._holds(session, pid) and proc.lives(pid)]

    def populated(self, session: str) -> bool:
        """Whether there is any."""
        return bool(self.pids(session))

    def usage_ns(self, session: str) -> int | None:
        """Unknown: nobody adds up what exited processes used."""
        del session
        return None

    def remove(self, session: str) -> bool:
        """Forget the leader."""
        if self.populated(session):
            return False
        self.detach(session)
        return True

    def sessions(self) -> list[str]:
        """Those attached."""
        return sorted(self._leaders)

    def freeze(self, session: str) -> None:
        """SIGSTOP."""
        self.send(session, signal.SIGSTOP)

    def thaw(self, session: str) -> None:
        """SIGCONT."""
        self.send(session, signal.SIGCONT)

    def kill(self, session: str) -> None:
        """SIGKILL, again while new ones appear (the caller repeats it until nothing is left)."""
        self.send(session, signal.SIGSTOP)
        self.send(session, signal.SIGKILL)

    def _holds(self, session: str, pid: int) -> bool:
        leader, ticks = self._leaders.get(session, (0, None))
        try:
            if not leader or os.getsid(pid) != leader:
                return False
        except OSError:
            return False
        now = proc.start_ticks(leader)
        return now is None or ticks is None or now == ticks


def bases() -> list[Path]:
    """Where a worker may make cgroups: its own cgroup first, then the mount's root; empty without cgroup v2."""
    mount = _mount()
    if mount is None:
        return []
    point, root = mount
    own = _own().removeprefix(root.rstrip("/"))
    inside = [] if ".." in own else [point / own.lstrip("/")]
    return list(dict.fromkeys([*inside, point]))


def available() -> tuple[bool, str]:
    """Whether sessions can be contained by cgroups on this host, and where, or why not."""
    found = bases()
    if not found:
        return (
            False,
            "no cgroup v2 hierarchy is mounted: sessions are held by process groups, which a program can leave",
        )
    base = next((base for base in found if _works(base)), None)
    if base is None:
        return False, f"cgroup v2 is mounted, but {found[-1]} is not writable or the kernel is older than 5.14"
    return True, str(base)


def choose(instance: str, host: str, own: Path) -> Containment:
    """The strongest containment that works here, for one host of one instance.

    A worker that was started from another cgroup than the one before it stays with the cgroups that already hold
    sessions; where they are is noted in `own`, the worker's folder.
    """
    noted = recorded_root(own)
    if noted is not None and Cgroups(noted).sessions():
        return Cgroups(noted)
    works, base = available()
    if not works:
        return ProcessGroups()
    chosen = Cgroups(Path(base) / f"fairtier-{instance}" / host)
    own.mkdir(parents=True, mode=0o700, exist_ok=True)
    (own / "cgroup").write_text(f"{chosen.root}\n", encoding="utf-8")
    return chosen


def recorded_root(own: Path) -> Path | None:
    """Where the worker with this folder made its cgroups, if it did and they are still there."""
    try:
        root = Path((own / "cgroup").read_text(encoding="utf-8").strip())
    except OSError:
        return None
    return root if root.is_absolute() and root.parent.name.startswith("fairtier-") and root.is_dir() else None


def _works(base: Path) -> bool:
    """Try it: a cgroup is made and has the files that we need."""
    if not (os.access(base, os.W_OK) and os.access(base / "cgroup.procs", os.W_OK)):
        return False
    trial = base / f"fairtier-trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return (trial / "cgroup.freeze").exists() and (trial / "cgroup.kill").exists()
    finally:
        trial.rmdir()


def _mount() -> tuple[Path, str] | None:
    """The cgroup v2 mount point and which folder of the hierarchy it shows (hybrid hosts mount it beside v1)."""
    for line in (proc.PROC / "self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            fields = left.split(" ")
            return Path(fields[4].encode().decode("unicode_escape")), fields[3]
    return None


def _own() -> str:
    lines = (proc.PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _tree(folder: Path) -> list[Path]:
    """A cgroup and all below it, parents first."""
    try:
        with os.scandir(folder) as found:
            below = [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [folder, *(deeper for child in below for deeper in _tree(child))]


def _procs(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _checked(session: str) -> str:
    if not NAME.fullmatch(session):
        raise ContainmentError(f"{session!r} is no session's name")
    return session
