"""Entries of the calendar as JSON, and what is said of those that concern people now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.calendar import RESERVATION, Entry
from policies.model import HOUR_MS, WHOLE_M
from policies.rights import kept_ahead_ms
from scheduler.why_words import count, utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policies.params import Params

Json = dict[str, Any]
NEAR_MS = 24 * HOUR_MS
"""So long before it begins an entry is announced."""


def entry_json(entry: Entry, params: Params, now_ms: int) -> Json:
    """An entry: what, when, for whom or where, and how it stands.

    `state`: `planned`; `near` (its hosts get nothing new, or its GPUs are kept free, already); `on`; `over`.
    """
    reserves = entry.kind == RESERVATION
    return {
        "entry": entry.id,
        "kind": entry.kind,
        "state": state_of(entry, params, now_ms),
        "from": utc(entry.from_ms),
        "until": utc(entry.until_ms),
        "gpus": entry.gpus_m / WHOLE_M if reserves else None,
        "group": entry.group if reserves else None,
        "hosts": None if reserves else list(entry.hosts),
        "drain_s": None if reserves else entry.drain_ms / 1000,
        "text": entry.text or None,
    }


def state_of(entry: Entry, params: Params, now_ms: int) -> str:
    """How an entry stands; see `entry_json`."""
    ahead_ms = kept_ahead_ms(params) if entry.kind == RESERVATION else entry.drain_ms
    if entry.until_ms <= now_ms:
        return "over"
    if entry.from_ms <= now_ms:
        return "on"
    return "near" if entry.from_ms - ahead_ms <= now_ms else "planned"


def past_entries(acts: Iterable[Json], live: Mapping[str, Entry], params: Params, now_ms: int) -> list[Json]:
    """Entries that are over or were removed, from the record of who planned what."""
    known: dict[str, Entry] = {}
    found: list[Json] = []
    for act in acts:
        entry = _read(act.get("calendar"))
        if entry is not None and act["action"] == "plan":
            before = known.pop(entry.id, None)
            found += [] if before is None else [entry_json(before, params, now_ms)]
            known[entry.id] = entry
        elif entry is not None:
            known.pop(entry.id, None)
            found.append(entry_json(entry, params, now_ms) | {"state": "removed"})
    return found + [entry_json(entry, params, now_ms) for entry in known.values() if live.get(entry.id) != entry]


def _read(values: object) -> Entry | None:
    """An entry as it stands in the record."""
    if not isinstance(values, list) or len(values) != len(Entry._fields):
        return None
    entry = Entry(*values)
    return entry._replace(hosts=tuple(entry.hosts))


def announcements(entries: Iterable[Entry], now_ms: int) -> list[Json]:
    """What people should know today: entries that are on, or begin within a day, earliest first."""
    near = [entry for entry in entries if entry.from_ms - NEAR_MS <= now_ms < entry.until_ms]
    return [
        {
            "entry": entry.id,
            "kind": entry.kind,
            "from": utc(entry.from_ms),
            "until": utc(entry.until_ms),
            "text": f"{what(entry)}{f': {entry.text}' if entry.text else ''}",
        }
        for entry in sorted(near, key=lambda entry: (entry.from_ms, entry.id))
    ]


def what(entry: Entry) -> str:
    """'8 GPUs are kept for group x', 'maintenance of gpu-01, gpu-02'."""
    if entry.kind == RESERVATION:
        gpus = entry.gpus_m / WHOLE_M
        return f"{count(gpus, 'GPU')} {'is' if gpus == 1 else 'are'} kept for group {entry.group}"
    return f"maintenance of {', '.join(entry.hosts) or 'all hosts'}"
