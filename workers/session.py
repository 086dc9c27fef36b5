"""One session as its host keeps it: what it is, where its processes are, and its two counters.

The counters only grow. `granted_ns` follows every change of the grant at once; `busy_ns` follows at samples, never past
what was granted until then, and reports show both as of the last sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from workers.protocol import SessionReport

if TYPE_CHECKING:
    from workers.probes.base import Sample
    from workers.protocol import Start

Outcome = Literal["completed", "failed", "evicted", "cancelled"]
LONGEST_ERROR = 500


@dataclass(slots=True, kw_only=True)
class Session:
    """A session and its counters.

    Attributes:
        state: `accepted` (journalled, not started yet), `running`, `ended`.
        pid, ticks: the shell that leads it, and its start time; None = not started, or not known.
        boot: the kernel's boot id that pid and `counted_ns` belong to.
        stop: outcome of the Stop that it is being ended by.
        granted_m: thousandths of each GPU granted now.
        until_ms: when a throttle lapses, wall clock; None = none.
        counted_ns: up to when `granted_ns` is counted (clock since boot).
        measured_ns: `granted_ns` at the last sample.
        known: every sample since the last report could be measured.
        grace: mark of the file `saved` when the grace began, None = no grace.
    """

    name: str
    gpus: tuple[int, ...] = ()
    fraction_m: int = 1000
    grace_signal: str | None = None
    state: Literal["accepted", "running", "ended"] = "accepted"
    pid: int | None = None
    ticks: int | None = None
    boot: str = ""
    stop: Literal["evicted", "cancelled"] | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    error: str = ""
    granted_m: int = 1000
    until_ms: int | None = None
    granted_ns: int = 0
    counted_ns: int = 0
    measured_ns: int = 0
    busy_ns: int = 0
    known: bool = True
    grace: str | None = None
    saved: bool = False

    @classmethod
    def of(cls, start: Start) -> Session:
        """The session that a Start asks for."""
        return cls(
            name=start.session,
            gpus=start.gpus,
            fraction_m=start.fraction_m,
            granted_m=start.fraction_m,
            grace_signal=start.grace_signal,
        )

    @classmethod
    def restored(cls, row: dict[str, Any]) -> Session:
        """A session from the journal; members that this version does not know are left out."""
        kept = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        return cls(**{**kept, "gpus": tuple(kept.get("gpus", ()))})

    def row(self) -> dict[str, Any]:
        """What the journal keeps."""
        return asdict(self)

    def begin(self, pid: int, ticks: int | None, boot: str, now_ns: int) -> None:
        """Its processes exist."""
        self.state, self.pid, self.ticks, self.boot = "running", pid, ticks, boot
        self.counted_ns = now_ns

    def grant(self, granted_m: int, now_ns: int) -> None:
        """It may use so much of each GPU from now on."""
        self.count(now_ns)
        self.granted_m = granted_m

    def count(self, now_ns: int) -> None:
        """Bring `granted_ns` up to now."""
        if self.state == "running":
            elapsed = max(0, now_ns - self.counted_ns)
            self.granted_ns += len(self.gpus) * self.granted_m * elapsed // 1000
            self.counted_ns += elapsed

    def take(self, sample: Sample, now_ns: int) -> None:
        """Take a measurement that ends now into the counters."""
        self.count(now_ns)
        self.busy_ns += min(sample.busy_ns, self.granted_ns - self.measured_ns)
        self.measured_ns = self.granted_ns
        self.known = self.known and sample.known

    def end(self, outcome: Outcome, exit_code: int | None, error: str, now_ns: int) -> None:
        """Nothing of it is left."""
        self.count(now_ns)
        self.measured_ns = self.granted_ns
        self.state, self.outcome, self.exit_code, self.error = "ended", outcome, exit_code, error[:LONGEST_ERROR]
        self.until_ms, self.granted_m = None, self.fraction_m

    def report(self) -> SessionReport:
        """What the scheduler is told."""
        return SessionReport(
            session=self.name,
            state="ended" if self.state == "ended" else "running",
            outcome=self.outcome,
            exit_code=self.exit_code,
            error=self.error,
            busy_ms=self.busy_ns // 1_000_000,
            granted_ms=self.measured_ns // 1_000_000,
            known=self.known,
            saved=self.saved,
            granted_m=self.granted_m,
        )
