"""Hosts as the core knows them: joined, drained, and silent for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.placement import HostSpec
from policies.usage import NEVER_MS
from scheduler.errors import CoreError

if TYPE_CHECKING:
    from policies.params import TelemetryParams
    from policies.snapshot import Snapshot, WaitingQueue
    from scheduler import events as ev


class Hosts:
    """Applies the hosts' events to the view.

    Attributes:
        reported_ms: last report of each host that owes reports; the others are never stale.
        calendar_ms: when a maintenance window next closes or opens a host.
    """

    def __init__(self, view: Snapshot[WaitingQueue], telemetry: TelemetryParams) -> None:
        self.reported_ms: dict[str, int] = {}
        self._view = view
        self._telemetry = telemetry
        self.calendar_ms = NEVER_MS

    def joined(self, event: ev.HostJoined) -> None:
        """A host and its GPUs are there; one that holds nothing may come back with other GPUs."""
        cluster = self._view.cluster
        known = cluster.hosts.get(event.host)
        if known is not None and (known.spec.gpus, known.spec.model, known.spec.memory_mib) == event[2:5]:
            raise CoreError(f"host {event.host} has joined already")
        if not event.gpus >= 1:
            raise CoreError(f"host {event.host} brings {event.gpus} GPUs, at least 1 is needed")
        if event.memory_mib is not None and not event.memory_mib >= 1:
            raise CoreError(f"host {event.host} has {event.memory_mib} MiB a GPU, at least 1 is needed")
        spec = HostSpec(name=event.host, gpus=event.gpus, model=event.model, memory_mib=event.memory_mib)
        if known is None:
            cluster.add_host(spec)
        else:
            self._replace(spec)
        if self._view.calendar.entries:
            self.calendar_changed()
        if event.heartbeat:
            self.reported_ms[event.host] = event.at_ms

    def _replace(self, spec: HostSpec) -> None:
        try:
            self._view.cluster.replace_host(spec)
        except ValueError as error:
            raise CoreError(str(error)) from None
        self._view.stale_hosts.discard(spec.name)
        self._view.lost_hosts.discard(spec.name)
        self._open_or_close(spec.name)

    def reported(self, event: ev.HostReported) -> None:
        """A host that owes reports has made one."""
        if event.host not in self.reported_ms:
            raise CoreError(f"host {event.host} is not known as one that reports")
        self.reported_ms[event.host] = event.at_ms
        self._view.stale_hosts.discard(event.host)
        self._view.lost_hosts.discard(event.host)
        self._open_or_close(event.host)

    def silent(self, event: ev.HostSilent) -> None:
        """The next cycle finds the host lost."""
        if event.host not in self.reported_ms:
            raise CoreError(f"host {event.host} is not known as one that reports")
        self.reported_ms[event.host] = event.at_ms - self._telemetry.lost_ms - 1

    def drained(self, event: ev.HostDrained) -> None:
        """Nothing new is placed on the host."""
        self._known(event.host)
        self._view.drained_hosts.add(event.host)
        self._open_or_close(event.host)

    def resumed(self, event: ev.HostResumed) -> None:
        """A drained host may get sessions again."""
        self._known(event.host)
        self._view.drained_hosts.discard(event.host)
        self._open_or_close(event.host)

    def watch(self, now_ms: int) -> None:
        """Hosts that owe a report: nothing new after `stale`, their sessions are lost after `lost`."""
        view = self._view
        for host, seen_ms in self.reported_ms.items():
            stale_ms, lost_ms = seen_ms + self._telemetry.stale_ms, seen_ms + self._telemetry.lost_ms
            if now_ms > stale_ms:
                view.stale_hosts.add(host)
                self._open_or_close(host)
            if now_ms > lost_ms:
                view.lost_hosts.add(host)
            later = [at_ms + 1 for at_ms in (stale_ms, lost_ms) if at_ms >= now_ms]
            if later:
                view.wake(later[0])

    def _known(self, host: str) -> None:
        if host not in self._view.cluster.hosts:
            raise CoreError(f"host {host} is not known")

    def _open_or_close(self, host: str) -> None:
        view = self._view
        closed = host in view.stale_hosts or host in view.drained_hosts or host in view.maintained_hosts
        view.cluster.set_available(host, available=not closed)

    # -- maintenance -------------------------------------------------------------------------------------------------

    def calendar_changed(self) -> None:
        """Other maintenance windows are agreed: the next cycle looks at them."""
        self.calendar_ms = 0

    def follow_calendar(self, now_ms: int) -> None:
        """Close and open hosts whose windows begin and end."""
        view = self._view
        before, calendar = view.maintained_hosts, view.calendar
        view.maintained_hosts = {host for host in view.cluster.hosts if calendar.drained(host, now_ms) is not None}
        for host in sorted(before ^ view.maintained_hosts):
            if host in view.cluster.hosts:
                self._open_or_close(host)
        self.calendar_ms = calendar.next_drain_ms(now_ms)
        if self.calendar_ms < NEVER_MS:
            view.wake(self.calendar_ms)
