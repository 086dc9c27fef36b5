"""Requests become events: each operation checked against the state, applied, and answered after the commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from policies.explain import CHANGES, refusal_words
from policies.limits import CHANGE_OF, FOR_EVER_MS
from policies.model import Shape, State
from policies.order import FairQueue
from scheduler import events as ev
from scheduler.appeals import Appeals
from scheduler.errors import BadInput, CoreError, FairTierError, NotFound, Refused
from scheduler.lifecycle import IllegalMove
from scheduler.memberships import Membership, membership_json
from scheduler.planning import Planning
from scheduler.requests import (
    Act,
    Activate,
    AnswerAppeal,
    Close,
    FileAppeal,
    Pardon,
    Ping,
    Plan,
    Restrict,
    Rollback,
    Run,
    SetHost,
    SetUser,
    Submit,
    Unplan,
)
from scheduler.roster import record
from scheduler.why_stored import told
from scheduler.why_words import utc

if TYPE_CHECKING:
    from scheduler.activation import Versions
    from scheduler.core import Core
    from scheduler.dispatch import Dispatch, Ending
    from scheduler.moment import Moment
    from scheduler.ports import Row, Store
    from scheduler.requests import Request
    from scheduler.roster import Roster

Body = Callable[[], dict[str, Any]]
Check = Callable[[str, dict[str, Any]], None]
"""Raises BadInput for a task's kind and arguments that are not allowed."""

SORTS: tuple[tuple[type[FairTierError], str], ...] = (
    (BadInput, "bad-input"),
    (NotFound, "not-found"),
    (Refused, "refused"),
    (FairTierError, "failed"),
)
DEFAULT_TIER = "free"
CLOSING_WAIT_MS = 2_000


class Intake:
    """See the module's docstring.

    Args:
        versions: of the policy.
        check_task: of the allow-list of background work; None = no background work here.

    Attributes:
        closing: the instance is about to stop; nothing new is accepted.
    """

    def __init__(
        self,
        core: Core,
        store: Store,
        roster: Roster,
        dispatch: Dispatch,
        versions: Versions,
        check_task: Check | None = None,
    ) -> None:
        self._core = core
        self._store = store
        self._roster = roster
        self._dispatch = dispatch
        self._check_task = check_task
        self._versions = versions
        self.closing = False
        appeals = Appeals(core, store, roster, self._user)
        planning = Planning(core)
        self._do: dict[type, Callable[[Moment, Any], Body]] = {
            Submit: self._submit,
            Act: self._act,
            SetUser: self._set_user,
            Restrict: self._restrict,
            Pardon: self._pardon,
            FileAppeal: appeals.file,
            AnswerAppeal: appeals.answer,
            Plan: planning.plan,
            Unplan: planning.unplan,
            SetHost: self._set_host,
            Activate: self._change_policy,
            Rollback: self._change_policy,
            Run: self._run,
            Close: self._close,
            Ping: self._ping,
        }

    def take(self, moment: Moment, request: Request) -> None:
        """Do what a request asks, once; its answer follows the commit."""
        known = self._store.answer(request.key)
        if known is not None:
            moment.answered.append((request.reply_to, known))
            return
        if request.key in moment.keys:
            moment.again.append(request)  # also where the first was refused: what was told must stay true
            return
        moment.keys.add(request.key)
        moment.by, moment.key = request.by, request.key
        try:
            moment.asked.append((request, self._do[type(request.operation)](moment, request.operation)))
        except FairTierError as error:
            moment.refuse(request, error, next(sort for kind, sort in SORTS if isinstance(error, kind)))
        except IllegalMove as error:
            message = f"session {error.session} is {error.state}: {error.trigger} is not possible now"
            moment.refuse(request, Refused(message, f"fairtier why {error.session}"), "refused")
        except CoreError as error:
            moment.refuse(request, Refused(str(error)), "refused")

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _submit(self, moment: Moment, asked: Submit) -> Body:
        if self.closing:
            raise Refused("the instance is stopping; nothing new is accepted")
        user = self._user(asked.user)
        self._check_record(asked, user)
        shape = Shape(asked.gpus, round(asked.fraction * 1000), asked.gpu_type, asked.memory_mib)
        self._check_fits(shape)
        self._check_limits(asked.user, shape)
        sid = f"s-{self._core.arrivals + 1}"
        moment.apply(
            ev.SessionSubmitted(
                moment.now_ms, sid, asked.user, user["group"], user["tier"], shape.gpus, shape.fraction_m,
                shape.gpu_type, shape.memory_mib,
            )
        )  # fmt: skip
        row = self._roster.submitted(moment.batch, sid, asked, user, moment.by)
        return lambda: {"session": dict(row)}

    def _user(self, name: str) -> Row:
        user = self._roster.users.get(name)
        if user is None:
            raise NotFound(
                f"user {name} does not exist",
                f"fairtier user list; an administrator creates one: fairtier user set {name}",
            )
        return user

    @staticmethod
    def _check_record(asked: Submit, user: Row) -> None:
        for what, wanted in (("group", asked.group), ("tier", asked.tier)):
            if wanted is not None and wanted != user[what]:
                raise Refused(
                    f"user {asked.user} is of {what} {user[what]}, not {wanted}",
                    f"an administrator changes it: fairtier user set {asked.user} --{what} {wanted}",
                )

    def _check_fits(self, shape: Shape) -> None:
        """Refuse now what could never start, instead of letting it wait."""
        hosts = [host.spec for host in self._core.cluster.hosts.values()]
        if not hosts:
            raise Refused("no host has joined yet", "see: fairtier host list; fairtier logs")
        largest = max(spec.gpus for spec in hosts)
        if shape.gpus > largest:
            raise Refused(f"{shape.gpus} GPUs are asked for; a session runs on one host, and the largest has {largest}")
        if not self._core.cluster.can_ever_fit(shape):
            models = ", ".join(sorted({spec.model or "any" for spec in hosts}))
            memory = max((spec.memory_mib or 0 for spec in hosts), default=0)
            raise Refused(
                f"no host here could ever run it: asked are {shape.gpus} GPU(s) of model {shape.gpu_type or 'any'} with"
                f" {shape.memory_mib or 0} MiB each; there are models {models} with up to {memory} MiB",
                "ask for fewer GPUs, less memory or another model",
            )

    def _check_limits(self, name: str, shape: Shape) -> None:
        """Refuse now what a limit of the tier forbids, instead of accepting and refusing it."""
        user = self._core.ledger.users[name]
        block = self._core.queue.refusal(user, self._core.shape_for(user, shape))
        if block is not None:
            raise Refused(f"user {name}, tier {user.tier}: {refusal_words(block)}", CHANGES[CHANGE_OF[block.rule]])

    def _act(self, moment: Moment, asked: Act) -> Body:
        row = self._roster.sessions.get(asked.session)
        if row is None:
            ended = moment.batch.sessions.get(asked.session) or self._store.session(asked.session)
            if ended is None:
                raise NotFound(f"session {asked.session} does not exist", "fairtier sessions --all lists them")
            raise Refused(f"session {asked.session} has ended already ({ended['outcome']})")
        if asked.op == "hold":
            moment.apply(ev.SessionHeld(moment.now_ms, asked.session))
        elif asked.op == "unhold":
            moment.apply(ev.SessionUnheld(moment.now_ms, asked.session))
        elif asked.op == "extend":
            if not self._core.policy.tracked:
                raise Refused("nothing to extend: this policy ends no session for its age or for being idle")
            moment.apply(ev.SessionExtended(moment.now_ms, asked.session))
        else:
            self._end(moment, row, asked)
        entry = _entry(moment, asked, row["user"], asked.session)
        moment.batch.decisions.append(record(entry))
        self._roster.touch(moment.batch, row, reason=json.dumps(entry))
        session = self._core.sessions.get(asked.session)
        if session is not None:
            self._roster.touch(moment.batch, row, state=session.state.value)
        return lambda: {"session": dict(row)}

    def _end(self, moment: Moment, row: Row, asked: Act) -> None:
        sid, op = row["session"], asked.op
        session = self._core.sessions[sid]
        if op == "evict" and session.allocation is None:
            raise Refused(f"session {sid} is {session.state} and holds no GPU", f"fairtier cancel {sid} ends its wait")
        if session.state is State.STOPPING:
            raise Refused(f"session {sid} is being stopped already")
        event = ev.EvictionOrdered if op == "evict" else ev.SessionCancelled
        moment.apply(event(moment.now_ms, sid))
        if session.allocation is None:
            self._roster.ended(moment.batch, row, "cancelled")
        else:
            outcome: Ending = "evicted" if op == "evict" else "cancelled"
            self._roster.touch(moment.batch, row, ending=outcome)
            self._dispatch.tell(moment, row, told(_entry(moment, asked, row["user"], sid)), f"admin.{op}")
            self._dispatch.stop(moment, row, outcome)

    # -- users, hosts, background work, the instance ------------------------------------------------------------------

    def _set_user(self, moment: Moment, asked: SetUser) -> Body:
        row = self._roster.user_row(asked, moment.now_ms)
        ends = self._membership(asked, moment.now_ms)
        if ends is not None and ends.until_ms <= moment.now_ms:  # its end is due, with the cycle of this pass
            row, ends = {**row, "tier": ends.then_tier}, None
        until = (None, "") if ends is None else ends
        moment.apply(ev.UserSet(moment.now_ms, asked.user, row["group"], row["tier"], row["shares"], *until))
        self._roster.keep_user(moment.batch, row)
        return lambda: {"user": dict(row), **membership_json(ends)}

    def _membership(self, asked: SetUser, now_ms: int) -> Membership | None:
        """When the user's tier ends, and what it is then: what it was before it was given for a time, or free."""
        before = self._core.memberships.of.get(asked.user)
        if asked.tier is None:
            return before
        until_ms = asked.until_ms if asked.until_s is None else now_ms + asked.until_s * 1000
        if until_ms is None:
            return None
        if until_ms <= now_ms:
            raise BadInput(
                f"user {asked.user} cannot be of tier {asked.tier} until {utc(until_ms)}: it is {utc(now_ms)} now",
                "give a time to come, or none: until it is set anew",
            )
        known = self._roster.users.get(asked.user)
        then = DEFAULT_TIER if known is None else known["tier"] if before is None else before.then_tier
        return Membership(until_ms, DEFAULT_TIER if then == asked.tier else then)

    def _restrict(self, moment: Moment, asked: Restrict) -> Body:
        self._user(asked.user)
        until_ms = asked.until_ms if asked.for_s is None else moment.now_ms + asked.for_s * 1000
        if until_ms is not None and until_ms <= moment.now_ms:
            raise BadInput(
                f"user {asked.user} cannot be restricted until {utc(until_ms)}: it is {utc(moment.now_ms)} now",
                "give a time to come, or none: until it is pardoned",
            )
        if not isinstance(self._core.queue, FairQueue):
            raise Refused(
                f"the policy {self._core.params.policy} has no limits: sessions of {asked.user} would start",
                "restart with a fair-share policy, or keep single sessions from starting: fairtier hold",
            )
        moment.apply(ev.UserRestricted(moment.now_ms, asked.user, until_ms))
        row = self._roster.restrict(moment.batch, asked.user, FOR_EVER_MS if until_ms is None else until_ms)
        moment.batch.decisions.append(record(_entry(moment, asked, asked.user, until_ms=until_ms)))
        return lambda: {"user": dict(row)}

    def _pardon(self, moment: Moment, asked: Pardon) -> Body:
        """Of who is neither restricted nor cooling down, nothing changes and nothing is put on record."""
        row = self._user(asked.user)
        user = self._core.ledger.users[asked.user]
        pardoned = max(user.restricted_until_ms, user.cooldown_until_ms) > moment.now_ms
        if pardoned:
            moment.apply(ev.UserPardoned(moment.now_ms, asked.user))
            row = self._roster.restrict(moment.batch, asked.user, None)
            moment.batch.decisions.append(record(_entry(moment, asked, asked.user)))
        return lambda: {"user": dict(row), "pardoned": pardoned}

    def _set_host(self, moment: Moment, asked: SetHost) -> Body:
        if asked.host not in self._core.cluster.hosts:
            raise NotFound(f"host {asked.host} is not known", "fairtier host list shows those that have joined")
        event = ev.HostDrained if asked.op == "drain" else ev.HostResumed
        moment.apply(event(moment.now_ms, asked.host))
        row = self._roster.keep_host(moment.batch, asked.host, drained=asked.op == "drain")
        return lambda: {"host": dict(row)}

    def _change_policy(self, moment: Moment, asked: Activate | Rollback) -> Body:
        """Another policy takes over at the end of this pass; what is in force already changes nothing."""
        if self.closing:
            raise Refused("the instance is stopping; its policy stays")
        if moment.change is not None:
            raise Refused("another policy is activated at this very moment", "fairtier policy versions shows it")
        if isinstance(asked, Activate):
            change = self._versions.activate(asked, moment.now_ms, moment.by)
        else:
            change = self._versions.rollback(asked, moment.now_ms, moment.by)
        if change is not None:
            moment.change, moment.changing = change, moment.key
        row = self._versions.present if change is None else change.row
        told = {name: value for name, value in row.items() if name != "toml"}
        warnings = [] if change is None else list(change.warnings)
        return lambda: {"policy": told, "changed": change is not None, "warnings": warnings}

    def _run(self, moment: Moment, asked: Run) -> Body:
        if self._check_task is None:
            raise Refused("this instance does no background work")
        self._check_task(asked.kind, asked.arguments)
        row = self._roster.new_task(moment.batch, asked.kind, asked.arguments)
        return lambda: {"task": dict(row)}

    def _ping(self, moment: Moment, asked: Ping) -> Body:
        """The way here and back works."""
        del asked
        at_ms = moment.now_ms
        return lambda: {"at_ms": at_ms}

    def _close(self, moment: Moment, asked: Close) -> Body:
        """End all sessions that run; those that wait keep their place for the next start."""
        del asked
        self.closing = True
        for sid, session in list(self._core.sessions.items()):
            if session.allocation is not None and session.state is not State.STOPPING:
                row = self._roster.sessions[sid]
                moment.apply(ev.SessionCancelled(moment.now_ms, sid))
                self._roster.touch(moment.batch, row, state=session.state.value, ending="cancelled")
                self._dispatch.stop(moment, row, "cancelled", CLOSING_WAIT_MS)
        return dict


def _entry(
    moment: Moment, asked: Act | Restrict | Pardon, user: str, session: str | None = None, **more: Any
) -> dict[str, Any]:
    """An operator's act, on a session or on a user, as it stands in the record beside the policy's decisions."""
    return {
        "at_ms": moment.now_ms,
        "action": asked.op,
        "session": session,
        "user": user,
        "rule": f"admin.{asked.op}",
        "by": moment.by,
        "text": asked.reason,
        **more,
    }
