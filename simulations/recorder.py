"""The files of a run: `sessions.csv`, `decisions.jsonl`, `summary.json`, the journal; complete or not there at all.

Everything is written into a temporary folder while the run goes on and moved into place at its end. The digest is the
SHA-256 of `sessions.csv` followed by `decisions.jsonl` (`cat sessions.csv decisions.jsonl | sha256sum`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.core import Step
from scheduler.errors import BadInput
from scheduler.journal import cycle_line, decision_line, event_line, head_line
from simulations.metrics import Tally
from simulations.traces.csv_trace import seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from scheduler.core import Core
    from scheduler.events import Event
    from simulations.loop import Batch, Work

SESSION_COLUMNS = (
    "session_id,user,tier,kind,submit_s,start_s,end_s,wait_s,outcome,gpus,host,gpu_s,busy_gpu_s,warnings,throttled_s,"
    "evictions"
)
JOURNAL_BUFFER = 4096


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
        journal: file for the journal, or None.
    """

    def __init__(self, out: Path | None, journal: Path | None) -> None:
        for path, what in ((out, "folder"), (journal, "file")):
            if path is not None and (path.is_file() if what == "folder" else path.is_dir()):
                raise BadInput(f"{path} is not a {what}", "name another place")
        self.tally = Tally()
        self.digest = ""
        self._out, self._journal = out, journal
        self._pending: deque[Work] = deque()
        self._lines: list[str] = []

    def __enter__(self) -> Recorder:
        """Open the temporary files beside where they will stay."""
        place = self._out or (self._journal.parent if self._journal else None)
        try:
            if self._out is not None:
                self._out.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".fairtier-", dir=place))
        except OSError as error:
            raise BadInput(
                f"cannot write to {place}: {error.strerror}", "choose a folder that can be written"
            ) from None
        self._sessions = (self._folder / "sessions.csv").open("w", encoding="utf-8", newline="")
        self._sessions.write(SESSION_COLUMNS + "\n")
        self._decisions = (self._folder / "decisions.jsonl").open("w", encoding="utf-8")
        self._journal_file = (self._folder / "journal.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close and remove whatever was not published."""
        for file in (self._sessions, self._decisions, self._journal_file):
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

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
            self._journal_file.write("\n".join(self._lines) + "\n")
            self._lines.clear()

    # -- sessions and decisions ----------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Take a batch: its decisions at once, its sessions when all that came before them have ended."""
        self._decisions.writelines(f"{decision_line(decision)}\n" for decision in batch.decisions)
        self._pending.extend(batch.arrived)
        self._put_out(self._ended())

    def _ended(self) -> Iterator[Work]:
        while self._pending and self._pending[0].outcome:
            yield self._pending.popleft()

    def _put_out(self, works: Iterable[Work]) -> None:
        for work in works:
            self.tally.add(work)
            self._sessions.write(session_line(work))

    def finish(self) -> str:
        """Write what is left (sessions that still wait) and return the digest."""
        self._put_out(self._pending)
        self._pending.clear()
        self._flush_journal()
        for file in (self._sessions, self._decisions, self._journal_file):
            file.close()
        digest = hashlib.sha256()
        for name in ("sessions.csv", "decisions.jsonl"):
            with (self._folder / name).open("rb") as written:
                while chunk := written.read(1 << 20):
                    digest.update(chunk)
        self.digest = digest.hexdigest()
        return self.digest

    def publish(self, summary: str) -> None:
        """Move the files into place, all of them even if Ctrl-C comes now."""
        moves: list[tuple[Path, Path]] = []
        if self._out is not None:
            (self._folder / "summary.json").write_text(summary + "\n", encoding="utf-8")
            names = ("sessions.csv", "decisions.jsonl", "summary.json")
            moves += [(self._folder / name, self._out / name) for name in names]
        if self._journal is not None:
            moves.append((self._folder / "journal.jsonl", self._journal))
        with _uninterrupted():
            for source, target in moves:
                shutil.move(source, target) if _other_device(source, target) else os.replace(source, target)


def _other_device(source: Path, target: Path) -> bool:
    return source.stat().st_dev != target.parent.stat().st_dev


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for a few renames."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
