"""Hosts and their GPUs, from rows and the core's view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import WHOLE_M
from scheduler.api.rows import Json, utc

if TYPE_CHECKING:
    from scheduler.core import Core
    from scheduler.ports import Row

STATES = ("up", "maintenance", "drained", "stale", "lost")


def host_state(core: Core, host: str) -> str:
    """One of `STATES`: the worst that is true of it."""
    view = core.view
    if host in view.lost_hosts:
        return "lost"
    if host in view.stale_hosts:
        return "stale"
    if host in view.drained_hosts:
        return "drained"
    return "maintenance" if host in view.maintained_hosts else "up"


def host_counts(core: Core) -> dict[str, int]:
    """Number of hosts in each state."""
    counts = dict.fromkeys(STATES, 0)
    for host in core.cluster.hosts:
        counts[host_state(core, host)] += 1
    return counts


def host_json(core: Core, row: Row, now_ms: int) -> Json:
    """A host: what it has, what is free, and when it last reported."""
    name = row["host"]
    on_it = [session.id for session in core.view.holders.values() if _is_on(session.allocation, name)]
    known, window = core.cluster.hosts.get(name), core.view.calendar.drained(name, now_ms)
    return {
        "host": name,
        "state": host_state(core, name),
        "maintenance_until": None if window is None else utc(window.until_ms),
        "gpus": row["gpus"],
        "free_gpus": 0 if known is None else len(known.free),
        "model": row["model"],
        "memory_gib": None if row["memory_mib"] is None else row["memory_mib"] / 1024,
        "sessions": on_it,
        "joined_at": utc(row["joined_ms"]),
        "reported_at": utc(row["reported_ms"]),
        "silent_s": None if row["reported_ms"] is None else max(0, now_ms - row["reported_ms"]) / 1000,
    }


def gpus_json(core: Core, host: str) -> list[Json]:
    """Each GPU of a host: the granted fraction and the sessions on it, with their load."""
    known = core.cluster.hosts.get(host)
    devices: list[Json] = [
        {"gpu": gpu, "granted": 0.0, "utilisation": None, "sessions": []}
        for gpu in range(known.spec.gpus if known else 0)
    ]
    for session in core.view.holders.values():
        for name, gpus in session.allocation.parts if session.allocation else ():
            for device in (devices[gpu] for gpu in gpus if name == host):
                device["sessions"].append(session.id)
                device["granted"] = round(device["granted"] + session.granted_m / WHOLE_M, 3)
                if session.load is not None:
                    busy = session.load * session.granted_m / WHOLE_M
                    device["utilisation"] = round((device["utilisation"] or 0.0) + busy, 4)
    return devices


def _is_on(allocation: object, host: str) -> bool:
    return host in getattr(allocation, "hosts", ())
