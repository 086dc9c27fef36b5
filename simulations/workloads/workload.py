"""What the simulation loop asks of a source of sessions, and the source that reads them from a trace."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple, Protocol, get_args

from simulations.traces.row import Row

OnEvict = Literal["resume", "restart", "end"]


class Again(NamedTuple):
    """The same work asks for a GPU once more: what is left of it, under the same session id."""

    at_ms: int  # strictly later than the end that caused it
    duration_ms: int  # work still to do at full grant, > 0


class Workload(Protocol):
    """Sessions as they arrive, and what their users do next."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def start_ms(self) -> int:
        """First submit possible; metrics cover `start_ms` .. `end_ms`."""

    @property
    def end_ms(self) -> int:
        """Last submit possible, once the arrivals are read."""

    def arrivals(self) -> Iterator[Row]:
        """The sessions that come whatever the policy does, sorted by `submit_ms`."""

    def argv(self, row: Row) -> str:
        """Command line of what a session runs on its GPU, for rules of acceptable use; "" = none that is known."""

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        """What the user does when a session ended.

        Args:
            row: the session, as it came from `arrivals` or from here.
            outcome: completed, failed, evicted, abandoned, lost, rejected or cancelled.
            at_ms: when it ended.
            done_ms: work done of `row.duration_ms`, in ms at full grant; what earlier attempts saved counts.

        Returns:
            Again: the same work goes on. Row: a new session with a new id, `submit_ms` > `at_ms`, perhaps of another
            user. None: the user stays away.
        """


def left_ms(row: Row, done_ms: int) -> int:
    """Work to do after a session was cut off, >= 1 ms: what came after its last checkpoint is lost.

    Checkpoints are at every multiple of `row.checkpoint_ms` of work done.
    """
    return max(1, row.duration_ms - (done_ms - done_ms % row.checkpoint_ms))


class TraceWorkload:
    """Sessions from a trace, read as the run needs them.

    Args:
        name: what reports call it.
        rows: sorted by `submit_ms`. An iterator is read once, so `arrivals` works once; a list, again and again.
        on_evict: what becomes of an evicted or lost session: `resume` goes on 1 ms later from its last checkpoint,
            `restart` repeats the whole of it, `end` gives up. Any other outcome is final.
    """

    def __init__(self, name: str, rows: Iterable[Row], on_evict: OnEvict = "resume") -> None:
        if on_evict not in get_args(OnEvict):
            raise ValueError(f"on_evict {on_evict!r} must be one of {', '.join(get_args(OnEvict))}")
        self.name = name
        self.on_evict = on_evict
        self._rows = rows
        self._unread: Iterator[Row] | None = iter(rows)
        self._once = self._unread is rows
        first = next(self._unread, None)
        if first is not None:
            self._unread = chain((first,), self._unread)
        self.start_ms = first.submit_ms if first is not None else 0
        self.end_ms = self.start_ms  # the last submit read so far

    def arrivals(self) -> Iterator[Row]:
        """The trace's rows in order; `end_ms` follows the reading.

        Raises:
            RuntimeError: the rows came as an iterator and were handed out before.
            ValueError: a row is submitted before the one above it.
        """
        rows, self._unread = self._unread, None
        if rows is None:
            if self._once:
                raise RuntimeError(f"the rows of {self.name} can be read once only; give a list to read them again")
            rows = iter(self._rows)
        return self._in_order(rows)

    def _in_order(self, rows: Iterator[Row]) -> Iterator[Row]:
        last_ms = self.start_ms
        for row in rows:
            if row.submit_ms < last_ms:
                raise ValueError(
                    f"session {row.session_id} of {self.name} is submitted at {row.submit_ms} ms, "
                    f"before the one above it ({last_ms} ms); sort the trace by submit time"
                )
            last_ms = row.submit_ms
            self.end_ms = max(self.end_ms, last_ms)
            yield row

    @staticmethod
    def argv(row: Row) -> str:
        """Traces do not say what their sessions ran."""
        del row
        return ""

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | None:
        """The session once more if it was evicted or lost and `on_evict` says so."""
        if outcome not in ("evicted", "lost") or self.on_evict == "end":
            return None
        return Again(at_ms + 1, left_ms(row, done_ms) if self.on_evict == "resume" else row.duration_ms)
