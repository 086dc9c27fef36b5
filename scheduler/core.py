"""The core: events in, decisions out. The same in production, forecast, simulation and replay.

`Core.apply(event)` updates state and indexes and decides nothing. `Core.cycle(now_ms)` is the only thing that decides:
it asks the policy for one decision after another and carries each out before it asks for the next. No clock, no random
numbers, no environment, no I/O: `now` is data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.acceptable_use_track import carried_out
from policies.limits import FOR_EVER_MS
from policies.load import LoadWindow
from policies.model import WHOLE_M, Action, Decision, Kind, Ladder, Outcome, Session, Shape, State, User
from policies.placement import Cluster
from policies.snapshot import Snapshot, WaitingQueue
from policies.usage import NEVER_MS, DecayClock, charge_rate_n, committed_n
from scheduler import events as ev
from scheduler import sightings
from scheduler.agenda import LAST_MS, Agenda
from scheduler.audit import audit
from scheduler.claims import Claims
from scheduler.errors import CoreError
from scheduler.hosts import Hosts
from scheduler.ledger import Ledger
from scheduler.lifecycle import Trigger, after
from scheduler.memberships import Membership, Memberships
from scheduler.metering import Meter
from scheduler.wakes import Wakes

if TYPE_CHECKING:
    from policies.snapshot import Policy

STIRRING = frozenset({Action.THROTTLE, Action.GRACE, Action.EVICT, Action.WITHDRAW, Action.RECOVER})
"""Decisions that change what the earlier rules of the same cycle looked at: the next cycle is due at once."""

RUNNER_ACTIONS = frozenset(Action) - {Action.REJECT, Action.LOSE, Action.RESERVE, Action.OBSERVE}


__all__ = ["Core", "CoreError", "Step"]


REMEMBERED = 4096
"""Charges that are remembered."""

ENDS = (Outcome.COMPLETED, Outcome.FAILED, Outcome.EVICTED, Outcome.CANCELLED)
"""What a host can say of a session that ended."""

OWN_ENDS = (Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED)
"""Of those, the ones that come by themselves."""

KIND_OF = {"ladder.rotate": Kind.ROTATION, "reclaim.grace": Kind.RECLAIM, "reclaim.reserve": Kind.RECLAIM}
"""Rules of the decisions that put a session into grace, other than the ladder's own."""

COOLING = frozenset({"ladder.evict", "ladder.evict-rotate", "ladder.evict-headroom"})
"""Rules of the evictions after which a user makes nobody give way for some time."""

SIZES = "a session gets one or more whole GPUs, or 1 to 999 thousandths of one, and memory > 0 where it names any"


class Step(NamedTuple):
    """What a cycle decided, and when the next one is due if no event comes first (None = not by itself)."""

    decisions: list[Decision]
    next_deadline_ms: int | None

    @property
    def commands(self) -> list[Decision]:
        """The decisions that somebody has to carry out on a host."""
        return [decision for decision in self.decisions if decision.action in RUNNER_ACTIONS]


class Core:
    """State and indexes; see the module's docstring.

    Args:
        policy: the rules.
        now_ms: the first instant.
        shared_limit: how many GPUs may be shared at once; None = any that is not held whole.

    Attributes:
        sessions: all that have not ended, by id.
        view: the moment as the policy sees it.
        revision: number of events and decisions so far.
        hosts, claims: the parts of the state that have a file of their own.
        meters: counters of the sessions whose hosts report any, by session.
        arrivals: counter that gives sessions their order.
        memberships: tiers that end by themselves.
        lapsed: users whose tier ended with the latest cycle.
    """

    def __init__(self, policy: Policy, now_ms: int = 0, shared_limit: int | None = None) -> None:
        params = policy.params
        clock = DecayClock(round(params.usage.half_life_h * 3_600_000), now_ms)
        self.policy = policy
        self._tracked = policy.tracked
        self.params = params
        self.ledger = Ledger(clock)
        self.cluster = Cluster(shared_limit=shared_limit)
        self.queue = policy.make_queue(clock)
        self.view: Snapshot[WaitingQueue] = Snapshot(clock, self.cluster, self.queue)
        self.view.users = self.ledger.users
        self.sessions: dict[str, Session] = {}
        self.revision = 0
        self.arrivals = 0
        self.meters: dict[str, Meter] = {}
        self._clock = clock
        self._wakes = Wakes()
        self._ever: dict[Shape, bool] = {}
        self._charges: dict[tuple[Shape, int, float, float | None], tuple[int, int]] = {}
        self.hosts = Hosts(self.view, params.telemetry)
        self.claims = Claims(self.view, self.ledger, params)
        self.memberships = Memberships()
        self.lapsed: tuple[str, ...] = ()
        self._agenda = Agenda(self.view.calendar, self.cluster)
        self._apply: dict[type[Any], Callable[[Any], None]] = {
            ev.HostJoined: self._host_joined,
            ev.HostReported: self.hosts.reported,
            ev.HostSilent: self.hosts.silent,
            ev.HostDrained: self.hosts.drained,
            ev.HostResumed: self.hosts.resumed,
            ev.GroupSet: self._group_set,
            ev.UserSet: self._user_set,
            ev.UsageSet: self._usage_set,
            ev.UserRestricted: self._restricted,
            ev.UserPardoned: self._pardoned,
            ev.CalendarEntryAdded: self._calendar_added,
            ev.CalendarEntryRemoved: self._calendar_removed,
            ev.SessionSubmitted: self._submitted,
            ev.SessionHeld: self._held,
            ev.SessionUnheld: self._unheld,
            ev.SessionAbandoned: self._abandoned,
            ev.SessionCancelled: self._cancelled,
            ev.EvictionOrdered: self._eviction_ordered,
            ev.SessionStarted: self._started,
            ev.LoadReported: self._load_reported,
            ev.UsageMeasured: self._usage_measured,
            ev.SessionSaved: self._saved,
            ev.SessionExtended: self._extended,
            ev.RuleMatched: self._rule_seen,
            ev.RuleEnded: self._rule_seen,
            ev.RuleAllowed: self._rule_allowed,
            ev.SessionEnded: self._ended,
        }
        self._commit: dict[Action, Callable[[Session, Decision], None]] = {
            Action.START: self._start,
            Action.REJECT: self._reject,
            Action.NOTICE: self._tell,
            Action.WARN: self._warn,
            Action.THROTTLE: self._move,
            Action.GRACE: self._grace,
            Action.EVICT: self._evict,
            Action.WITHDRAW: self._withdraw,
            Action.RECOVER: self._move,
            Action.LOSE: self._lose,
            Action.RESERVE: self._reserve,
            Action.OBSERVE: carried_out,
            Action.RESTRICT: self._restrict,
        }

    @property
    def now_ms(self) -> int:
        """The latest instant the core has seen."""
        return self._clock.now_ms

    # -- the two entrances ---------------------------------------------------------------------------------------

    def apply(self, event: ev.Event) -> None:
        """Take note of what happened; `CoreError` or `lifecycle.IllegalMove` when it does not fit, changing nothing."""
        if event.at_ms != self._clock.now_ms:
            self._advance(event.at_ms)
        self._apply[type(event)](event)
        self.revision += 1

    def cycle(self, now_ms: int) -> Step:
        """Decide, once: everything that the rules ask for at this instant."""
        if now_ms != self._clock.now_ms:
            self._advance(now_ms)
        view, commit = self.view, self._commit
        self.lapsed = ()
        if self.memberships.next_ms <= now_ms:
            self._end_memberships()
        self._wakes.passed(now_ms)
        if self.hosts.reported_ms:
            self.hosts.watch(now_ms)
        if self.hosts.calendar_ms <= now_ms:
            self.hosts.follow_calendar(now_ms)
        self.queue.advance()
        decisions: list[Decision] = []
        for decision in self.policy.decide(view):
            commit[decision.action](self.sessions[decision.session], decision)
            decisions.append(decision)
            if decision.action in STIRRING:
                view.wake(now_ms + 1)
        self.revision += len(decisions)
        if view.wakes:
            self._wakes.add(view.wakes)
        return Step(decisions, self.next_deadline_ms())

    def validate(self) -> None:
        """Check that indexes, counts and state agree (`scheduler.audit`); AssertionError says what does not."""
        audit(self)

    def pending_wakes(self) -> list[int]:
        """Instants at which the policy asked to be called, earliest first."""
        return self._wakes.pending()

    def wake_at(self, instants: list[int]) -> None:
        """Cycles are due at these instants (from a checkpoint)."""
        self._wakes.add(set(instants))

    def take_over(self, meters: dict[str, Meter]) -> None:
        """Charge what is held by this core's parameters; counters go on from those of the core before it."""
        for sid, before in meters.items():
            meter = self.meters[sid] = Meter(self._clock.now_ms)
            meter.busy_ms, meter.granted_ms = before.busy_ms, before.granted_ms
            meter.owed_gpu_h(self._clock.now_ms, self._busy_weight(self.sessions[sid]))
        for session in self.view.holders.values():
            self._recharge(session)
        for claim in self.view.claims.values():
            if claim.waiter is not None:
                self._commit_again(claim.waiter)
        self._refile_everybody()

    def _commit_again(self, waiter: Session) -> None:
        """What a nominated waiter asks is committed by this core's parameters."""
        shape = waiter.shape
        weight, min_run_ms = self.params.weight(shape.gpu_type), self.params.ladder.min_run_ms
        committed = committed_n(shape, shape.fraction_m, weight, min_run_ms)
        self.ledger.change(waiter.user, 0, committed - waiter.committed_n)
        waiter.committed_n = committed
        self.queue.user_changed(waiter.user)

    def _busy_weight(self, session: Session) -> float:
        """Charge for one GPU-hour of computing."""
        return self._weight(session) * (1.0 - self.params.usage.idle_charge)

    def _advance(self, now_ms: int) -> None:
        if now_ms > LAST_MS:
            raise CoreError(f"time {now_ms} ms is beyond the last instant, {LAST_MS} ms")
        if now_ms < self._clock.now_ms:
            raise CoreError(f"time runs backwards: {now_ms} ms after {self._clock.now_ms} ms")
        if self.ledger.advance(now_ms):
            self.queue.rebased()

    def next_deadline_ms(self) -> int | None:
        """When the next cycle is due if nothing happens; events after a cycle may have moved it."""
        at = self.queue.next_ms()
        for wake in (self._wakes.next_ms(), self.memberships.next_ms):
            if wake < at:  # called after every cycle: min() costs as much as the rest
                at = wake
        return None if at >= NEVER_MS else at

    def _host_joined(self, event: ev.HostJoined) -> None:
        self.hosts.joined(event)
        self._ever.clear()
        hopeless, self.view.unplaceable = self.view.unplaceable, []
        for session in hopeless:
            self._admit(session)

    # -- users ---------------------------------------------------------------------------------------------------

    def _group_set(self, event: ev.GroupSet) -> None:
        self.ledger.set_group(event.group, event.shares, event.parent)
        self._refile_everybody()

    def _user_set(self, event: ev.UserSet) -> None:
        until_ms = event.until_ms
        if until_ms is not None and not (event.at_ms < until_ms <= LAST_MS and event.then_tier):
            raise CoreError(
                f"user {event.user} cannot be of tier {event.tier} until {until_ms} ms, then of {event.then_tier!r}:"
                f" it is {event.at_ms} ms"
            )
        user = self.ledger.set_user(event.user, event.group, event.tier, event.shares)
        ends = None if until_ms is None else Membership(until_ms, event.then_tier)
        self.memberships.set(user.name, ends)
        for session in user.held.values():
            self._look(session)
        self._refile_everybody()

    def _end_memberships(self) -> None:
        """Whose tier is over is of the next one from now on, as if an operator had set it."""
        over = self.memberships.over(self._clock.now_ms)
        for name, tier in over:
            user = self.ledger.users[name]
            user.tier = tier
            for session in user.held.values():
                self._look(session)
        self._refile_everybody()
        self.lapsed = tuple(name for name, _ in over)

    def _usage_set(self, event: ev.UsageSet) -> None:
        self.ledger.set_usage(self._user(event.user), event.usage_gpu_h)
        self._refile_everybody()

    def _restricted(self, event: ev.UserRestricted) -> None:
        user = self._user(event.user)
        if event.until_ms is not None and not event.at_ms < event.until_ms <= LAST_MS:
            raise CoreError(f"user {user.name} cannot be restricted until {event.until_ms} ms: it is {event.at_ms} ms")
        self._keep_from_starting(user, FOR_EVER_MS if event.until_ms is None else event.until_ms, "")

    def _keep_from_starting(self, user: User, until_ms: int, rule: str) -> None:
        user.restricted_until_ms, user.restricted_rule = until_ms, rule
        for waiter in list(user.nominated.values()):
            self.claims.drop(waiter)
            self.queue.add(waiter)
        self.queue.user_changed(user)

    def _pardoned(self, event: ev.UserPardoned) -> None:
        user = self._user(event.user)
        user.restricted_until_ms, user.restricted_rule = 0, ""
        user.cooldown_until_ms = min(user.cooldown_until_ms, event.at_ms)
        self.queue.user_changed(user)

    def _user(self, name: str) -> User:
        user = self.ledger.users.get(name)
        if user is None:
            raise CoreError(f"user {name} is not known")
        return user

    def _refile_everybody(self) -> None:
        for user in self.ledger.users.values():
            if user.cells or user.held or user.nominated:
                self.queue.user_changed(user)

    # -- the calendar --------------------------------------------------------------------------------------------

    def _calendar_added(self, event: ev.CalendarEntryAdded) -> None:
        self._agenda.added(event)
        self._calendar_changed()

    def _calendar_removed(self, event: ev.CalendarEntryRemoved) -> None:
        self._agenda.removed(event)
        self._calendar_changed()

    def _calendar_changed(self) -> None:
        self.hosts.calendar_changed()
        self.queue.calendar_changed(self.view.calendar)
        self._refile_everybody()

    # -- sessions come, wait, leave --------------------------------------------------------------------------------

    def _submitted(self, event: ev.SessionSubmitted) -> None:
        sid = event.session
        if sid in self.sessions:
            raise CoreError(f"session {sid} was submitted already")
        if not (
            event.gpus >= 1
            and (event.fraction_m == WHOLE_M or (event.gpus == 1 and 1 <= event.fraction_m < WHOLE_M))
            and (event.memory_mib is None or event.memory_mib >= 1)
        ):
            raise CoreError(f"session {sid} asks for {event.gpus} GPUs, {event.fraction_m} m each: {SIZES}")
        user = self.ledger.users.get(event.user)
        if user is None:
            user = self.ledger.set_user(event.user, event.group, event.tier)
        user.active_ms = event.at_ms
        shape = self.shape_for(user, Shape(event.gpus, event.fraction_m, event.gpu_type, event.memory_mib))
        self.arrivals += 1
        session = Session(sid, user, shape, event.at_ms, self.arrivals, event.expected_ms)
        self.sessions[sid] = session
        self._admit(session)
        if session not in self.view.unplaceable:
            self.queue.requested(session)

    def shape_for(self, user: User, shape: Shape) -> Shape:
        """What a user's request means: where the tier allows some GPU models only, the first unless it names one."""
        models = self.params.tier(user.tier).gpu_models
        return shape if models is None or shape.gpu_type is not None else shape._replace(gpu_type=models[0])

    def _admit(self, session: Session) -> None:
        """Into the queue, unless a limit refuses it."""
        if self.queue.refusal(session.user, session.shape) is not None:
            self.view.unplaceable.append(session)
        else:
            self._wait(session)

    def _wait(self, session: Session) -> None:
        """Into the queue, or to those that the next cycle refuses because they could never run."""
        shape = session.shape
        ever = self._ever.get(shape)
        if ever is None:
            ever = self._ever[shape] = self.cluster.can_ever_fit(shape)
        if ever:
            self.queue.add(session)
        else:
            self.view.unplaceable.append(session)

    def _session(self, sid: str) -> Session:
        session = self.sessions.get(sid)
        if session is None:
            raise CoreError(f"session {sid} is not known")
        return session

    def _held(self, event: ev.SessionHeld) -> None:
        self._leave_queue(self._session(event.session), Trigger.HOLD)

    def _unheld(self, event: ev.SessionUnheld) -> None:
        session = self._session(event.session)
        session.state = after(session.id, session.state, Trigger.UNHOLD)
        self._wait(session)

    def _abandoned(self, event: ev.SessionAbandoned) -> None:
        session = self._session(event.session)
        self._leave_queue(session, Trigger.ABANDON)
        self._close(session, Outcome.ABANDONED)

    def _cancelled(self, event: ev.SessionCancelled) -> None:
        session = self._session(event.session)
        if session.state in (State.QUEUED, State.HELD):
            self._leave_queue(session, Trigger.CANCEL)
            self._close(session, Outcome.CANCELLED)
        else:
            self._stop(session, Trigger.CANCEL)

    def _eviction_ordered(self, event: ev.EvictionOrdered) -> None:
        self._stop(self._session(event.session), Trigger.EVICT)

    def _stop(self, session: Session, trigger: Trigger) -> None:
        """A session that holds GPUs is being ended by somebody's order."""
        was_leaving = self.view.leaving(session)
        session.state = after(session.id, session.state, trigger)
        self.view.leaving_m += 0 if was_leaving else session.held_m
        self.view.warned.pop(session.id, None)

    def _leave_queue(self, session: Session, trigger: Trigger) -> None:
        """A waiting session stops waiting; what was freed for it is free for all."""
        before, session.state = session.state, after(session.id, session.state, trigger)
        if before is not State.QUEUED:
            return
        if session in self.view.unplaceable:
            self.view.unplaceable.remove(session)
        elif session.claim is None:
            self.queue.remove(session)
        else:
            self.claims.drop(session)

    def _close(self, session: Session, outcome: Outcome) -> None:
        session.state = State.ENDED
        session.outcome = outcome
        del self.sessions[session.id]

    # -- sessions run --------------------------------------------------------------------------------------------

    def _started(self, event: ev.SessionStarted) -> None:
        session = self._session(event.session)
        session.state = after(session.id, session.state, Trigger.STARTED)

    def _load_reported(self, event: ev.LoadReported) -> None:
        session = self._session(event.session)
        load = event.load
        if load is not None and not 0.0 <= load <= 1.0:
            raise CoreError(f"load {load} of session {session.id} must be within 0..1")
        self._record_load(session, load)

    def _record_load(self, session: Session, load: float | None) -> bool:
        """Note the load from now on; whether the charge rate changed."""
        if session.allocation is None:
            raise CoreError(f"session {session.id} is {session.state}: it has no load")
        if session.window is None:
            session.window = LoadWindow(self.params.ladder.heavy_window_ms, session.start_ms)
        session.window.record(self._clock.now_ms, load)
        if (load == 0) != (session.idle_since_ms >= 0):
            session.idle_since_ms = self._clock.now_ms if load == 0 else -1
            self._look(session)
        if load == session.load:
            return False
        session.load = load
        self._recharge(session)
        return True

    def _look(self, session: Session) -> None:
        """Something changed that the tracks follow."""
        if self._tracked:
            self.view.look(session, self._clock.now_ms)

    def _extended(self, event: ev.SessionExtended) -> None:
        session = self._session(event.session)
        if session.allocation is None or session.state is State.STOPPING:
            raise CoreError(f"session {session.id} is {session.state}: only one that runs can be extended")
        session.extended_ms = event.at_ms
        self._look(session)

    def _rule_seen(self, event: ev.RuleMatched | ev.RuleEnded) -> None:
        session = self._session(event.session)
        if sightings.seen(session, event):
            self._look(session)

    def _rule_allowed(self, event: ev.RuleAllowed) -> None:
        user = self._user(event.user)
        sightings.allow(user, event)
        for session in user.held.values():
            self._look(session)

    def _usage_measured(self, event: ev.UsageMeasured) -> None:
        """Set the charge right by the counters, and go on with the load since the report before."""
        session = self._session(event.session)
        if session.allocation is None:
            raise CoreError(f"session {session.id} is {session.state}: it computes nothing")
        if not 0 <= event.busy_ms <= event.granted_ms:
            raise CoreError(f"session {session.id} computed {event.busy_ms} of {event.granted_ms} GPU-ms granted")
        meter = self.meters.get(session.id)
        if meter is None:
            meter = self.meters[session.id] = Meter(self._clock.now_ms)
        load = meter.take(event.busy_ms, event.granted_ms)
        if load is None:
            return
        self.ledger.add(session.user, meter.owed_gpu_h(self._clock.now_ms, self._busy_weight(session)))
        if not self._record_load(session, load if event.known else None):
            self.queue.user_changed(session.user)

    def _saved(self, event: ev.SessionSaved) -> None:
        session = self._session(event.session)
        session.saved_ms = event.at_ms
        if event.acknowledged and session.ladder is Ladder.GRACE and not session.acknowledged:
            session.acknowledged = True
            self.queue.saved(event.at_ms - session.ladder_since_ms)

    def _ended(self, event: ev.SessionEnded) -> None:
        session = self._session(event.session)
        after(session.id, session.state, Trigger.END)
        if event.outcome not in ENDS:
            raise CoreError(f"session {session.id} cannot end {event.outcome!r}: {', '.join(ENDS)}")
        self._free(session, Outcome(event.outcome))

    def _free(self, session: Session, outcome: Outcome) -> None:
        """A session's GPUs are free: for its claim's waiter if it has one, otherwise for all."""
        view, user, allocation = self.view, session.user, session.allocation
        if allocation is None:
            raise CoreError(f"session {session.id} holds nothing")
        if view.leaving(session):
            view.leaving_m -= session.held_m
        self.claims.release(session, allocation)
        session.allocation = None
        del user.held[session.id]
        del view.holders[session.id]
        view.warned.pop(session.id, None)
        view.idlers.pop(session.id, None)
        view.overdue.pop(session.id, None)
        view.shrunk.pop(session.id, None)
        self.meters.pop(session.id, None)
        user.active_ms = self._clock.now_ms
        self.ledger.change(user, -session.rate_n, -session.committed_n)
        self.queue.gave_back(session.shape.amount_m, by_itself=outcome in OWN_ENDS)
        self._close(session, outcome)
        self.queue.user_changed(user)

    def _recharge(self, session: Session) -> None:
        """Charge rate and committed charge follow the load and what is granted now."""
        key = (session.shape, session.granted_m, self._weight(session), session.load)
        charges = self._charges.get(key)
        if charges is None:
            charges = self._charge(*key)
        rate, committed = charges
        self.ledger.change(session.user, rate - session.rate_n, committed - session.committed_n)
        session.rate_n, session.committed_n = rate, committed
        meter = self.meters.get(session.id)
        if meter is not None:
            holding, _ = self._charge(*key[:3], None)
            meter.turn(self._clock.now_ms, rate - holding)
        self.queue.user_changed(session.user)

    def _charge(self, shape: Shape, granted_m: int, weight: float, load: float | None) -> tuple[int, int]:
        """(charge rate, committed charge) of what a session holds; remembered, since most sessions are alike."""
        rate = charge_rate_n(shape.gpus, weight, granted_m, self.params.usage.idle_charge, load)
        committed = committed_n(shape, granted_m, weight, self.params.ladder.min_run_ms)
        if len(self._charges) >= REMEMBERED:
            self._charges.clear()
        self._charges[shape, granted_m, weight, load] = rate, committed
        return rate, committed

    def _weight(self, session: Session) -> float:
        if session.allocation is None or not self.params.gpu_weight:
            return self.params.weight(session.shape.gpu_type)
        return self.params.weight(self.cluster.hosts[session.allocation.parts[0][0]].spec.model)

    # -- decisions carried out -----------------------------------------------------------------------------------

    def _start(self, session: Session, decision: Decision) -> None:
        now, view, user, allocation = decision.at_ms, self.view, session.user, decision.allocation
        if allocation is None:
            raise CoreError(f"session {session.id} was started without GPUs")
        session.state = after(session.id, session.state, Trigger.START)
        by_band = session.by_band
        if session.claim is None:
            self.queue.remove(session)
        else:
            self.claims.drop(session)
        self.cluster.take(allocation)
        session.allocation = allocation
        session.granted_m = session.shape.fraction_m
        session.by_band = by_band or decision.reason.rule == "order.waited-long"
        session.start_ms = session.saved_ms = session.ladder_since_ms = now
        user.held[session.id] = view.holders[session.id] = session
        self.queue.took(session.shape.amount_m)
        self._look(session)
        self._recharge(session)

    def _reject(self, session: Session, decision: Decision) -> None:
        del decision
        self._leave_queue(session, Trigger.REJECT)
        self._close(session, Outcome.REJECTED)

    def _tell(self, session: Session, decision: Decision) -> None:
        """A notice of the ladder, or of a track, which remembers when."""
        if decision.reason.rule == "lifetime.warn":
            session.told_ms = decision.at_ms
        elif decision.reason.rule == "maintenance.warn":
            session.maintenance_told_ms = decision.at_ms
        elif decision.reason.rule == "idle.warn":
            session.idle_told_ms = decision.at_ms
        self._move(session, decision)

    def _move(self, session: Session, decision: Decision) -> None:
        """To another rung; with `granted_m` also to another part of a shared GPU."""
        if session.uses is not None:
            carried_out(session, decision)
        if decision.ladder is not None:
            self._set_rung(session, decision.ladder)
        if decision.granted_m is not None and session.allocation is not None:
            session.allocation = self.cluster.resize(session.allocation, decision.granted_m)
            session.granted_m = decision.granted_m
            if decision.granted_m < session.shape.fraction_m:
                self.view.shrunk[session.id] = session
            else:
                self.view.shrunk.pop(session.id, None)
            self._recharge(session)

    def _restrict(self, session: Session, decision: Decision) -> None:
        """A rule of acceptable use lets nothing new of the user start; a longer restriction stays as it is."""
        carried_out(session, decision)
        user, until_ms = session.user, decision.reason.until_ms
        if until_ms is not None and until_ms > user.restricted_until_ms:
            self._keep_from_starting(user, until_ms, decision.reason.rule)

    def _set_rung(self, session: Session, ladder: Ladder) -> None:
        session.ladder = ladder
        session.ladder_since_ms = self._clock.now_ms
        if ladder in (Ladder.OK, Ladder.NOTICE):
            session.lead_ms = -1
            self.view.warned.pop(session.id, None)
        else:
            self.view.warned[session.id] = session

    def _warn(self, session: Session, decision: Decision) -> None:
        self._set_rung(session, Ladder.WARN)
        session.lead_ms = decision.at_ms

    def _grace(self, session: Session, decision: Decision) -> None:
        """Into grace, for a nominated waiter (who leaves the queue: what it asks is committed) or for the headroom."""
        waiter = None if decision.other is None else self._session(decision.other)
        if waiter is not None and waiter.state is not State.QUEUED:
            raise CoreError(f"session {session.id} would give way to {waiter.id}, which is {waiter.state}")
        self.claims.give_way(session, waiter, KIND_OF.get(decision.reason.rule, Kind.LADDER))
        self._set_rung(session, Ladder.GRACE)
        self.view.leaving_m += session.held_m

    def _evict(self, session: Session, decision: Decision) -> None:
        self._stop(session, Trigger.EVICT)
        if decision.other is not None:
            self.claims.promise(session, decision.set_aside)
        if decision.reason.until_ms is not None and decision.reason.rule in COOLING:
            self.queue.cool_down(session.user, decision.reason.until_ms)

    def _withdraw(self, session: Session, decision: Decision) -> None:
        """A session may stay after all; or a nominated waiter loses its claim and waits in its old place."""
        if session.state is State.QUEUED:
            self.claims.drop(session)
            self.queue.add(session)
            return
        self.view.leaving_m -= session.held_m
        self._set_rung(session, decision.ladder or Ladder.WARN)
        self.claims.let_stay(session)

    def _reserve(self, session: Session, decision: Decision) -> None:
        """GPUs are kept for a wide session that waits."""
        if session.state is not State.QUEUED:
            raise CoreError(f"session {session.id} is {session.state}: nothing can be kept for it")
        if decision.reason.rule == "order.reserve-waited":
            session.by_band = True
        self.claims.reserve(session, decision.set_aside)

    def _lose(self, session: Session, decision: Decision) -> None:
        del decision
        self._free(session, Outcome.LOST)
