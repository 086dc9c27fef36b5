"""The journal: a checkpoint, then every event and every cycle with its decisions, one JSON object a line.

    {"journal":1,"policy":"...TOML...","checkpoint":{...}}
    {"event":"SessionSubmitted","at_ms":0,...}
    {"cycle":0,"decisions":[...]}

A head may follow later too: the core was loaded anew, by another policy for example, and goes on from that checkpoint.

`replay` runs it through the same core and compares every cycle's line byte for byte. Reading trusts nothing: a line
that is not what it should be is a `JournalError` with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from policies.catalogue import make_policy
from policies.params import PolicyError, load
from scheduler import checkpoint
from scheduler.core import Core, Step
from scheduler.errors import BadInput
from scheduler.events import Event
from scheduler.lifecycle import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policies.model import Allocation, Decision
    from policies.params import Params

VERSION = 1
LINE_LIMIT = 64 * 1024 * 1024
"""Characters of one line, above which it is refused unread: a checkpoint of 100,000 sessions takes about 30 MB."""

EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "str | None": (str, type(None)),
    "bool": (bool,),
}


class JournalError(BadInput):
    """A journal that cannot be read or replayed: where, and why."""


class Difference(NamedTuple):
    """The first cycle whose decisions are not the recorded ones."""

    line: int
    recorded: str
    replayed: str


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def decision_dict(decision: Decision) -> dict[str, Any]:
    """A decision as JSON: what it did, to whom, and its reason; members that do not apply are left out."""
    reason, allocation = decision.reason, decision.allocation
    entry: dict[str, Any] = {
        "at_ms": decision.at_ms,
        "action": decision.action,
        "session": decision.session,
        "user": decision.user,
        "rule": reason.rule,
    }
    if reason.value is not None:
        entry["value"] = reason.value
    if reason.threshold is not None:
        entry["threshold"] = reason.threshold
    if reason.unit:
        entry["unit"] = reason.unit
    if reason.until_ms is not None:
        entry["until_ms"] = reason.until_ms
    entry |= {name: text for name, text in (("change", reason.change), ("text", reason.text)) if text}
    if reason.numbers:
        entry["numbers"] = dict(reason.numbers)
    if decision.ladder is not None:
        entry["ladder"] = decision.ladder
    if allocation is not None:
        entry["gpus"] = _gpus(allocation)
    if decision.granted_m is not None:
        entry["granted"] = decision.granted_m / 1000
    if decision.other is not None:
        entry["for"] = decision.other
    if decision.set_aside:
        kept = [{"gpus": _gpus(part), "thousandths": part.fraction_m} for part in decision.set_aside]
        entry["set_aside"] = kept
    return entry


def _gpus(allocation: Allocation) -> list[list[Any]]:
    return [[host, list(gpus)] for host, gpus in allocation.parts]


def decision_line(decision: Decision) -> str:
    """A decision as one line of `decisions.jsonl`, without the newline."""
    return _json(decision_dict(decision))


def cycle_line(step: Step, at_ms: int) -> str:
    """A cycle and what it decided."""
    return _json({"cycle": at_ms, "decisions": [decision_dict(decision) for decision in step.decisions]})


def event_line(event: Event) -> str:
    """An event as a line of the journal."""
    return _json({"event": type(event).__name__, **event._asdict()})


def head_line(core: Core) -> str:
    """The first line: the policy and the state from which everything below follows."""
    return _json({"journal": VERSION, "policy": core.params.to_toml(), "checkpoint": checkpoint.dump(core)})


def read_event(entry: dict[str, Any]) -> Event:
    """An event from its JSON object; ValueError says what is wrong with it."""
    kind = EVENTS.get(str(entry.get("event")))
    if kind is None:
        raise ValueError(f"event {entry.get('event')!r} is none of {', '.join(EVENTS)}")
    values = {name: value for name, value in entry.items() if name != "event"}
    annotations = kind.__annotations__
    for name, value in values.items():
        if name not in annotations:
            raise ValueError(f"{kind.__name__} has no member {name!r}")
        wanted = str(getattr(annotations[name], "__forward_arg__", annotations[name]))
        kinds = _KINDS[wanted]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{kind.__name__}.{name} = {value!r} is not {wanted}")
    try:
        event: Event = kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
    return event


Look = Callable[[Core, int, dict[str, Any]], None]
"""Told of each cycle before it: the core, which it must leave as it is, the instant, and the recorded line's object."""


def replay(
    lines: Iterable[str], file: str, params: Params | None = None, look: Look | None = None
) -> Iterator[Difference | int]:
    """Run a journal through the core; yields each cycle's line number, and the first difference as the last thing.

    Args:
        lines: of the journal.
        file: how messages name it.
        params: decide by another policy than the recorded one; None = the recorded one.
        look: see there.

    Raises:
        JournalError: a line is broken, or an event does not fit the state.
    """
    core: Core | None = None
    for number, line in enumerate(lines, start=1):
        entry = _entry(line, file, number)
        try:
            if core is None or "journal" in entry:
                core = begin(entry, params)
            elif "event" in entry:
                core.apply(read_event(entry))
            else:
                now_ms = entry.get("cycle")
                if not isinstance(now_ms, int) or isinstance(now_ms, bool):
                    raise ValueError(f"cycle {now_ms!r} is not a time in ms")
                if look is not None:
                    look(core, now_ms, entry)
                replayed = cycle_line(core.cycle(now_ms), now_ms)
                if replayed != line.rstrip("\n"):
                    yield Difference(number, line.rstrip("\n"), replayed)
                    return
                yield number
        except (ValueError, KeyError, TypeError, IllegalMove, PolicyError) as error:
            raise JournalError(f"{file}:{number}: {error}", "the journal is damaged, or of another version") from error
    if core is None:
        raise JournalError(f"{file}: empty, no checkpoint")


def _entry(line: str, file: str, number: int) -> dict[str, Any]:
    if len(line) > LINE_LIMIT:
        raise JournalError(f"{file}:{number}: {len(line)} characters, at most {LINE_LIMIT} are read")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"{file}:{number}: not JSON: {error}", "the line may have been cut off") from None
    if not isinstance(entry, dict):
        raise JournalError(f"{file}:{number}: a JSON object is expected, not {type(entry).__name__}")
    return entry


def begin(entry: dict[str, Any], params: Params | None) -> Core:
    """A core from a head line's object, by its own policy or another; ValueError, KeyError or TypeError if damaged."""
    version = entry.get("journal")
    if version != VERSION or type(version) is not int:
        raise ValueError(f"journal version {version!r}, this program reads {VERSION}")
    if params is None:
        params = load(str(entry["policy"]), "the journal's policy")
    return checkpoint.restore(entry["checkpoint"], make_policy(params))
