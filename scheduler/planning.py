"""Requests about the calendar become events: all entries of a request are agreed, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from policies.calendar import RESERVATION, Calendar, Entry
from policies.model import WHOLE_M
from policies.order import FairQueue
from scheduler import agenda
from scheduler import events as ev
from scheduler.calendar_json import entry_json
from scheduler.errors import BadInput, FairTierError, NotFound, Refused
from scheduler.requests import LAST_MS
from scheduler.roster import record
from scheduler.why_words import utc

if TYPE_CHECKING:
    from scheduler.core import Core
    from scheduler.moment import Moment
    from scheduler.requests import Plan, Planned, Unplan

Body = Callable[[], dict[str, Any]]
SHOW = "fairtier calendar list shows what is agreed"


class Planning:
    """Takes in `Plan` and `Unplan`.

    Args:
        core: whose calendar it is.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def plan(self, moment: Moment, asked: Plan) -> Body:
        """Agree on entries; every problem of every entry is told at once."""
        trial, problems = Calendar(), []
        trial.entries = agenda.to_come(self._core.view.calendar, moment.now_ms)
        entries = [entry_of(planned, moment.now_ms) for planned in asked.entries]
        for entry in entries:
            problem = self._problem(entry, trial, moment.now_ms)
            if problem is None:
                trial.entries[entry.id] = entry
            else:
                problems.append(problem)
        if problems:
            raise _together(problems)
        if not asked.check:
            for entry in entries:
                moment.apply(_added(moment.now_ms, entry))
                moment.batch.decisions.append(record(_act(moment, "plan", entry, asked.reason)))
        return lambda: {"entries": [entry_json(entry, self._core.params, moment.now_ms) for entry in entries]}

    def unplan(self, moment: Moment, asked: Unplan) -> Body:
        """An entry is agreed no longer; one that is over can be removed no more."""
        entry = agenda.to_come(self._core.view.calendar, moment.now_ms).get(asked.entry)
        if entry is None:
            raise NotFound(f"calendar entry {asked.entry} does not exist, or is over", SHOW)
        moment.apply(ev.CalendarEntryRemoved(moment.now_ms, asked.entry))
        moment.batch.decisions.append(record(_act(moment, "unplan", entry, asked.reason)))
        return lambda: entry_json(entry, self._core.params, moment.now_ms)

    def _problem(self, entry: Entry, trial: Calendar, now_ms: int) -> FairTierError | None:
        """Why an entry cannot be agreed beside those of `trial`."""
        name = f"{entry.kind} {entry.id}"
        if not entry.from_ms < entry.until_ms <= LAST_MS:
            return BadInput(f"{name} ends at {utc(entry.until_ms)}, not after it begins at {utc(entry.from_ms)}")
        if entry.until_ms <= now_ms:
            return BadInput(f"{name} ends at {utc(entry.until_ms)}: it is {utc(now_ms)} now", "give a time to come")
        if entry.kind == RESERVATION and not isinstance(self._core.queue, FairQueue):
            return Refused(
                f"{name}: the policy {self._core.params.policy} knows no reservations",
                "restart with a fair-share policy",
            )
        if entry.kind == RESERVATION and entry.group not in self._core.ledger.groups:
            return NotFound(
                f"{name}: nobody is of group {entry.group}",
                f"fairtier user list shows the groups; fairtier user set NAME --group {entry.group} makes it",
            )
        missing = agenda.unknown_hosts(entry.hosts, self._core.cluster)
        if missing:
            return NotFound(f"{name}: host {', '.join(missing)} is not known", "fairtier host list shows the hosts")
        found = agenda.problem(entry, trial, self._core.cluster, now_ms)
        return None if found is None else Refused(f"{name}: {found}", SHOW)


def entry_of(planned: Planned, now_ms: int) -> Entry:
    """The entry that is asked for, with its times as instants."""
    from_ms = planned.from_ms if planned.from_ms is not None else now_ms + (planned.from_s or 0) * 1000
    until_ms = planned.until_ms if planned.until_ms is not None else from_ms + (planned.until_s or 0) * 1000
    return Entry(
        planned.entry, planned.kind, from_ms, until_ms, (planned.gpus or 0) * WHOLE_M, planned.group or "",
        tuple(dict.fromkeys(planned.hosts)), planned.drain_s * 1000, planned.text,
    )  # fmt: skip


def _added(now_ms: int, entry: Entry) -> ev.CalendarEntryAdded:
    hosts = ",".join(entry.hosts)
    return ev.CalendarEntryAdded(
        now_ms, entry.id, entry.kind, entry.from_ms, entry.until_ms, entry.gpus_m, entry.group, hosts, entry.drain_ms,
        entry.text,
    )  # fmt: skip


def _act(moment: Moment, op: str, entry: Entry, reason: str) -> dict[str, Any]:
    """The act as it stands in the record: about nobody, with the entry as it was."""
    return {
        "at_ms": moment.now_ms,
        "action": op,
        "session": None,
        "user": "",
        "rule": f"admin.{op}",
        "by": moment.by,
        "text": reason or f"{entry.kind} {entry.id}",
        "until_ms": entry.until_ms,
        "calendar": list(entry),
    }


def _together(problems: list[FairTierError]) -> FairTierError:
    """One error for all: of the sort that asking again helps least, with the hints there are."""
    worst = next(kind for kind in (BadInput, NotFound, Refused) if any(isinstance(p, kind) for p in problems))
    hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
    return worst("; ".join(problem.message for problem in problems), "; ".join(hints) or None)
