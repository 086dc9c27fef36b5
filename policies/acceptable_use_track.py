"""Acceptable use in a running session: which step of a rule is due, and what it does.

Beside the load ladder and independent of credit and contention. A session is looked at when a rule is seen in it or no
longer is, when its user is allowed something, and when a step or a grace is due; never by polling. What was done so far
is in the session's `Sighting`s, which `carried_out` keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.acceptable_use import ACTIONS, NEVER_MS, PREFIX, Rule
from policies.give_way import is_heavy
from policies.model import WHOLE_M, Action, Decision, Ladder, Reason, Session, Sighting, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.acceptable_use import RuleStep
    from policies.order import FairSnapshot
    from policies.params import Params

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
SMALLEST_QUARTERS = 1
"""A throttle grants the smallest step at once: 25 % of what was asked for."""


class AcceptableUse:
    """The rules of a policy, applied to sessions."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.rules: dict[str, Rule] = {rule.id: rule for rule in params.rules}
        self.on = bool(self.rules)
        self.grace_ms = params.ladder.grace_ms

    def follow(self, view: FairSnapshot, session: Session) -> Iterator[Decision]:
        """Whatever is due in one session."""
        for name, sighting in list((session.uses or {}).items()):
            rule = self.rules.get(name)
            if session.state not in (State.RUNNING, State.STARTING):
                return
            if rule is not None and rule.applies(session.user.tier):
                yield from _Look(self, view, session, rule, sighting).decide()
        if session.state in (State.RUNNING, State.STARTING):
            yield from self.curb(view, session)

    def curb(self, view: FairSnapshot, session: Session) -> Iterator[Decision]:
        """A throttle follows from what is seen now: given back when no rule asks for it, taken when one does again."""
        asking = [look for look in self._looks(view, session) if look.throttles()]
        if session.curbed_by and not asking:
            name = session.curbed_by
            looks = [look for look in self._looks(view, session) if look.name == name]
            reason = looks[0].reason("use-over") if looks else Reason(name, change="use-over")
            yield _given_back(view, session, reason)
        elif asking and not session.curbed_by and session.shape.fraction_m < WHOLE_M and view.fresh(session):
            yield asking[0].throttle(())

    def _looks(self, view: FairSnapshot, session: Session) -> Iterator[_Look]:
        for name, sighting in (session.uses or {}).items():
            rule = self.rules.get(name)
            if rule is not None and rule.applies(session.user.tier):
                yield _Look(self, view, session, rule, sighting)

    def signals(self, session: Session, now_ms: int) -> set[str]:
        """The different things that the rules seen in a session now go by; trials and allowances do not count."""
        return {
            rule.signal
            for name, sighting in (session.uses or {}).items()
            if sighting.live and (rule := self.rules.get(name)) is not None
            if rule.applies(session.user.tier) and not rule.shadow and allowed_until_ms(rule, session, now_ms) is None
        }


def allowed_until_ms(rule: Rule, session: Session, now_ms: int) -> int | None:
    """Until when the rule only observes the session's user; `NEVER_MS` = for good, None = it does not."""
    user = session.user
    known = [rule.allowed_until_ms(user.name, user.group.name, now_ms) or 0]
    if user.allowances is not None:
        known += [user.allowances.get(name, 0) for name in ("", rule.id)]
    until = max(known)
    return until if until > now_ms else None


def due_ms(rule: Rule, sighting: Sighting) -> int | None:
    """When the next step is due; None = all were taken.

    Delays count from the first sighting. Whoever is told late still has the time that lies between two steps.
    """
    if sighting.step >= len(rule.steps):
        return None
    after_ms = rule.steps[sighting.step].after_ms
    first_ms = sighting.since_ms + after_ms
    if sighting.step == 0:
        return first_ms
    return max(first_ms, sighting.stepped_ms + after_ms - rule.steps[sighting.step - 1].after_ms)


def carried_out(session: Session, decision: Decision) -> None:
    """Note in the session what a decision of these rules did; of other rules, nothing."""
    reason = decision.reason
    sighting = (session.uses or {}).get(reason.rule.removeprefix(PREFIX))
    if reason.rule.startswith(PREFIX) and decision.action is Action.RECOVER:
        session.curbed_by = ""
    if sighting is None or not reason.rule.startswith(PREFIX):
        return
    step = dict(reason.numbers).get("step")
    if step is not None:
        sighting.step, sighting.stepped_ms = int(step), decision.at_ms
    if decision.action is Action.THROTTLE:
        session.curbed_by = reason.rule
    if reason.change == "use-allowed":
        sighting.noted = True
    elif reason.change == "use-ends" and reason.until_ms is not None:
        sighting.ends_ms = reason.until_ms
    elif reason.change in ("use-stays", "use-waits"):
        sighting.ends_ms = -1


class _Look:
    """One look at one rule that was seen in one session."""

    def __init__(
        self, use: AcceptableUse, view: FairSnapshot, session: Session, rule: Rule, sighting: Sighting
    ) -> None:
        self.use, self.view, self.session, self.rule, self.sighting = use, view, session, rule, sighting
        self.now = view.clock.now_ms
        self.name = PREFIX + rule.id

    def decide(self) -> Iterator[Decision]:
        """First what was begun, then the steps that are due."""
        until = allowed_until_ms(self.rule, self.session, self.now)
        over = not self.sighting.live or until is not None
        if self.sighting.ends_ms >= 0:
            yield from self.finish(over=over)
        if self._gone():
            return
        if until is not None and self.sighting.live:
            yield from self.let_alone(until)
        elif not over:
            yield from self.take_steps()

    def let_alone(self, until: int) -> Iterator[Decision]:
        """Its user is on an allow-list: on record once, nothing else until that is over."""
        if not self.sighting.noted:
            reason = self.reason("use-allowed", until_ms=None if until == NEVER_MS else until)
            yield self.decision(Action.OBSERVE, reason)
        if until != NEVER_MS:
            self.again(until)

    # -- steps ---------------------------------------------------------------------------------------------------

    def take_steps(self) -> Iterator[Decision]:
        """Every step that is due; then an eviction for which a second rule is seen by now."""
        while (due := due_ms(self.rule, self.sighting)) is not None:
            step = self.rule.steps[self.sighting.step]
            if due > self.now:
                self.again(due)
                break
            if self.waits_for_telemetry(step.action):
                return
            yield self.step(step)
            if self._gone():
                return
        if self.sighting.ends_ms < 0 and self.waits_for_a_signal() and not self.waits_for_telemetry("evict"):
            yield self.begin_to_end(())

    def waits_for_telemetry(self, action: str) -> bool:
        """Old telemetry escalates nothing: looked at again with each cycle until it is fresh."""
        if action == "observe" or self.rule.shadow or self.view.fresh(self.session):
            return False
        self.view.overdue[self.session.id] = self.session
        return True

    def step(self, step: RuleStep) -> Decision:
        """What the step that is due does."""
        taken = (("step", float(self.sighting.step + 1)),)
        if self.rule.shadow or step.action == "observe":
            would = () if step.action == "observe" else (("would", float(ACTIONS.index(step.action))),)
            return self.observe("use-shadow" if would else "use-observed", (*taken, *would))
        if step.action == "warn":
            return self.warn(taken)
        if step.action == "throttle":
            return self.throttle(taken)
        if step.action == "restrict":
            until = self.now + (step.for_ms or 0)
            numbers = (*taken, ("for_h", (step.for_ms or 0) / HOUR_MS))
            return self.decision(Action.RESTRICT, self.reason("appeal", numbers, until))
        if step.confirm == "person":
            return self.observe("use-person", taken)
        if self.two_signals():
            return self.begin_to_end(taken)
        return self.observe("use-waits", taken)

    def warn(self, taken: tuple[tuple[str, float], ...]) -> Decision:
        """Tell its user what was seen, what comes next, and when."""
        this, later = self.rule.steps[self.sighting.step], self.rule.steps[self.sighting.step + 1 :]
        following = next((step for step in later if step.action not in ("observe", "warn")), None)
        if following is None:
            return self.decision(Action.NOTICE, self.reason("appeal", taken))
        at = max(self.sighting.since_ms + following.after_ms, self.now + following.after_ms - this.after_ms)
        if at <= self.now:
            return self.decision(Action.NOTICE, self.reason("appeal", taken))
        coming = ("next", float(ACTIONS.index(following.action)))
        numbers = (*taken, coming, ("for_h", (following.for_ms or 0) / HOUR_MS))
        return self.decision(Action.NOTICE, self.reason("use-stop", numbers, at))

    def throttle(self, taken: tuple[tuple[str, float], ...]) -> Decision:
        """The smallest part of a shared GPU; whole GPUs, and parts as small as that, stay as they are."""
        if self.session.shape.fraction_m == WHOLE_M:
            return self.observe("use-whole-gpu", taken)
        smallest = -(-self.session.shape.fraction_m * SMALLEST_QUARTERS // 4)
        granted = min(smallest, self.session.granted_m)
        return self.decision(Action.THROTTLE, self.reason("appeal", taken))._replace(granted_m=granted)

    def throttles(self) -> bool:
        """Its throttle was taken and holds."""
        if (
            not self.sighting.live
            or self.rule.shadow
            or allowed_until_ms(self.rule, self.session, self.now) is not None
        ):
            return False
        return any(step.action == "throttle" for step in self.rule.steps[: self.sighting.step])

    # -- the end of a session ------------------------------------------------------------------------------------

    def two_signals(self) -> bool:
        """Two rules that go by different things, or one and sustained load."""
        if len(self.use.signals(self.session, self.now)) > 1:
            return True
        return is_heavy(self.session, self.now, self.use.params)

    def waits_for_a_signal(self) -> bool:
        """An eviction found one signal only when it was due, and a second rule is seen now."""
        asked = any(step.confirm == "second-signal" for step in self.rule.steps[: self.sighting.step])
        return asked and not self.rule.shadow and len(self.use.signals(self.session, self.now)) > 1

    def begin_to_end(self, taken: tuple[tuple[str, float], ...]) -> Decision:
        """Say when the session ends; without any grace it ends at once."""
        if self.use.grace_ms <= 0:
            return self.decision(Action.EVICT, self.reason("appeal", taken))
        until = self.now + self.use.grace_ms
        self.again(until)
        return self.decision(Action.NOTICE, self.reason("use-ends", taken, until))

    def finish(self, *, over: bool) -> Iterator[Decision]:
        """Grace: withdrawn where the reason for it is gone, and the end when it is over."""
        if over:
            yield self.decision(Action.NOTICE, self.reason("use-stays"))
        elif self.sighting.ends_ms > self.now:
            self.again(self.sighting.ends_ms)
        elif self.waits_for_telemetry("evict"):
            return
        elif self.two_signals():
            yield self.decision(Action.EVICT, self.reason("appeal"))
        else:
            yield self.decision(Action.NOTICE, self.reason("use-waits"))

    # -- words and instants --------------------------------------------------------------------------------------

    def _gone(self) -> bool:
        return self.session.state not in (State.RUNNING, State.STARTING)

    def again(self, at_ms: int) -> None:
        """Look once more then."""
        self.view.look(self.session, at_ms)
        self.view.wake(at_ms)

    def observe(self, change: str, numbers: tuple[tuple[str, float], ...]) -> Decision:
        """On record, and nobody is told."""
        return self.decision(Action.OBSERVE, self.reason(change, numbers))

    def reason(self, change: str, numbers: tuple[tuple[str, float], ...] = (), until_ms: int | None = None) -> Reason:
        """Minutes since it was first seen, against the delay of the step that was taken last or is taken now."""
        taken = int(dict(numbers).get("step", self.sighting.step))
        threshold = self.rule.steps[taken - 1].after_ms / MINUTE_MS if taken else 0.0
        value = (self.now - self.sighting.since_ms) / MINUTE_MS
        text = f"{self.rule.title}. {self.rule.message}"
        return Reason(self.name, value, threshold, "min", until_ms, change, numbers, text)

    def decision(self, action: Action, reason: Reason) -> Decision:
        """A decision about the session that leaves the ladder alone."""
        return Decision(self.now, action, self.session.id, self.session.user.name, reason)


def _given_back(view: FairSnapshot, session: Session, reason: Reason) -> Decision:
    """A rule's throttle is over: as much as the GPU has room for; what the load ladder took is the ladder's to give."""
    asked_m, granted = session.shape.fraction_m, session.granted_m
    if session.allocation is not None and session.ladder not in (Ladder.THROTTLE, Ladder.GRACE):
        parts = [-(-asked_m * quarters // 4) for quarters in (4, 3, 2)]
        fits = (m for m in parts if m > granted and view.cluster.may_grow(session.allocation, m))
        granted = next(fits, granted)
    decision = Decision(view.clock.now_ms, Action.RECOVER, session.id, session.user.name, reason)
    return decision._replace(granted_m=granted)
