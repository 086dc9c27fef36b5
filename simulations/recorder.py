"""The files of a run: `sessions.csv`, `decisions.jsonl`, `summary.json`, the journal; complete or not there at all.

Everything is written into temporary folders beside the places where it will stay, and renamed at the end: whoever
looks finds the files of one complete run, the older or the new one. The digest is the SHA-256 of `sessions.csv`
followed by `decisions.jsonl` (`cat sessions.csv decisions.jsonl | sha256sum`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scheduler.core import Step
from scheduler.errors import BadInput, FairTierError
from scheduler.journal import cycle_line, decision_line, event_line, head_line
from simulations.metrics import Tally
from simulations.traces.csv_trace import seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from scheduler.core import Core
    from scheduler.events import Event
    from simulations.loop import Batch, Work

SESSION_COLUMNS = (
    "session_id,user,tier,kind,submit_s,start_s,end_s,wait_s,outcome,gpus,host,gpu_s,busy_gpu_s,warnings,throttled_s,"
    "evictions"
)
FILES = ("sessions.csv", "decisions.jsonl", "summary.json")
JOURNAL_BUFFER = 4096
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def session_line(work: Work) -> str:
    """One session as a line of `sessions.csv`: unknown fields empty, times on the trace's own axis."""
    row = work.row
    start = seconds_text(work.start_ms) if work.start_ms >= 0 else ""
    end = seconds_text(work.end_ms) if work.outcome else ""
    waited_until = work.start_ms if work.start_ms >= 0 else work.end_ms
    wait = seconds_text(waited_until - row.submit_ms) if waited_until >= 0 else ""
    return (
        f"{row.session_id},{row.user},{row.tier},{row.kind},{seconds_text(row.submit_ms)},{start},{end},{wait},"
        f"{work.outcome},{row.gpus},{work.host},{work.gpu_m_ms / 1e6!r},{work.busy_m_ms / 1e6!r},{work.warnings},"
        f"{seconds_text(work.throttled_ms)},{work.evictions}\n"
    )


class Recorder:
    """Writes a run's files; use as a context manager, and call `publish` when the run is complete.

    Args:
        out: folder for the files, made if need be; None = keep only the digest.
        journal: file for the journal, in a folder that exists, or None.

    Raises:
        BadInput: a place that cannot take the files, on construction and on entering.
        FairTierError: a write failed later, on a full disk for example; nothing has been changed.
    """

    def __init__(self, out: Path | None, journal: Path | None) -> None:
        if out is not None:
            _check_folder(out)
        if journal is not None:
            check_target(journal, out)
            journal = journal.resolve()
            if out is not None and journal in [(out / name).resolve() for name in FILES]:
                raise BadInput(f"--journal {journal} is a file that --out writes", "give the journal another name")
        self.tally = Tally()
        self.digest = ""
        self.waited: dict[str, int] = {}
        self._out, self._journal = out, journal
        self._pending: deque[Work] = deque()
        self._lines: list[str] = []
        self._made: list[Path] = []
        self._folders: list[Path] = []
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Recorder:
        """Open the temporary files beside where they will stay."""
        try:
            with held():
                self._open()
        except OSError as error:
            self._close()
            raise _cannot_write(error, self._out or self._journal) from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close and remove whatever was not published."""
        try:
            self._close()
        finally:
            self._close()  # Ctrl-C may have hit the line above before it could hold signals back

    def _open(self) -> None:
        if self._out is None:
            self._sessions = self._keep(tempfile.TemporaryFile())  # noqa: SIM115 - closed by _close
            self._decisions = self._keep(tempfile.TemporaryFile())  # noqa: SIM115
        else:
            for folder in reversed((self._out, *self._out.parents)):
                if not folder.exists():
                    folder.mkdir()
                    self._made.append(folder)
            drafts = self._drafts(self._out)
            self._sessions = self._keep((drafts / FILES[0]).open("w+b"))
            self._decisions = self._keep((drafts / FILES[1]).open("w+b"))
        self._sessions.write(f"{SESSION_COLUMNS}\n".encode())
        if self._journal is not None:
            self._journal_file = self._keep((self._drafts(self._journal.parent) / "journal.jsonl").open("w+b"))

    def _keep(self, file: IO[bytes]) -> IO[bytes]:
        self._files.append(file)
        return file

    def _drafts(self, place: Path) -> Path:
        """A temporary folder on the file system of `place`, so that the files only need new names."""
        self._folders.append(Path(tempfile.mkdtemp(prefix=".fairtier-", dir=place)))
        return self._folders[-1]

    def _close(self) -> None:
        with held():
            for file in self._files:
                with contextlib.suppress(OSError):  # a full disk shows once more when the buffer is flushed
                    file.close()
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)
            for folder in reversed(self._made):
                with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                    folder.rmdir()

    # -- the journal ---------------------------------------------------------------------------------------------

    def begin_journal(self, core: Core) -> None:
        """Write the first line: policy and checkpoint."""
        self._lines.append(head_line(core))

    def tap(self, happened: Event | Step, at_ms: int) -> None:
        """Take one event or cycle into the journal."""
        self._lines.append(cycle_line(happened, at_ms) if isinstance(happened, Step) else event_line(happened))
        if len(self._lines) >= JOURNAL_BUFFER:
            self._flush_journal()

    def _flush_journal(self) -> None:
        if self._lines:
            with _writing(self._journal):
                self._journal_file.write(("\n".join(self._lines) + "\n").encode())
            self._lines.clear()

    # -- sessions and decisions ----------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Take a batch: its decisions at once, its sessions when all that came before them have ended."""
        with _writing(self._out):
            self._decisions.writelines(f"{decision_line(decision)}\n".encode() for decision in batch.decisions)
            self._pending.extend(batch.arrived)
            self._put_out(self._ended())

    def _ended(self) -> Iterator[Work]:
        while self._pending and self._pending[0].outcome:
            yield self._pending.popleft()

    def _put_out(self, works: Iterable[Work]) -> None:
        for work in works:
            self.tally.add(work)
            if work.start_ms >= 0 or work.outcome == "abandoned":
                self.waited[work.row.kind] = self.waited.get(work.row.kind, 0) + 1
            self._sessions.write(session_line(work).encode())

    def finish(self) -> str:
        """Write what is left (sessions that still wait) and return the digest."""
        self._flush_journal()
        digest = hashlib.sha256()
        with _writing(self._out):
            self._put_out(self._pending)
            self._pending.clear()
            for file in (self._sessions, self._decisions):
                file.seek(0)
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        self.digest = digest.hexdigest()
        return self.digest

    def publish(self, summary: str) -> None:
        """Move the files into place: all of them, even if Ctrl-C comes now, or none when one cannot be moved."""
        moves: list[tuple[Path, Path]] = []
        with _writing(self._out or self._journal):
            if self._out is not None:
                drafts = self._folders[0]
                self._keep((drafts / FILES[2]).open("wb")).write(f"{summary}\n".encode())
                moves += [(drafts / name, self._out / name) for name in FILES]
            if self._journal is not None:
                moves.append((self._folders[-1] / "journal.jsonl", self._journal))
            if moves:
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())
            with _alone(self._out), held():
                move_all(moves)
                self._made.clear()


def check_target(file: Path, made: Path | None = None) -> None:
    """Refuse what a file must not replace: a folder, a device, a pipe.

    Args:
        file: to be written.
        made: a folder that will be made in time, if need be.

    Raises:
        BadInput: also when there is no folder to put it in.
    """
    target, place = file.resolve(), file.parent.resolve()
    if place == Path("/dev") or place.is_relative_to("/proc"):  # /dev/stdout may lead to a file of somebody else
        raise BadInput(f"{file} is no regular file and is left alone", "name a file, or a new name in a folder")
    if target.is_dir():
        raise BadInput(f"{file} is a folder, not a file", "name a file in it")
    if target.exists() and not target.is_file():
        raise BadInput(f"{file} is no regular file and is left alone", "name a file, or a new name in a folder")
    if not target.parent.is_dir() and (made is None or target.parent != made.resolve()):
        raise BadInput(f"cannot write {file}: there is no folder {file.parent}", f"mkdir -p {file.parent}")


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file, not a folder", "name a folder; it is made if need be")
    for name in FILES:
        if (out / name).exists():
            check_target(out / name)


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each source to its target, within one file system; when one fails, those before it are put back."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for source, target in moves:
            done.append((target, _second_name(target, source.with_name(f"{source.name}.old"))))
            source.replace(target)
    except OSError:
        for target, old in reversed(done):
            with contextlib.suppress(OSError):
                old.replace(target) if old is not None else target.unlink()
        raise


def _second_name(file: Path, name: Path) -> Path | None:
    """Keep a file under another name too; None when there is no such file."""
    if not os.path.lexists(file):
        return None
    try:
        os.link(file, name, follow_symlinks=False)
    except OSError:  # a file system without hard links, or a file of somebody else
        shutil.copy2(file, name, follow_symlinks=False)
    return name


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Let one run at a time put its files into a folder."""
    if folder is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(place: Path | None) -> Iterator[None]:
    """A write that fails ends the run with the place and the reason."""
    try:
        yield
    except OSError as error:
        failed = _cannot_write(error, place)
        raise FairTierError(f"{failed.message}; nothing there was changed", failed.hint) from None


def _cannot_write(error: OSError, place: Path | None) -> BadInput:
    where = place if place is not None else f"the folder for temporary files, {tempfile.gettempdir()}"
    hints = {errno.ENOSPC: "free some space, or write to another disk", errno.EDQUOT: "free some of your quota"}
    hint = hints.get(error.errno or 0, "choose a folder that can be written")
    return BadInput(f"cannot write to {where}: {error.strerror or error}", hint)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back for a few calls; they take effect on leaving.

    By handlers, not by a signal mask: a mask covers one thread, and a signal to the process would find another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda caught, _: came.append(caught)) for number in STOPPERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        for caught in dict.fromkeys(came):
            signal.raise_signal(caught)
