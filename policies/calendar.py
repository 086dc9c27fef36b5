"""What is agreed for certain times: GPUs reserved for a group, hosts that are being worked on.

Times are instants on the scheduler's axis, ms. What follows from an entry (who may start, who has to leave) is in
`policies.rights` and `policies.maintenance`.
"""

from __future__ import annotations

from typing import NamedTuple

from policies.usage import NEVER_MS

RESERVATION, MAINTENANCE = "reservation", "maintenance"


class Entry(NamedTuple):
    """One entry.

    Attributes:
        id: its name, unique.  kind: `RESERVATION` or `MAINTENANCE`.
        from_ms, until_ms: begin, and end (exclusive).
        gpus_m: thousandths of a GPU reserved.  group: for whose users.
        hosts: that are worked on; empty = all.  drain_ms: how long before `from_ms` nothing new is placed there.
        text: what users are told.
    """

    id: str
    kind: str
    from_ms: int
    until_ms: int
    gpus_m: int = 0
    group: str = ""
    hosts: tuple[str, ...] = ()
    drain_ms: int = 0
    text: str = ""

    def closes(self, host: str) -> bool:
        """It is maintenance of this host."""
        return self.kind == MAINTENANCE and (not self.hosts or host in self.hosts)


class Calendar:
    """The entries, by id."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def reservations(self) -> list[Entry]:
        """Reservations, earliest first."""
        return sorted((e for e in self.entries.values() if e.kind == RESERVATION), key=_begin)

    def maintenance(self) -> list[Entry]:
        """Maintenance windows, earliest first."""
        return sorted((e for e in self.entries.values() if e.kind == MAINTENANCE), key=_begin)

    def drained(self, host: str, now_ms: int) -> Entry | None:
        """The window because of which nothing new is placed on a host now."""
        for entry in self.maintenance():
            if entry.closes(host) and entry.from_ms - entry.drain_ms <= now_ms < entry.until_ms:
                return entry
        return None

    def next_drain_ms(self, now_ms: int) -> int:
        """The next instant at which a host is closed or opened by a window; `NEVER_MS` when there is none."""
        times = [at for e in self.maintenance() for at in (e.from_ms - e.drain_ms, e.until_ms) if at > now_ms]
        return min(times, default=NEVER_MS)

    def conflict(self, new: Entry, pool_m: int) -> str | None:
        """Why an entry cannot be added to these; None when it can.

        A group's reservations must not overlap, what is reserved at one time must not exceed the pool (`pool_m`
        thousandths of a GPU), and a host is not worked on twice at once.
        """
        others = [e for e in self.entries.values() if e.id != new.id and e.kind == new.kind and _overlap(e, new)]
        if new.kind == MAINTENANCE:
            same = [e.id for e in others if not e.hosts or not new.hosts or set(e.hosts) & set(new.hosts)]
            return f"{same[0]} is maintenance of the same hosts at that time" if same else None
        same = [e.id for e in others if e.group == new.group]
        if same:
            return f"{same[0]} reserves GPUs for group {new.group} at that time already"
        most_m = new.gpus_m + max(
            (sum(e.gpus_m for e in others if e.from_ms <= at < e.until_ms) for at in _begins(new, others)), default=0
        )
        if most_m > pool_m:
            names = ", ".join(e.id for e in sorted(others, key=_begin))
            taken = "" if most_m == new.gpus_m else f" with what is reserved by {names}, {most_m / 1000:g} in all,"
            return f"{new.gpus_m / 1000:g} GPUs{taken} are more than the {pool_m / 1000:g} there are"
        return None


def _begin(entry: Entry) -> tuple[int, str]:
    return entry.from_ms, entry.id


def _overlap(a: Entry, b: Entry) -> bool:
    return a.from_ms < b.until_ms and b.from_ms < a.until_ms


def _begins(new: Entry, others: list[Entry]) -> list[int]:
    """Instants within an entry at which the sum of the others can be largest."""
    return [new.from_ms, *(e.from_ms for e in others if new.from_ms < e.from_ms < new.until_ms)]
