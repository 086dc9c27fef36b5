"""Keeps the processes of an instance running: starts them, starts again what died, and ends all of them.

One thread, no polling: it sleeps until a child ends, a signal comes or a restart is due.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scheduler.errors import BadInput, FairTierError, Refused

ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A terminal that is closed ends the instance too, sessions first, unless `nohup` says otherwise."""
HOPELESS = (BadInput.exit_code, Refused.exit_code)
"""Exit codes of a child that another start would only repeat."""
SHORT_LIFE_S = 3.0
PAUSES_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Before the n-th start in a row of a child that did not live for `SHORT_LIFE_S`."""
LOG_LIMIT = 8 * 1024 * 1024
TIDY_S = 60.0

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class ChildEnded(FairTierError):
    """A child ended in a way that another start would repeat; the exit code is the child's."""

    def __init__(self, message: str, hint: str | None, code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = code  # type: ignore[misc]


class Child:
    """One process to keep: its command line, where it logs, and how it has been doing."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.began_s = 0.0
        self.failures = 0
        self.due_s: float | None = None


class Supervisor:
    """See the module's docstring.

    Args:
        environment: of all children.
        say: told of everything unexpected, one line.

    Attributes:
        settled: everything ran once. From then on every child is started again, whatever its exit code says: a full
            disk, for example, passes, and must not take the sessions with it.
    """

    def __init__(self, environment: dict[str, str], say: Callable[[str], None]) -> None:
        self._environment = environment
        self._say = say
        self.settled = False
        self._children: dict[str, Child] = {}
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._watched = {*ENDINGS, signal.SIGCHLD} - ({signal.SIGHUP} if ignored else set())
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)

    def start(self, child: Child) -> None:
        """Start a child and keep it running."""
        self._children[child.name] = child
        self._spawn(child)

    def _spawn(self, child: Child) -> None:
        child.due_s = None
        child.began_s = time.monotonic()
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(  # noqa: S603 - our own command lines
                child.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends the others in order
                preexec_fn=self._prepare,  # noqa: PLW1509 - this process has one thread
            )

    def _prepare(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    # -- while it runs -----------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None = None) -> bool:
        """Look after the children for a while (None = for ever); True = the instance is to end.

        Raises:
            ChildEnded: a child ended in a way that another start would repeat.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._revive()
            now = time.monotonic()
            if until is not None and now >= until:
                return False
            got = signal.sigtimedwait(
                self._watched, max(0.0, min(self._dues(now), TIDY_S, (until or now + TIDY_S) - now))
            )
            if got is not None and got.si_signo in ENDINGS:
                return True
            self._look()
            if got is None:
                self._tidy()

    def _dues(self, now: float) -> float:
        return min((child.due_s - now for child in self._children.values() if child.due_s is not None), default=TIDY_S)

    def _look(self) -> None:
        for child in self._children.values():
            code = child.process.poll() if child.process is not None else None
            if code is None or child.due_s is not None:
                continue
            if code in HOPELESS and not self.settled:
                raise ChildEnded(*_last_words(child), code)
            lived_s = time.monotonic() - child.began_s
            child.failures = child.failures + 1 if lived_s < SHORT_LIFE_S else 0
            pause_s = PAUSES_S[min(child.failures, len(PAUSES_S) - 1)]
            child.due_s = time.monotonic() + pause_s
            self._say(f"{child.name} ended ({_how(code)}) after {lived_s:.1f} s; it starts again in {pause_s:g} s")

    def _revive(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.due_s is not None and child.due_s <= now:
                self._spawn(child)

    def _tidy(self) -> None:
        """Logs keep their newest half once they are over the limit; their writers append and notice nothing."""
        for child in self._children.values():
            cap_log(child.log, LOG_LIMIT)

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self, names: Sequence[str], timeout_s: float) -> None:
        """End children: SIGTERM, and SIGKILL for those still there after `timeout_s`."""
        chosen = [child for name, child in self._children.items() if name in names]
        for child in chosen:
            child.due_s = None
            self._children.pop(child.name)
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
        until = time.monotonic() + timeout_s
        for child in chosen:
            _wait_or_kill(child, until, self._say)

    @property
    def names(self) -> list[str]:
        """Of the children that are kept."""
        return list(self._children)

    def close(self) -> None:
        """End everything that is left."""
        self.end(self.names, 1.0)

    def release_signals(self) -> None:
        """Give the signals back, the last thing of all: a second request to end must not cut the end short."""
        while signal.sigtimedwait(self._watched, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _wait_or_kill(child: Child, until: float, say: Callable[[str], None]) -> None:
    if child.process is None:
        return
    try:
        child.process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        say(f"{child.name} did not end in time and is killed")
        child.process.kill()
        child.process.wait()


def cap_log(path: Path, limit: int) -> None:
    """Keep the newest half of a log that is over its limit."""
    try:
        size = path.stat().st_size
        if size <= limit:
            return
        with path.open("r+b") as log:
            log.seek(size - limit // 2)
            log.readline()
            kept = log.read()
            log.truncate(0)
        with path.open("ab") as log:
            log.write(kept)
    except OSError:
        return


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_words(child: Child) -> tuple[str, str | None]:
    """What a child said last of an error, and its hint."""
    try:
        lines = child.log.read_text(errors="replace").splitlines()[-50:]
    except OSError:
        lines = []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    message = errors[-1] if errors else f"{child.name} ended at its start; its log is {child.log}"
    return f"{child.name}: {message}", hints[-1] if hints else None


OF_UP = ("STATE", "URL", "REDIS", "REDIS_URL", "HTTP_PORT", "HOST", "GPUS", "REPORT_S", "INSTANCE")
"""Settings that `up` decides for its children, whatever the environment says."""


def child_environment() -> dict[str, str]:
    """The environment of the instance's processes: this one's, without what `up` decides for them."""
    decided = {f"FAIRTIER_{name}" for name in OF_UP}
    return {name: value for name, value in os.environ.items() if name not in decided}
