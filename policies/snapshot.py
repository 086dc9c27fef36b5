"""What a policy looks at: a read-only view over indexes that the core keeps, never a copy.

`policies` owns the types, the core owns the instances and is the only one to change them. A policy is a generator of
decisions: the core carries each one out before it asks for the next, so the view is never stale. What a policy has to
remember between cycles is in `Memory`, which the core keeps (and checkpoints) with the rest.
"""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from policies.calendar import Calendar
from policies.model import Ladder, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.limits import Block
    from policies.model import Claim, Decision, Session, Shape, User
    from policies.params import Params
    from policies.placement import Cluster
    from policies.usage import DecayClock


class WaitingQueue(Protocol):
    """The waiting sessions, in whatever order a policy needs; the core tells it of every change."""

    waiting: int

    def add(self, session: Session) -> None:
        """A session waits."""

    def remove(self, session: Session) -> None:
        """A session waits no longer; its state or claim has been changed already."""

    def refusal(self, user: User, shape: Shape, *, asked: bool = False) -> Block | None:
        """The limit that refuses a new request outright, or (`asked`) refused it when it came; None = none does."""

    def user_changed(self, user: User) -> None:
        """What the user holds, or is charged, changed."""

    def cool_down(self, user: User, until_ms: int) -> None:
        """The user was evicted."""

    def calendar_changed(self, calendar: Calendar) -> None:
        """Other reservations are agreed."""

    def advance(self) -> None:
        """The clock moved."""

    def next_ms(self) -> int:
        """Next instant at which the queue's order changes by itself; `usage.NEVER_MS` = never."""

    def rebased(self) -> None:
        """Every account was rescaled."""

    def requested(self, session: Session) -> None:
        """A session was just asked for and waits: learn from it what to expect."""

    def took(self, amount_m: int) -> None:
        """A session took so many thousandths of a GPU."""

    def gave_back(self, amount_m: int, *, by_itself: bool) -> None:
        """A session left; `by_itself`: nobody made it."""

    def saved(self, duration_ms: int) -> None:
        """A session acknowledged that it saved, so long after it was asked to."""

    def learned(self) -> dict[str, Any] | None:
        """For checkpoints: what was learned of requests and departures."""

    def restore_learned(self, learned: dict[str, Any] | None, held_m: int) -> None:
        """For checkpoints: take that over; `held_m` thousandths of a GPU are held."""

    def shared_dues(self) -> list[tuple[str, str, int]]:
        """For checkpoints: (group, tier, when) the credit that a group's users share next changes."""

    def restore_shared_dues(self, dues: list[tuple[str, str, int]]) -> None:
        """For checkpoints: take that over."""

    def touched_names(self) -> list[str]:
        """For checkpoints: users whose notices the policy has yet to look at."""

    def touch(self, users: list[User]) -> None:
        """For checkpoints: make them exactly these."""

    def restore_memory(self, memory: Memory) -> None:
        """For checkpoints: take over what the policy remembered of baselines."""

    def set_due(self, user: User, at_ms: int) -> None:
        """For checkpoints: the user's next crossing."""


class Policy(Protocol):
    """One set of rules: decides when asked, one decision at a time."""

    @property
    def params(self) -> Params:
        """Its parameters."""

    @property
    def tracked(self) -> bool:
        """Whether it follows single sessions beside the queue (lifetime, idle)."""

    def make_queue(self, clock: DecayClock) -> WaitingQueue:
        """A new queue of the type that the policy orders by."""

    def decide(self, view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
        """The decisions of one cycle; the core carries each out before it asks for the next."""


class Memory:
    """What a fair-share policy remembers between two cycles; plain values, checkpointed by the core.

    Attributes:
        contention_since_ms: None = there is none.
        calm_from_ms: start of the present spell without contention, moved on by each step down; None = contention.
        baselines: GPUs per user of each tier with an automatic baseline; baseline_due_ms: when they move next.
        first_ms: first instant of all, from which the first 7 days count.
        since_band: sessions to start before one may start by the bounded-wait band again.
        stock_m: headroom by goal, thousandths of a GPU; None = there is no goal. stock_due_ms: when it is set next.
    """

    __slots__ = (
        "baseline_due_ms",
        "baselines",
        "calm_from_ms",
        "contention_since_ms",
        "first_ms",
        "since_band",
        "stock_due_ms",
        "stock_m",
    )

    def __init__(self) -> None:
        self.contention_since_ms: int | None = None
        self.calm_from_ms: int | None = None
        self.baselines: dict[str, float] = {}
        self.baseline_due_ms = -1
        self.first_ms: int | None = None
        self.since_band = 0
        self.stock_m: int | None = None
        self.stock_due_ms = -1


QueueT_co = TypeVar("QueueT_co", bound=WaitingQueue, covariant=True)


class Snapshot(Generic[QueueT_co]):
    """The moment as a policy sees it.

    Attributes:
        clock: the instant, and the decay of every account.
        cluster: what is free and what fits.
        queue: the waiting sessions (of the type that the policy's `make_queue` returned).
        unplaceable: sessions to be refused: no empty cluster could run them, or a limit forbids to wait.
        users: every user known, by name.
        holders: sessions that hold GPUs, by id, in the order they started.
        warned: those of them that are on the rung warn or above, and not yet being stopped.
        claims: GPUs on their way to a nominated waiter or to the headroom, by number.
        leaving_m: thousandths of a GPU held by sessions in grace or being stopped.
        set_aside_m: thousandths of a GPU kept for nominated waiters, most of it released by their victims.
        claimed_m: thousandths of a GPU asked by nominated waiters.
        missing_m: the part of it that waiters with a reservation lack, while nobody gives way to them.
        stale_hosts, lost_hosts: hosts that owe a report for longer than `stale`, `lost`; drained_hosts: by an operator.
            maintained_hosts: closed by a maintenance window.
        calendar: what is agreed for certain times.
        looks: when the tracks look at which session (a heap).  idlers: sessions that count as idle, by id.
        overdue: sessions with a step of acceptable use that is due and waits for telemetry to be fresh, by id.
        shrunk: sessions that are granted less than they asked for, by id.
        wakes: instants at which a policy asked to be called again.
    """

    __slots__ = (
        "_looked",
        "calendar",
        "claimed_m",
        "claims",
        "clock",
        "cluster",
        "drained_hosts",
        "holders",
        "idlers",
        "leaving_m",
        "looks",
        "lost_hosts",
        "maintained_hosts",
        "memory",
        "missing_m",
        "overdue",
        "queue",
        "set_aside_m",
        "shrunk",
        "stale_hosts",
        "unplaceable",
        "users",
        "wakes",
        "warned",
    )

    def __init__(self, clock: DecayClock, cluster: Cluster, queue: QueueT_co) -> None:
        self.clock = clock
        self.cluster = cluster
        self.queue = queue
        self.memory = Memory()
        self.users: dict[str, User] = {}
        self.holders: dict[str, Session] = {}
        self.unplaceable: list[Session] = []
        self.warned: dict[str, Session] = {}
        self.claims: dict[int, Claim] = {}
        self.leaving_m = 0
        self.set_aside_m = 0
        self.claimed_m = 0
        self.missing_m = 0
        self.stale_hosts: set[str] = set()
        self.lost_hosts: set[str] = set()
        self.drained_hosts: set[str] = set()
        self.maintained_hosts: set[str] = set()
        self.calendar = Calendar()
        self.looks: list[tuple[int, int, Session]] = []
        self._looked = 0
        self.idlers: dict[str, Session] = {}
        self.overdue: dict[str, Session] = {}
        self.shrunk: dict[str, Session] = {}
        self.wakes: set[int] = set()

    def wake(self, at_ms: int) -> None:
        """Ask to be called at `at_ms`, which must be strictly later than now: a call for now would never end."""
        if not at_ms > self.clock.now_ms:
            raise ValueError(f"wake-up at {at_ms} ms is not later than now, {self.clock.now_ms} ms")
        self.wakes.add(at_ms)

    def look(self, session: Session, at_ms: int) -> None:
        """The tracks look at a session in the first cycle at or after `at_ms`."""
        self._looked += 1
        heappush(self.looks, (at_ms, self._looked, session))

    def fresh(self, session: Session) -> bool:
        """Telemetry of every host of the session is young enough to act on."""
        if not self.stale_hosts:
            return True
        return session.allocation is not None and self.stale_hosts.isdisjoint(session.allocation.hosts)

    def leaving(self, session: Session) -> bool:
        """The session is on its way out: in grace, or being stopped."""
        return session.state is State.STOPPING or session.ladder is Ladder.GRACE
