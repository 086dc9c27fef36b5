"""Kinds of people who hold GPUs day and night: idle hoarders, mass trainers, miners."""

from collections.abc import Iterator
from typing import ClassVar

from simulations.streams import Stream
from simulations.traces.row import Row
from simulations.workloads.people import End, Person, Setting, delay_ms, next_id, session
from simulations.workloads.rhythm import DAY_MS, MINUTE_MS
from simulations.workloads.workload import Again, left_ms

REFUSED_MIN = (
    10.0,
    60.0,
)  # pause before asking again for what was refused, for scripts and hoarders alike (our choice)


def first_length_ms(stream: Stream, cap_ms: int) -> int:
    """What is left, at time 0, of a session as long as the cap that began before: uniform, 1 min .. cap."""
    return stream.integer(min(MINUTE_MS, cap_ms), cap_ms)


class Idle:
    """Hoards a GPU for later: hardly any load, stays to the cap and reconnects some minutes after.

    Table: load 0 in 70 % of sessions, at most 5 % in the others; cap length. Our choice: reconnects 2-10 min after an
    eviction always, after the cap in 75 % of cases, otherwise stays away 36 h on average (exponential); asks again
    10-60 min after a refusal.
    """

    accounts: ClassVar = (1, 1)
    reconnects = 0.75
    pause_min = (2.0, 10.0)
    away_ms = 1.5 * DAY_MS

    def mean_gpus(self, person: Person, cap_ms: int) -> float:  # noqa: ARG002 - the same for every person
        """Share of the time with a session: its length over length and mean pause."""
        return cap_ms / (cap_ms + self._mean_pause_ms())

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """The first session; every other follows from an end."""
        stream = setting.stream(person.key, "first")
        if stream.uniform() < self.mean_gpus(person, setting.cap_ms):
            submit_ms, duration_ms = int(stream.uniform() * MINUTE_MS), first_length_ms(stream, setting.cap_ms)
        else:
            submit_ms, duration_ms = round(stream.exponential(self.away_ms)), setting.cap_ms
        yield self._session(person, setting, f"s-{person.key}-0", submit_ms, duration_ms)

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """A new session up to the cap, soon or in a day or two."""
        if end.outcome == "cancelled":
            return None
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        refused = end.outcome in ("rejected", "abandoned")
        pause_ms = delay_ms(stream, *(REFUSED_MIN if refused else self.pause_min))
        if end.outcome == "completed" and stream.uniform() >= self.reconnects:
            pause_ms = max(1, round(stream.exponential(self.away_ms)))
        return self._session(person, setting, next_id(row.session_id), end.at_ms + pause_ms, setting.cap_ms)

    def _session(self, person: Person, setting: Setting, session_id: str, submit_ms: int, duration_ms: int) -> Row:
        stream = setting.stream(person.key, session_id, "session")
        load = 0.0 if stream.uniform() < 0.7 else 0.05 * stream.uniform()
        return session(person, session_id, submit_ms, duration_ms, load=load)

    def _mean_pause_ms(self) -> float:
        short_ms = (self.pause_min[0] + self.pause_min[1]) / 2 * MINUTE_MS
        return self.reconnects * short_ms + (1 - self.reconnects) * self.away_ms


class Trainer:
    """Trains day and night, on several GPUs or in several sessions, and asks again at once.

    Table: to the cap, load normal (.94, .04), asks again after 1-5 min, checkpoints every 15 min. Our choice: how many
    sessions of how many GPUs (`lines`), so that the heaviest tenth of all people asks for about 60 % of GPU time; a
    refused session is asked for again after 10-60 min.
    """

    accounts: ClassVar = (1, 1)
    lines: ClassVar = ((1, 1), (1, 1), (1, 2), (1, 2), (2, 1), (3, 1), (2, 2), (1, 4))  # (sessions, GPUs each)
    pause_min = (1.0, 5.0)

    def mean_gpus(self, person: Person, cap_ms: int) -> float:
        """GPUs of all lines but for the pauses."""
        count, gpus = self._lines(person)
        pause_ms = (self.pause_min[0] + self.pause_min[1]) / 2 * MINUTE_MS
        return count * gpus * cap_ms / (cap_ms + pause_ms)

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """The first session of each line, in the first minute."""
        count, _ = self._lines(person)
        firsts = []
        for line in range(count):
            stream = setting.stream(person.key, "first", line)
            submit_ms, duration_ms = int(stream.uniform() * MINUTE_MS), first_length_ms(stream, setting.cap_ms)
            firsts.append(self._session(person, setting, f"s-{person.key}-{line}", submit_ms, duration_ms))
        yield from sorted(firsts, key=lambda row: (row.submit_ms, row.session_id))

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """The rest from the last checkpoint after an eviction, otherwise the next training."""
        if end.outcome == "cancelled":
            return None
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        refused = end.outcome in ("rejected", "abandoned")
        back_ms = end.at_ms + delay_ms(stream, *(REFUSED_MIN if refused else self.pause_min))
        if end.outcome in ("evicted", "lost"):
            return Again(back_ms, left_ms(row, end.done_ms))
        return self._session(person, setting, next_id(row.session_id), back_ms, setting.cap_ms)

    def _session(self, person: Person, setting: Setting, session_id: str, submit_ms: int, duration_ms: int) -> Row:
        load = setting.stream(person.key, session_id, "session").normal(0.94, 0.04)
        _, gpus = self._lines(person)
        return session(person, session_id, submit_ms, duration_ms, load=load)._replace(gpus=gpus)

    def _lines(self, person: Person) -> tuple[int, int]:
        return self.lines[int(person.rank * len(self.lines))]


class Miner:
    """Mines day and night with one of several accounts, and takes the next one when the first is evicted.

    Table: load 99-100 %, to the cap, k accounts. Our choice: k is 3-6; asks again after 1-5 min, from the next account
    after an eviction or a refusal.
    """

    accounts: ClassVar = (3, 6)
    pause_min = (1.0, 5.0)

    def mean_gpus(self, person: Person, cap_ms: int) -> float:  # noqa: ARG002 - the same for every person
        """One GPU but for the pauses."""
        return cap_ms / (cap_ms + (self.pause_min[0] + self.pause_min[1]) / 2 * MINUTE_MS)

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """The first session; every other follows from an end."""
        stream = setting.stream(person.key, "first")
        submit_ms, duration_ms = int(stream.uniform() * MINUTE_MS), first_length_ms(stream, setting.cap_ms)
        yield self._session(person, setting, f"s-{person.key}-0", submit_ms, duration_ms)

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """The next session, from the next account if this one was stopped."""
        if end.outcome == "cancelled":
            return None
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        pause_min = REFUSED_MIN if end.outcome in ("rejected", "abandoned") else self.pause_min
        back_ms = end.at_ms + delay_ms(stream, *pause_min)
        following = self._session(person, setting, next_id(row.session_id), back_ms, setting.cap_ms)
        hops = end.outcome in ("evicted", "rejected", "abandoned")
        at = person.users.index(row.user) + (1 if hops else 0)
        return following._replace(user=person.users[at % len(person.users)])

    def _session(self, person: Person, setting: Setting, session_id: str, submit_ms: int, duration_ms: int) -> Row:
        load = 0.99 + 0.01 * setting.stream(person.key, session_id, "session").uniform()
        return session(person, session_id, submit_ms, duration_ms, load=load)
