"""What another policy would decide: asked at single cycles of a recorded past, or of what is being recorded.

The question at each of them is: had this policy been activated just before this cycle, what would the cycle decide? The
state is the recorded one, taken over exactly as an activation takes it (`scheduler.activation.successor`), so that two
answers never build on each other: the shadow does not say what would have become of its own decisions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.catalogue import make_policy
from policies.explain import sentence
from scheduler import checkpoint
from scheduler.activation import successor
from scheduler.why_stored import decision_of
from scheduler.why_words import utc

if TYPE_CHECKING:
    from policies.model import Decision
    from policies.params import Params
    from scheduler.core import Core


class Key(NamedTuple):
    """What differs: an action on a session that the shadow takes (`would`) or does not."""

    session: str
    action: str
    would: bool


@dataclass(slots=True)
class Departure:
    """One difference, where it first showed.

    Attributes:
        at_ms: of the cycle.
        user: of the session.
        decision: the shadow's where it `would`, otherwise the recorded one.
        instead: other actions on this session that were recorded in this cycle.
        later_ms: when the recorded policy did the same later; None = it did not.
    """

    at_ms: int
    key: Key
    user: str
    decision: Decision
    instead: tuple[str, ...] = ()
    later_ms: int | None = None

    @property
    def text(self) -> str:
        """The decision's reason in numbers."""
        return sentence(self.decision, utc).partition(": ")[2]


class Shadow:
    """Compares; `look` is for `scheduler.journal.replay`, which keeps the core.

    Args:
        params: the policy that is asked.
        every_ms: recorded time between two looks, at least; 0 = every cycle.
        since_ms: cycles before it are not looked at.

    Attributes:
        departures: every difference, once for as long as it lasts.
        cycles, looks: recorded, and looked at, since `since_ms`.
        decided, compared: recorded decisions in all of these cycles, and in those looked at.
        first_ms, last_ms: of these cycles.
        active: name of the recorded policy, the last one seen.
    """

    def __init__(self, params: Params, every_ms: int, since_ms: int = 0) -> None:
        self._params = params
        self._text = params.to_toml()
        self._every_ms = every_ms
        self._since_ms = since_ms
        self._looked_ms: int | None = None
        self._lasting: frozenset[Key] = frozenset()
        self._open: dict[Key, list[Departure]] = {}
        self._same: tuple[Params | None, bool] = (None, False)
        self.departures: list[Departure] = []
        self.cycles = self.looks = self.decided = self.compared = 0
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self.active = ""

    def look(self, core: Core, now_ms: int, entry: dict[str, Any]) -> None:
        """A cycle is about to be run again; `entry` is its recorded line."""
        if now_ms < self._since_ms:
            return
        recorded = entry["decisions"]
        self.cycles += 1
        self.decided += len(recorded)
        self.first_ms = now_ms if self.first_ms is None else self.first_ms
        self.last_ms = now_ms
        self.active = core.params.name or core.params.policy
        self._note_later(now_ms, recorded)
        if self._looked_ms is None or now_ms >= self._looked_ms + self._every_ms:
            self._looked_ms = now_ms
            self.looks += 1
            self.compared += len(recorded)
            self._compare(core, now_ms, recorded)

    def counts(self) -> list[dict[str, Any]]:
        """By action: sessions that it would be taken on, or not, and on how many of those it was taken later."""
        sessions: dict[tuple[bool, str], dict[str, bool]] = {}
        for found in self.departures:
            of = sessions.setdefault((found.key.would, found.key.action), {})
            of[found.key.session] = of.get(found.key.session, False) or found.later_ms is not None
        times = Counter((found.key.would, found.key.action) for found in self.departures)
        return [
            {"would": would, "action": action, "sessions": len(of), "later": sum(of.values())}
            | {"times": times[would, action]}
            for (would, action), of in sorted(sessions.items(), key=lambda entry: (not entry[0][0], entry[0][1]))
        ]

    def _note_later(self, now_ms: int, recorded: list[dict[str, Any]]) -> None:
        for entry in recorded:
            for found in self._open.pop(Key(entry["session"], entry["action"], would=True), ()):
                found.later_ms = now_ms

    def _compare(self, core: Core, now_ms: int, recorded: list[dict[str, Any]]) -> None:
        decided = self._other(core).cycle(now_ms).decisions
        ours = {Key(one.session, one.action.value, would=True): one for one in decided}
        theirs = {Key(one["session"], one["action"], would=False): one for one in recorded}
        instead: dict[str, tuple[str, ...]] = {}
        for one in recorded:
            instead[one["session"]] = (*instead.get(one["session"], ()), one["action"])
        lasting = []
        for key, decision in ours.items():
            if key._replace(would=False) not in theirs:
                lasting.append(key)
                self._add(Departure(now_ms, key, decision.user, decision, instead.get(key.session, ())))
        for key, entry in theirs.items():
            if key._replace(would=True) not in ours:
                lasting.append(key)
                self._add(Departure(now_ms, key, entry["user"], decision_of(entry)))
        self._lasting = frozenset(lasting)

    def _add(self, found: Departure) -> None:
        if found.key in self._lasting:
            return
        self.departures.append(found)
        if found.key.would:
            self._open.setdefault(found.key, []).append(found)

    def _other(self, core: Core) -> Core:
        """The state under the shadow's policy; one that is in force already is activated by nobody."""
        if self._same[0] is not core.params:
            self._same = core.params, core.params.to_toml() == self._text
        if self._same[1]:
            return checkpoint.restore(checkpoint.dump(core), make_policy(self._params))
        return successor(core, self._params)
