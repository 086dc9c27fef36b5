"""Generated people as a workload: who there is for a wanted load, their arrivals merged, their reactions."""

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from simulations.traces.row import Row
from simulations.workloads.kinds import KINDS
from simulations.workloads.people import End, Person, Role, Setting, person_of
from simulations.workloads.workload import Again

_CLOSE = 0.003  # of the wanted load, above or below: near enough to stop adding people
_PATIENCE = 200  # people too big for what is missing, one after the other, before the search ends


def next_kind(shares: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """The kind furthest behind its share of people; the first of them in a tie."""
    total = math.fsum(counts.values()) + 1
    return max((kind for kind in shares if shares[kind] > 0), key=lambda kind: shares[kind] * total - counts[kind])


def population(
    setting: Setting, shares: Mapping[str, float], wanted_gpus: float, roles: Sequence[Role] = ()
) -> tuple[Person, ...]:
    """People who together would hold `wanted_gpus` on a long-run average if everyone were served at once.

    People are taken in a fixed order that keeps to the shares; one too big for what is missing is passed over, so the
    last few may differ from the shares. At least one person.
    """
    by_name = {role.name: role for role in roles}
    shares = {**shares, **{role.name: role.share for role in roles}}
    counts: Counter[str] = Counter()
    people: list[Person] = []
    held_gpus = 0.0
    passed_over = 0
    while held_gpus < wanted_gpus * (1 - _CLOSE) and passed_over < _PATIENCE:
        name = next_kind(shares, counts)
        role = by_name.get(name)
        kind = name if role is None else role.kind
        person = person_of(setting.seed, setting.scenario, kind, counts[name], KINDS[kind].accounts, role)
        counts[name] += 1
        gpus = KINDS[kind].mean_gpus(person, setting.cap_ms)
        if people and held_gpus + gpus > wanted_gpus * (1 + _CLOSE):
            passed_over += 1
            continue
        passed_over = 0
        held_gpus += gpus
        people.append(person)
    return tuple(people)


class GeneratedWorkload:
    """The people of a scenario, who arrive and react. Rows are made when asked for, person by person.

    Args:
        setting: seed, scenario, cap and end.
        people: any number; none changes what the others do.
        gpus: size of the cluster it is meant for, >= 1.
    """

    def __init__(self, setting: Setting, people: Sequence[Person], gpus: int) -> None:
        self.setting = setting
        self.people = tuple(people)
        self.gpus = gpus
        self.name = setting.scenario
        self.start_ms = 0
        self.end_ms = setting.end_ms
        self._by_key = {person.key: person for person in people}

    def arrivals(self) -> Iterator[Row]:
        """Sessions that come whatever the policy does, sorted by submit, then session id."""
        each = (KINDS[person.kind].arrivals(person, self.setting) for person in self.people)
        merged = heapq.merge(*each, key=lambda row: (row.submit_ms, row.session_id))
        return (row for row in merged if row.submit_ms < self.end_ms)

    def argv(self, row: Row) -> str:
        """What the session's person runs."""
        return self.person(row).argv

    def person(self, row: Row) -> Person:
        """Whose session it is: the second part of every id."""
        return self._by_key[row.session_id.split("-", 2)[1]]

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        """The reaction of the session's person; nobody asks at `end_ms` or later."""
        person = self.person(row)
        asked = KINDS[person.kind].after(person, self.setting, row, End(outcome, at_ms, done_ms))
        if asked is None:
            return None
        return asked if (asked.at_ms if isinstance(asked, Again) else asked.submit_ms) < self.end_ms else None
