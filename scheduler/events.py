"""What happens to the core: the only things that change it, besides its own cycles.

Immutable values in the past tense, each with the instant at which the scheduler learned of it (`at_ms`, integer
milliseconds, never decreasing). They are the lines of the journal (`scheduler.journal`).
"""

from __future__ import annotations

from typing import NamedTuple


class HostJoined(NamedTuple):
    """A host brings `gpus` GPUs; `heartbeat`: reports are due, so silence means stale."""

    at_ms: int
    host: str
    gpus: int
    model: str | None = None
    memory_mib: int | None = None
    heartbeat: bool = False


class HostReported(NamedTuple):
    """A host is alive and what it said of its sessions holds."""

    at_ms: int
    host: str


class HostSilent(NamedTuple):
    """Nobody listens to a host any more (it was taken out of the configuration): it counts as lost from now on."""

    at_ms: int
    host: str


class HostDrained(NamedTuple):
    """An administrator wants nothing new placed on a host."""

    at_ms: int
    host: str


class HostResumed(NamedTuple):
    """A drained host may get sessions again."""

    at_ms: int
    host: str


class GroupSet(NamedTuple):
    """A group of the share tree exists, with shares among its siblings (> 0)."""

    at_ms: int
    group: str
    shares: float = 1.0
    parent: str | None = None


class UserSet(NamedTuple):
    """A user exists in a group, with shares among the group's users (> 0).

    It is of the tier until `until_ms`, and of `then_tier` from then on; None: until it is set anew.
    """

    at_ms: int
    user: str
    group: str = "default"
    tier: str = "free"
    shares: float = 1.0
    until_ms: int | None = None
    then_tier: str = ""


class UsageSet(NamedTuple):
    """An administrator corrected a user's usage, GPU-h."""

    at_ms: int
    user: str
    usage_gpu_h: float


class UserRestricted(NamedTuple):
    """Nothing new of a user starts until `until_ms` (None: until it is pardoned); what runs goes on."""

    at_ms: int
    user: str
    until_ms: int | None = None


class UserPardoned(NamedTuple):
    """A user's restriction and cooldown are over."""

    at_ms: int
    user: str


class CalendarEntryAdded(NamedTuple):
    """Something is agreed for a time (`policies.calendar.Entry`): GPUs for a group, or work on hosts.

    `hosts`: names separated by commas, empty = all. `gpus_m`: thousandths of a GPU.
    """

    at_ms: int
    entry: str
    kind: str
    from_ms: int
    until_ms: int
    gpus_m: int = 0
    group: str = ""
    hosts: str = ""
    drain_ms: int = 0
    text: str = ""


class CalendarEntryRemoved(NamedTuple):
    """It is agreed no longer."""

    at_ms: int
    entry: str


class SessionSubmitted(NamedTuple):
    """A user asks for a session. Unknown users and groups come into being with one share."""

    at_ms: int
    session: str
    user: str
    group: str = "default"
    tier: str = "free"
    gpus: int = 1
    fraction_m: int = 1000
    gpu_type: str | None = None
    memory_mib: int | None = None
    expected_ms: int | None = None


class SessionHeld(NamedTuple):
    """An operator keeps a waiting session from starting."""

    at_ms: int
    session: str


class SessionUnheld(NamedTuple):
    """A held session waits again, in its old place."""

    at_ms: int
    session: str


class SessionAbandoned(NamedTuple):
    """The user gave up waiting."""

    at_ms: int
    session: str


class SessionCancelled(NamedTuple):
    """Somebody with the right to do so wants the session ended."""

    at_ms: int
    session: str


class EvictionOrdered(NamedTuple):
    """An operator takes the GPUs from a session, whatever the rules say."""

    at_ms: int
    session: str


class SessionStarted(NamedTuple):
    """The host says that the session's processes run."""

    at_ms: int
    session: str


class LoadReported(NamedTuple):
    """Busy part, 0..1, of what the session is granted, from `at_ms` until said otherwise; None = unknown."""

    at_ms: int
    session: str
    load: float | None


class UsageMeasured(NamedTuple):
    """A host's cumulative counters of a session: GPU-milliseconds computed and granted since it started.

    `known` = False: `busy_ms` could not follow, so the load since the report before is unknown.
    """

    at_ms: int
    session: str
    busy_ms: int
    granted_ms: int
    known: bool = True


class SessionSaved(NamedTuple):
    """The session's work up to now is safe; with `acknowledged` its save hook answers a grace, which ends with it."""

    at_ms: int
    session: str
    acknowledged: bool = False


class SessionExtended(NamedTuple):
    """Somebody said that a session is still needed: its idle time and its lifetime begin anew."""

    at_ms: int
    session: str


class RuleMatched(NamedTuple):
    """A host saw a process of the session, on its GPU, whose command line a rule of acceptable use is about."""

    at_ms: int
    session: str
    rule: str


class RuleEnded(NamedTuple):
    """The host sees no such process of the session any more."""

    at_ms: int
    session: str
    rule: str


class RuleAllowed(NamedTuple):
    """A rule of acceptable use ("" = every rule) only observes a user until `until_ms`; an instant past ends that."""

    at_ms: int
    user: str
    rule: str
    until_ms: int


class SessionEnded(NamedTuple):
    """The session's processes are gone and its GPUs free; outcome: completed, failed, evicted or cancelled."""

    at_ms: int
    session: str
    outcome: str = "completed"


Event = (
    HostJoined
    | HostReported
    | HostSilent
    | HostDrained
    | HostResumed
    | GroupSet
    | UserSet
    | UsageSet
    | UserRestricted
    | UserPardoned
    | CalendarEntryAdded
    | CalendarEntryRemoved
    | SessionSubmitted
    | SessionHeld
    | SessionUnheld
    | SessionAbandoned
    | SessionCancelled
    | EvictionOrdered
    | SessionStarted
    | LoadReported
    | UsageMeasured
    | SessionSaved
    | SessionExtended
    | RuleMatched
    | RuleEnded
    | RuleAllowed
    | SessionEnded
)
