"""Kinds of people who come by the hour and the weekday: researchers, students, and those who run sweeps."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

from simulations.streams import Stream
from simulations.traces.row import Row
from simulations.workloads.people import (
    End,
    Person,
    Setting,
    delay_ms,
    follow_up,
    left_for_a_new_session_ms,
    next_id,
    session,
)
from simulations.workloads.rhythm import (
    DAY_MS,
    DEADLINE_FACTORS,
    HOUR_MS,
    HOUR_WEIGHTS,
    MINUTE_MS,
    PAI_LOAD,
    PHILLY_LOAD,
    SHORTEST_MS,
    STUDENT_HOUR_WEIGHTS,
    cell_load,
    clamped_lognormal_mean,
    clamped_ms,
    spread,
    submit_in_day,
    weekday_factor,
)
from simulations.workloads.workload import Again, left_ms


def visits(
    person: Person, setting: Setting, per_day: Callable[[int], float], hour_weights: tuple[float, ...]
) -> Iterator[tuple[str, int]]:
    """When somebody sits down: (id, ms), in order; a Poisson number each day, more on days busy for everyone.

    Args:
        person: whose visits; each day has its own stream, so a longer run only adds days.
        setting: of the run; visits end before its `end_ms`.
        per_day: mean visits on a day (0 = first Monday) that is as busy as the mean.
        hour_weights: 24 weights.
    """
    for day in range(-(-setting.end_ms // DAY_MS)):
        stream = setting.stream(person.key, "visits", day)
        count = stream.poisson(per_day(day) * setting.day_factor(day))
        times = sorted(submit_in_day(stream, day, hour_weights) for _ in range(count))
        for number, submit_ms in enumerate(times):
            if submit_ms < setting.end_ms:
                yield f"s-{person.key}-{day:03d}-{number:03d}", submit_ms


def again(stream: Stream, row: Row, end: End, shortest_min: float, longest_min: float) -> Again:
    """The rest of the work, asked for after a pause between two times."""
    return Again(end.at_ms + delay_ms(stream, shortest_min, longest_min), left_ms(row, end.done_ms))


class Researcher:
    """Bursty notebook work, one session a day on average; waits half an hour on average, then comes back later.

    Table: lognormal length, median 2.5 h, sigma .9; patience exponential, mean 30 min. People differ
    by a lognormal with sigma .5 (docs/decisions/0018-how-researchers-differ.md). Our choice: 80 % go on 5-20 min after
    an eviction; half of those who gave up or were refused try again 1-4 h later if that is the same day.
    """

    accounts: ClassVar = (1, 1)
    per_day = 1.0
    sigma_between = 0.5
    median_ms = 2.5 * HOUR_MS
    sigma = 0.9
    patience_ms = 30 * MINUTE_MS

    def mean_gpus(self, person: Person, cap_ms: int) -> float:
        """Visits a day times mean length."""
        mean_ms = clamped_lognormal_mean(self.median_ms, self.sigma, SHORTEST_MS, cap_ms)
        return self._per_day(person) * mean_ms / DAY_MS

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """One session a visit."""
        rate = self._per_day(person)
        for session_id, submit_ms in visits(person, setting, lambda day: rate * weekday_factor(day), HOUR_WEIGHTS):
            stream = setting.stream(person.key, session_id, "session")
            duration_ms = clamped_ms(stream.lognormal(self.median_ms, self.sigma), setting.cap_ms)
            patience_ms = max(1, round(stream.exponential(self.patience_ms)))
            load = cell_load(stream, duration_ms)
            yield session(person, session_id, submit_ms, duration_ms, load=load, patience_ms=patience_ms)

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """Goes on after an eviction, or comes back the same day after waiting in vain."""
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        if end.outcome in ("evicted", "lost") and stream.uniform() < 0.8:
            return again(stream, row, end, 5, 20)
        if end.outcome in ("abandoned", "rejected") and stream.uniform() < 0.5:
            back_ms = end.at_ms + delay_ms(stream, 60, 240)
            if back_ms // DAY_MS == end.at_ms // DAY_MS:
                return row._replace(
                    session_id=next_id(row.session_id),
                    submit_ms=back_ms,
                    duration_ms=left_for_a_new_session_ms(row, end.done_ms),
                    patience_ms=max(1, round(stream.exponential(self.patience_ms))),
                )
        return None

    def _per_day(self, person: Person) -> float:
        return self.per_day * spread(person.rank, self.sigma_between)


class Student:
    """Coursework in the afternoon and evening, five times as much before the deadline; gives up after 10 min.

    Table: lognormal length, median 45 min; load 5-10 % duty times PAI's. Our choice: sigma .6, .35 sessions on an
    ordinary day, people differ by a lognormal with sigma .8; half go on 1-10 min after an eviction.
    """

    accounts: ClassVar = (1, 1)
    per_day = 0.35
    sigma_between = 0.8
    median_ms = 45 * MINUTE_MS
    sigma = 0.6
    patience_ms = 10 * MINUTE_MS

    def mean_gpus(self, person: Person, cap_ms: int) -> float:
        """Visits on a mean day of the week times mean length."""
        mean_ms = clamped_lognormal_mean(self.median_ms, self.sigma, SHORTEST_MS, cap_ms)
        return self._per_day(person) * math.fsum(DEADLINE_FACTORS) / 7 * mean_ms / DAY_MS

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """One session a visit."""
        rate = self._per_day(person)
        hours = STUDENT_HOUR_WEIGHTS
        for session_id, submit_ms in visits(person, setting, lambda day: rate * DEADLINE_FACTORS[day % 7], hours):
            stream = setting.stream(person.key, session_id, "session")
            duration_ms = clamped_ms(stream.lognormal(self.median_ms, self.sigma), setting.cap_ms)
            load = (0.05 + 0.05 * stream.uniform()) * stream.from_cdf(PAI_LOAD)
            yield session(person, session_id, submit_ms, duration_ms, load=load, patience_ms=self.patience_ms)

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """Goes on after an eviction, or not; never comes back after waiting in vain."""
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        if end.outcome in ("evicted", "lost") and stream.uniform() < 0.5:
            return again(stream, row, end, 1, 10)
        return None

    def _per_day(self, person: Person) -> float:
        return self.per_day * spread(person.rank, self.sigma_between)


class Sweep:
    """Many short runs at once; what fails is run again.

    Table: 5-50 sessions at once, 40 % fail; lognormal length, mu 5.95, sigma 2.85 (seconds, Helios), up to the cap;
    Philly's load. Our choice: a sweep each second day on average, its size uniform on a logarithmic scale, people
    differ by a lognormal with sigma 1, a run is tried three times at most. A run that fails in itself ends
    `completed` for the scheduler, and its user sees the failure.
    """

    accounts: ClassVar = (1, 1)
    per_day = 0.5
    sigma_between = 1.0
    median_ms = 383_800.0  # e ** 5.95 s
    sigma = 2.85
    fewest, most = 5, 50
    fails = 0.4
    tries = 3

    def mean_gpus(self, person: Person, cap_ms: int) -> float:
        """Sweeps a day times runs a sweep times tries a run times mean length."""
        mean_ms = clamped_lognormal_mean(self.median_ms, self.sigma, SHORTEST_MS, cap_ms)
        tries = (1 - self.fails**self.tries) / (1 - self.fails)
        return self._per_day(person) * self._mean_size() * tries * mean_ms / DAY_MS

    def arrivals(self, person: Person, setting: Setting) -> Iterator[Row]:
        """All runs of one sweep at the same instant."""
        rate = self._per_day(person)
        for visit_id, submit_ms in visits(person, setting, lambda day: rate * weekday_factor(day), HOUR_WEIGHTS):
            size = self._size(setting.stream(person.key, visit_id, "size").uniform())
            for number in range(size):
                yield self._run(person, setting, f"{visit_id}-{number:02d}", submit_ms)

    def after(self, person: Person, setting: Setting, row: Row, end: End) -> Again | Row | None:
        """Runs again what failed, was cut off or was refused."""
        stream = setting.stream(person.key, row.session_id, "after", end.outcome)
        if end.outcome in ("evicted", "lost"):
            return again(stream, row, end, 1, 5)
        if end.outcome in ("rejected", "abandoned"):
            return row._replace(session_id=next_id(row.session_id), submit_ms=end.at_ms + delay_ms(stream, 10, 60))
        failed = end.outcome == "failed" or (end.outcome == "completed" and stream.uniform() < self.fails)
        if failed and follow_up(row.session_id) + 1 < self.tries:
            return self._run(person, setting, next_id(row.session_id), end.at_ms + delay_ms(stream, 1, 5))
        return None

    def _run(self, person: Person, setting: Setting, session_id: str, submit_ms: int) -> Row:
        stream = setting.stream(person.key, session_id, "session")
        duration_ms = clamped_ms(stream.lognormal(self.median_ms, self.sigma), setting.cap_ms)
        return session(person, session_id, submit_ms, duration_ms, load=stream.from_cdf(PHILLY_LOAD))

    def _size(self, u: float) -> int:
        return int(self.fewest * math.exp(u * self._log_range()))

    def _mean_size(self) -> float:
        above = (1 - math.log(size / self.fewest) / self._log_range() for size in range(self.fewest + 1, self.most + 1))
        return self.fewest + math.fsum(above)  # the sum of P(size >= k)

    def _log_range(self) -> float:
        return math.log((self.most + 1) / self.fewest)

    def _per_day(self, person: Person) -> float:
        return self.per_day * spread(person.rank, self.sigma_between)
