"""The vocabulary: what policies look at and what they answer. Standard library only.

Two sorts of type live here. *Facts and answers* (`Shape`, `Allocation`, `Reason`, `Decision`) are immutable values.
*State records* (`Session`, `Node`, `User`) are the core's own: policies read them, `scheduler.core` alone writes them,
so that a decision never works on a copy that has grown stale.

Units: times are integer milliseconds; GPU amounts are integer thousandths of a GPU (`_m`), so that adding and
subtracting them is exact; charge rates and committed charges are integer billionths (`_n`) of GPU-hours per hour and of
GPU-hours for the same reason.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from policies.lanes import Cell
    from policies.load import LoadWindow
    from policies.quota import Holdings

WHOLE_M = 1000
"""A whole GPU, in thousandths."""

NANO = 1_000_000_000
"""One GPU-hour (or GPU-hour per hour) in the integer unit of rates and committed charges."""

HOUR_MS = 3_600_000


class State(StrEnum):
    """Where a session is in its life; the moves between states are `scheduler.lifecycle.TABLE`."""

    QUEUED = "queued"
    HELD = "held"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class Outcome(StrEnum):
    """How a session ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    EVICTED = "evicted"
    CANCELLED = "cancelled"
    LOST = "lost"
    REJECTED = "rejected"
    ABANDONED = "abandoned"


class Ladder(StrEnum):
    """How far the load ladder has gone with a running session, mildest first."""

    OK = "ok"
    NOTICE = "notice"
    WARN = "warn"
    THROTTLE = "throttle"
    GRACE = "grace"


class Action(StrEnum):
    """What a decision does to its session."""

    START = "start"
    REJECT = "reject"
    NOTICE = "notice"
    WARN = "warn"
    THROTTLE = "throttle"
    GRACE = "grace"
    EVICT = "evict"
    WITHDRAW = "withdraw"
    RECOVER = "recover"
    LOSE = "lose"
    RESERVE = "reserve"
    OBSERVE = "observe"
    RESTRICT = "restrict"


class Shape(NamedTuple):
    """What a placement has to satisfy; sessions of one shape fit or do not fit alike.

    Attributes:
        gpus: number of GPUs, >= 1.
        fraction_m: thousandths of each GPU, 1..1000; below 1000 only with one GPU, on a shared GPU.
        gpu_type: GPU model asked for; None = any.
        memory_mib: GPU memory asked for on each GPU; None = not stated.
    """

    gpus: int
    fraction_m: int = WHOLE_M
    gpu_type: str | None = None
    memory_mib: int | None = None

    @property
    def amount_m(self) -> int:
        """Thousandths of a GPU in all."""
        return self.gpus * self.fraction_m


class Allocation(NamedTuple):
    """The GPUs that a session holds: (host, GPU numbers) pairs, and how much of each GPU was reserved."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    fraction_m: int
    memory_mib: int

    @property
    def amount_m(self) -> int:
        """Thousandths of a GPU in all."""
        return sum([len(gpus) for _, gpus in self.parts]) * self.fraction_m

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the hosts it lies on."""
        return tuple(host for host, _ in self.parts)


class Node:
    """A group of the share tree: its shares and its ledger account.

    Attributes:
        scaled, steady: the account, see `policies.usage`.
        rate_n: charge rate of everything below, integer nano GPU-h per hour.
        committed_n: committed charge of everything held below, integer nano GPU-h.
        child_shares, children: sum of the children's shares and their number; their quotient is the mean that
            standing is relative to.
    """

    __slots__ = (
        "child_shares",
        "children",
        "committed_n",
        "name",
        "parent",
        "rate_n",
        "scaled",
        "shares",
        "steady",
    )

    def __init__(self, name: str, parent: Node | None, shares: float = 1.0) -> None:
        self.name = name
        self.parent = parent
        self.shares = shares
        self.scaled = 0.0
        self.steady = 0.0
        self.rate_n = 0
        self.committed_n = 0
        self.child_shares = 0.0
        self.children = 0


class User(Node):
    """A user: a leaf of the share tree, with the sessions it holds.

    Attributes:
        group: its parent.  tier: class of users whose parameters apply.
        active_ms: when it last asked for a GPU or held one.
        held: sessions that hold GPUs, by id, in the order they started.
        cells: its waiting sessions, by shape (kept by the policy's queue).
        path: the nodes from below the root down to itself.
        due_ms: when it next crosses a threshold, computed ahead (kept by the policy's queue); 2^62 = never.
        version: rises when what was computed ahead for it no longer holds.
        cooldown_until_ms: until then its waiters make nobody give way.
        restricted_until_ms: until then nothing of it starts; 2^62 = until it is pardoned.
        nominated: its waiting sessions that others give way to, by id.
        restricted_rule: the rule of acceptable use that restricted it last; "" = an operator did, or nothing.
        allowances: until when a rule of acceptable use, or "" = every rule, only observes it; None = none was given.
        holdings: what it held over time, kept where a quota counts it; None = nothing so far.
        in_credit: usage is at most the credit cap (kept by the policy's index).
        noticed: credit is low (kept by the policy's index).
    """

    __slots__ = (
        "active_ms",
        "allowances",
        "cells",
        "cooldown_until_ms",
        "due_ms",
        "group",
        "held",
        "holdings",
        "in_credit",
        "nominated",
        "noticed",
        "path",
        "restricted_rule",
        "restricted_until_ms",
        "tier",
        "version",
    )

    def __init__(self, name: str, parent: Node, tier: str, shares: float = 1.0) -> None:
        super().__init__(name, parent, shares)
        self.group = parent
        self.tier = tier
        self.active_ms = 0
        self.held: dict[str, Session] = {}
        self.nominated: dict[str, Session] = {}
        self.holdings: Holdings | None = None
        self.cooldown_until_ms = 0
        self.restricted_until_ms = 0
        self.restricted_rule = ""
        self.allowances: dict[str, int] | None = None
        self.due_ms = 1 << 62
        self.in_credit = True
        self.noticed = False
        self.cells: dict[Shape, Cell] = {}
        self.version = 0
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        self.path = tuple(reversed(nodes))


class Sighting:
    """A rule of acceptable use that was seen in a session.

    Attributes:
        since_ms: when it was first seen.
        live: it is seen now.
        step: how many of its rule's steps were taken; stepped_ms: when the last of them was.
        ends_ms: when the session ends for it, -1 = that has not been said.
        noted: it is on record that its user is on an allow-list.
    """

    __slots__ = ("ends_ms", "live", "noted", "since_ms", "step", "stepped_ms")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.live = True
        self.step = 0
        self.stepped_ms = self.ends_ms = -1
        self.noted = False


class Session:
    """One user's notebook with GPU demand, from request to end.

    Attributes:
        seq: order of arrival at the core; ties in submit time keep it in the arrival-order policies.
        expected_ms: run time that the request declared, for policies that order by it; None = not stated.
        allocation: the GPUs held, None while waiting.
        granted_m: thousandths of each GPU granted now (less than the shape's while throttled).
        load: measured busy part of what is granted, 0..1; None = unknown.
        rate_n, committed_n: what it adds to the user's account (see `Node`).
        ladder_since_ms: when the present rung was entered; lead_ms: when its warning was first given.
        saved_ms: last checkpoint, work after it would be lost; acknowledged: its save hook has answered the grace.
        by_band: it started, or has a reservation, because it had waited so long (`policies.bounded_wait`).
        claim: the claim that its GPUs, or its wait, belong to.
        extended_ms: when it was last extended, -1 = never.
        idle_since_ms: since when its load is known to be 0, -1 = it is not.
        told_ms, idle_told_ms, maintenance_told_ms: when it was last told of its lifetime's end, of being idle, of
            maintenance of its host, -1 = never.
        uses: rules of acceptable use that were seen in it, by id; None = none.
        curbed_by: the rule that keeps what it is granted small; "" = none does.
    """

    __slots__ = (
        "acknowledged",
        "allocation",
        "by_band",
        "claim",
        "committed_n",
        "curbed_by",
        "expected_ms",
        "extended_ms",
        "granted_m",
        "id",
        "idle_since_ms",
        "idle_told_ms",
        "ladder",
        "ladder_since_ms",
        "lead_ms",
        "load",
        "maintenance_told_ms",
        "outcome",
        "rate_n",
        "saved_ms",
        "seq",
        "shape",
        "start_ms",
        "state",
        "submit_ms",
        "told_ms",
        "user",
        "uses",
        "window",
    )

    def __init__(self, sid: str, user: User, shape: Shape, submit_ms: int, seq: int, expected_ms: int | None) -> None:
        self.id = sid
        self.user = user
        self.shape = shape
        self.submit_ms = submit_ms
        self.seq = seq
        self.expected_ms = expected_ms
        self.state = State.QUEUED
        self.outcome: Outcome | None = None
        self.allocation: Allocation | None = None
        self.granted_m = shape.fraction_m
        self.load: float | None = None
        self.window: LoadWindow | None = None
        self.rate_n = 0
        self.committed_n = 0
        self.start_ms = -1
        self.ladder = Ladder.OK
        self.ladder_since_ms = -1
        self.lead_ms = -1
        self.saved_ms = -1
        self.acknowledged = False
        self.by_band = False
        self.claim: Claim | None = None
        self.extended_ms = self.idle_since_ms = self.told_ms = self.idle_told_ms = self.maintenance_told_ms = -1
        self.uses: dict[str, Sighting] | None = None
        self.curbed_by = ""

    @property
    def held_m(self) -> int:
        """Thousandths of a GPU it is granted now."""
        return self.shape.gpus * self.granted_m


class Kind(StrEnum):
    """Which rule made a claim: it is tested again by that rule when grace ends."""

    LADDER = "ladder"
    ROTATION = "rotation"
    RECLAIM = "reclaim"
    WIDE = "wide"


class Claim:
    """GPUs on their way from sessions that give way to the waiter nominated for them.

    Attributes:
        number: order in which claims were made.
        waiter: the nominated session; None = the headroom is to be refilled.
        kind: the rule that made it.
        victims: sessions in grace or being stopped for it.
        promised: somebody was evicted for it: the waiter starts, whatever has become of the headroom since.
        set_aside: kept for the waiter: what they have released so far and, once they are evicted, what it needs of
            the GPUs that were free.
    """

    __slots__ = ("kind", "number", "promised", "set_aside", "victims", "waiter")

    def __init__(self, number: int, waiter: Session | None, victims: list[Session], kind: Kind) -> None:
        self.number = number
        self.waiter = waiter
        self.victims = victims
        self.kind = kind
        self.promised = False
        self.set_aside: list[Allocation] = []


class Reason(NamedTuple):
    """Why, in numbers.

    Attributes:
        rule: the rule that spoke, e.g. "ladder.warn" (docs/policies.md has one heading for each).
        value, threshold: what was measured and the limit it was held against, in `unit`; None = not applicable.
        until_ms: when the present state of things ends or the next step may come.
        change: code of the one change that would have led to another decision (texts in `policies.explain`).
        numbers: further figures that the sentence for people needs, by name.
        text: words of the policy file itself, where the rule brings its own.
    """

    rule: str
    value: float | None = None
    threshold: float | None = None
    unit: str = ""
    until_ms: int | None = None
    change: str = ""
    numbers: tuple[tuple[str, float], ...] = ()
    text: str = ""


class Decision(NamedTuple):
    """One thing that the policy decided, with its reason; stored, shown, compared and replayed as it is.

    Attributes:
        session, user: ids of the subject.
        ladder: the rung after the decision, None where the ladder is not concerned.
        allocation: the GPUs given, for a start.
        granted_m: thousandths of each GPU granted from now on, for starts and throttles.
        other: the session it is done for (grace, evict) or in whose place it comes.
        set_aside: what is free and kept from now on: for `other`, so that it starts when the evicted have left, or
            (reserve) for the session itself.
    """

    at_ms: int
    action: Action
    session: str
    user: str
    reason: Reason
    ladder: Ladder | None = None
    allocation: Allocation | None = None
    granted_m: int | None = None
    other: str | None = None
    set_aside: tuple[Allocation, ...] = ()
