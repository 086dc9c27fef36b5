"""The calendar as the core keeps it: what may be agreed, and what is over and forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.calendar import MAINTENANCE, RESERVATION, Calendar, Entry
from policies.model import WHOLE_M
from scheduler.errors import CoreError

if TYPE_CHECKING:
    from collections.abc import Collection

    from policies.placement import Cluster
    from scheduler import events as ev

LAST_MS = 10**15
"""No time lies beyond this (about 31,700 years): it keeps every computation with times exact."""


class Agenda:
    """Applies the calendar's events.

    Args:
        calendar: of the view.
        cluster: whose hosts and GPUs an entry may name.
    """

    def __init__(self, calendar: Calendar, cluster: Cluster) -> None:
        self._calendar = calendar
        self._cluster = cluster

    def added(self, event: ev.CalendarEntryAdded) -> None:
        """Something is agreed; what is over is forgotten, so that the calendar does not grow for ever."""
        entry = entry_of(event)
        found = problem(entry, self._calendar, self._cluster, event.at_ms)
        if found is not None:
            raise CoreError(f"calendar entry {entry.id}: {found}")
        self._calendar.entries = to_come(self._calendar, event.at_ms)
        self._calendar.entries[entry.id] = entry

    def removed(self, event: ev.CalendarEntryRemoved) -> None:
        """Something is agreed no longer."""
        if self._calendar.entries.pop(event.entry, None) is None:
            raise CoreError(f"calendar entry {event.entry} is not known")


def entry_of(event: ev.CalendarEntryAdded) -> Entry:
    """What an event agrees on."""
    hosts = tuple(event.hosts.split(",")) if event.hosts else ()
    return Entry(
        event.entry, event.kind, event.from_ms, event.until_ms, event.gpus_m, event.group, hosts, event.drain_ms,
        event.text,
    )  # fmt: skip


def to_come(calendar: Calendar, now_ms: int) -> dict[str, Entry]:
    """The entries that are not over, by id."""
    return {entry.id: entry for entry in calendar.entries.values() if entry.until_ms > now_ms}


def problem(entry: Entry, calendar: Calendar, cluster: Cluster, now_ms: int) -> str | None:
    """Why an entry cannot be agreed beside those of a calendar that are not over; None when it can."""
    if entry.kind not in (RESERVATION, MAINTENANCE):
        return f"kind {entry.kind!r} is neither {RESERVATION} nor {MAINTENANCE}"
    if not now_ms < entry.until_ms <= LAST_MS or not 0 <= entry.from_ms < entry.until_ms:
        return f"from {entry.from_ms} until {entry.until_ms} ms is not a time to come, it is {now_ms} ms"
    if entry.kind == RESERVATION and (entry.gpus_m < 1 or not entry.group):
        return f"{entry.gpus_m / WHOLE_M:g} GPUs for group {entry.group!r}: both are needed"
    if entry.drain_ms < 0:
        return f"drain {entry.drain_ms} ms must be >= 0"
    missing = unknown_hosts(entry.hosts, cluster)
    if missing:
        return f"host {missing[0]} is not known"
    beside = Calendar()
    beside.entries = to_come(calendar, now_ms)
    if entry.id in beside.entries:
        return "there is one of that name"
    pool_m = sum(host.spec.gpus for host in cluster.hosts.values()) * WHOLE_M  # closed hosts open again
    return beside.conflict(entry, pool_m)


def unknown_hosts(hosts: Collection[str], cluster: Cluster) -> list[str]:
    """Those of the hosts that have not joined."""
    return [host for host in hosts if host not in cluster.hosts]
