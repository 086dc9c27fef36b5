"""Who asks for GPUs: one person with their accounts, and what a kind of person has to tell."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from simulations.streams import Stream
from simulations.traces.row import Row
from simulations.workloads.rhythm import MINUTE_MS, SHORTEST_MS, day_factor
from simulations.workloads.workload import Again, left_ms

CHECKPOINT_MS = 15 * MINUTE_MS
LABS = ("lab-a", "lab-b", "lab-c", "lab-d", "lab-e", "lab-f")
_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill 0..1 evenly (low discrepancy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every person of one run shares: time 0 is Monday 00:00, the last submit comes before `end_ms`."""

    seed: int
    scenario: str
    cap_ms: int  # longest session allowed
    end_ms: int

    def stream(self, *key: int | str) -> Stream:
        """The random numbers of one purpose in this run."""
        return Stream(self.seed, self.scenario, *key)

    def day_factor(self, day: int) -> float:
        """How busy this day is, mean 1, the same for everyone."""
        return day_factor(self.seed, self.scenario, day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with one or more accounts; names tell nothing about the kind, as in life."""

    kind: str
    key: str  # twelve hex digits, part of every session id
    users: tuple[str, ...]
    group: str
    rank: float  # where among their kind, 0..1: how much they use
    role: str = ""  # who they are in the scenario, where that says more than the kind
    tier: str = "free"
    argv: str = ""  # command line of what they run on a GPU

    @property
    def user(self) -> str:
        """The first account."""
        return self.users[0]


class End(NamedTuple):
    """How a session ended: as the arguments of `Workload.after`."""

    outcome: str
    at_ms: int
    done_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """People of a scenario who behave as a kind does and differ in their tier or in what they run."""

    name: str
    kind: str
    share: float
    tier: str = "free"
    argv: str = ""


class Kind(Protocol):
    """One archetype: how much, when, and what after."""

    @property
    def accounts(self) -> tuple[int, int]:
        """Fewest and most accounts one person has."""

    def mean_gpus(self, person: Person, cap_ms: int) -> float:
        """GPUs this person would hold on a long-run average if served at once, >= 0."""

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """Sessions that come whatever the policy does, sorted by submit, then session id."""

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """As `Workload.after`, for this person's sessions; what it says past `setting.end_ms` is dropped."""


def person_of(
    seed: int, scenario: str, kind: str, index: int, accounts: tuple[int, int], role: Role | None = None
) -> Person:
    """Number `index` (from 0) of a kind, or of a role, whoever else there is.

    Ranks of one kind are spread evenly over 0..1 from a random start, so that a dozen people already use about what
    their kind uses on average; all other draws are independent between people.
    """
    name = kind if role is None else role.name
    key = _digits(seed, scenario, name, index)
    count = Stream(seed, scenario, key, "accounts").integer(*accounts)
    start = Stream(seed, scenario, name, "rank").uniform()
    return Person(
        kind=kind,
        key=key,
        users=tuple(f"u-{_digits(seed, scenario, name, index, 'account', number)}" for number in range(count)),
        group={"researcher": LABS[index % len(LABS)], "student": "course"}.get(kind, "public"),
        rank=min(max((start + index * _GOLDEN) % 1.0, 1e-6), 1 - 1e-6),
        role=name,
        tier="free" if role is None else role.tier,
        argv="" if role is None else role.argv,
    )


def session(
    person: Person, session_id: str, submit_ms: int, duration_ms: int, *, load: float, patience_ms: int | None = None
) -> Row:
    """A session for one GPU of the person's first account."""
    return Row(
        session_id=session_id,
        user=person.user,
        group=person.group,
        tier=person.tier,
        submit_ms=submit_ms,
        duration_ms=duration_ms,
        gpus=1,
        fraction=1.0,
        gpu_type=None,
        memory_gib=None,
        load=round(min(1.0, max(0.0, load)), 3),
        patience_ms=patience_ms,
        checkpoint_ms=CHECKPOINT_MS,
        kind=person.kind,
    )


def next_id(session_id: str) -> str:
    """The id of the session that follows this one: s-1-a, s-1-a.1, s-1-a.2, ..."""
    base, _, count = session_id.partition(".")
    return f"{base}.{follow_up(session_id) + 1}" if count else f"{base}.1"


def follow_up(session_id: str) -> int:
    """How many sessions came before this one in its chain, >= 0."""
    return int(session_id.partition(".")[2] or 0)


def delay_ms(stream: Stream, shortest_min: float, longest_min: float) -> int:
    """A pause between two times in minutes, uniform, >= 1 ms."""
    return max(1, round((shortest_min + (longest_min - shortest_min) * stream.uniform()) * MINUTE_MS))


def left_for_a_new_session_ms(row: Row, done_ms: int) -> int:
    """As `left_ms`, but never shorter than a session may be."""
    return max(SHORTEST_MS, left_ms(row, done_ms))


def _digits(*key: int | str) -> str:
    return blake2b("/".join(map(str, key)).encode(), digest_size=6).hexdigest()
