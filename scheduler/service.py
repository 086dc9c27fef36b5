"""The scheduler's loop: requests and reports in, one cycle, one transaction, then answers and commands out.

Memory never runs ahead of the truth: when a commit fails, the core is dropped and loaded again from the store. Nobody
is told anything before it is on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from policies.catalogue import make_policy
from policies.model import State
from scheduler.activation import Versions, go_over, successor, version_row, wanted_anew
from scheduler.core import Core
from scheduler.dispatch import Dispatch
from scheduler.errors import FairTierError, Refused
from scheduler.intake import Check, Intake
from scheduler.journal import head_line
from scheduler.moment import Moment
from scheduler.ports import Batch, BusDown, StoreDown, StoreFull
from scheduler.replica import Replica
from scheduler.requests import Answer, Request, key_of
from scheduler.roster import Roster
from scheduler.telemetry import Telemetry
from workers.protocol import Start

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Any

    from policies.model import Decision
    from policies.params import Params
    from scheduler.ports import Bus, Message, Row, Store

IDLE_MS = 5_000
"""Longest wait for a message."""
AWAY_MS = 200
"""Pause before a transport or store that is away is tried again."""
CHECKPOINT_LINES = 2_000
"""Journal lines between two checkpoints: what a start has to run again."""
ASLEEP_MS = 2 * IDLE_MS
"""Between two passes: then this process, or all of the machine, was stopped, and the hosts' silence means nothing."""
TRIM_BYTES = 16 * 1024 * 1024
"""Messages taken in, after which the transport is told that they are not needed any more."""
RENEW_MS = 5_000
"""Longest time without a commit: the lease to lead lasts three times as long."""
PRUNE_MS = 3_600_000
KEEP_MS = 30 * 24 * 3_600_000
"""Age from which journal lines, settled commands and answers are dropped. Sessions and decisions are kept for good."""


class Clock(Protocol):
    """Time for the service."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, never decreasing."""

    def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""


class Background(Protocol):
    """Background work: tasks on record are handed over, and their results looked for."""

    def check(self, kind: str, arguments: dict[str, Any]) -> None:
        """BadInput for what is not on the allow-list."""

    def notices(
        self, decisions: Iterable[Decision], users: dict[str, Row], hosts: dict[str, str]
    ) -> list[tuple[str, dict[str, Any]]]:
        """(kind, arguments) of the tasks that tell people of these decisions."""

    def attend(self, rows: Sequence[Row], now_ms: int) -> list[tuple[Row, dict[str, Any]]]:
        """Hand over what is due, look for results; (row, changes) for the rows that change."""


class Service:
    """See the module's docstring.

    Args:
        params: the policy; None = go on with the one on record.
        warn: logs an event with its members.
        background: background work, None = none here.
        hosts: those whose reports reach us, None = any; another one on record counts as lost.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        params: Params | None,
        warn: Callable[..., None],
        background: Background | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._params = params
        self._warn = warn
        self._background = background
        self._hosts = hosts
        self._stopping = False
        self._away = True
        self._closing = False
        self._attended_ms = 0
        self._written_ms = 0
        self._pruned_ms = 0
        self._passed_ms = 0
        self._ahead_ms = 0
        self._read_bytes = 0
        self._lines = 0
        self._cursors: dict[str, str] = {}
        self._load()

    @property
    def policy_name(self) -> str:
        """Of the policy in force."""
        return self._core.params.name

    def stop(self) -> None:
        """End `run` after the present pass (from a signal handler)."""
        self._stopping = True

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`; then leave a checkpoint, so that the next start has nothing to run again."""
        while not self._stopping:
            self.turn()
        self._leave()

    def turn(self) -> None:
        """One pass of the loop."""
        # 1. Wait for messages, until the core, a resend or a lease is due. Without transport nothing is decided.
        try:
            messages = self._bus.receive(self._cursors, self._patience_ms())
        except BusDown as error:
            self._lost_transport(error)
            return
        # 2. Stamp the instant once.
        moment = Moment(self._core, self._stamp())
        try:
            # 3. Take in: requests and reports become events, which the core notes.
            self._take_in(moment, messages)
            # 4. Decide, once; rows and commands follow the decisions.
            self._decide(moment)
            go_over(moment, self._core, self._warn)
            moment.settle()
            # 5. One transaction.
            self._commit(moment)
        except (StoreFull, StoreDown) as error:
            self._not_written(messages, error)
            return
        # 6. Only now is anybody told.
        self._tell(moment)
        if moment.change is not None:
            self._reload()  # as after a start: what decides from now on is what is on record
        self._keep_house(moment.now_ms, busy=bool(messages))

    def _now_ms(self) -> int:
        """Now; should the wall clock have been set back, as far ahead of it as what is on record."""
        return self._clock.now_ms() + self._ahead_ms

    def _stamp(self) -> int:
        before_ms, self._passed_ms = self._passed_ms, self._now_ms()
        self._away = self._away or self._passed_ms > before_ms + ASLEEP_MS
        return self._passed_ms

    def _patience_ms(self) -> int:
        now = self._now_ms()
        times = [now + IDLE_MS, self._dispatch.due_ms()]
        if not self._intake.closing:
            times.append(self._core.next_deadline_ms())
        if self._background is not None and self._roster.tasks:
            times.append(self._attended_ms + 1_000)
        return max(0, min(at_ms for at_ms in times if at_ms is not None) - now)

    def _take_in(self, moment: Moment, messages: Sequence[Message]) -> None:
        if self._away:
            self._telemetry.heard_anew(moment, self._hosts)
            self._dispatch.send_all_again()
            self._away = False
        for message in messages:
            if isinstance(message.content, Request):
                self._intake.take(moment, message.content)
            elif message.content is not None:
                self._telemetry.take(moment, message.content)
            else:
                self._unreadable(moment, message)
            moment.batch.cursors[message.stream] = message.id
            self._read_bytes += len(message.raw)
        for command in self._dispatch.overdue(moment):
            row = self._roster.sessions.get(command.session)
            if isinstance(command, Start) and row is not None and row["state"] != State.RUNNING:
                self._telemetry.vanished(moment, row, "its host did not start it in time")
        self._attend(moment)

    def _unreadable(self, moment: Moment, message: Message) -> None:
        self._warn("message-not-read", stream=message.stream, error=message.error)
        key, reply_to = map(_utf8, key_of(message.raw))
        if reply_to:
            moment.answered.append((reply_to, Answer(key=key, error="bad-input", message=message.error)))

    def _decide(self, moment: Moment) -> None:
        due_ms = self._core.next_deadline_ms()
        happened = bool(moment.batch.lines)
        if not self._intake.closing and (happened or (due_ms is not None and due_ms <= moment.now_ms)):
            step = moment.cycle()
            self._roster.lapsed(moment.batch, self._core)
            self._roster.decided(moment.batch, self._core, step.decisions)
            self._dispatch.decided(moment, step.decisions)
            self._announce(moment, step.decisions)

    def _announce(self, moment: Moment, decisions: Sequence[Decision]) -> None:
        """Tasks that tell people of these decisions."""
        if self._background is None or not decisions:
            return
        hosts = self._roster.host_by_session(decision.session for decision in decisions)
        for kind, arguments in self._background.notices(decisions, self._roster.users, hosts):
            self._roster.new_task(moment.batch, kind, arguments)

    def _attend(self, moment: Moment) -> None:
        if self._background is None or moment.now_ms < self._attended_ms + 1_000:
            return
        self._attended_ms = moment.now_ms
        for row, changes in self._background.attend(list(self._roster.tasks.values()), moment.now_ms):
            self._roster.keep_task(moment.batch, row, **changes)

    def _commit(self, moment: Moment) -> None:
        batch = moment.batch
        for row in batch.decisions:
            row["policy_version"] = self._versions.number
        if batch.lines or batch.answers or batch.settled or batch.tasks or batch.sessions:
            if batch.checkpoint is None and self._lines + len(batch.lines) >= CHECKPOINT_LINES:
                batch.checkpoint = head_line(self._core)
            self._store.commit(batch)
            self._lines = 0 if batch.checkpoint is not None else self._lines + len(batch.lines)
            self._written_ms = batch.now_ms
        elif batch.now_ms >= self._written_ms + RENEW_MS:
            self._store.renew()
            self._written_ms = batch.now_ms
        self._closing = self._intake.closing
        self._cursors.update(batch.cursors)  # messages that meant nothing may be read twice: they mean nothing again

    def _tell(self, moment: Moment) -> None:
        try:
            if moment.batch.checkpoint is not None or self._read_bytes >= TRIM_BYTES:
                self._bus.trim(self._cursors)  # first: a transport that is full takes no answer
                self._read_bytes = 0
            self._bus.answer(moment.answered)
            self._bus.send([*moment.commands, *self._dispatch.to_send(moment.now_ms)])
        except BusDown as error:
            self._lost_transport(error)

    def _keep_house(self, now_ms: int, *, busy: bool) -> None:
        """Drop what is too old, a piece at a time, while nobody waits for the loop."""
        if busy or now_ms < self._pruned_ms + PRUNE_MS:
            return
        try:
            if not self._store.prune(now_ms - KEEP_MS):
                self._pruned_ms = now_ms
        except (StoreFull, StoreDown) as error:
            self._pruned_ms = now_ms
            self._warn("not-pruned", error=error.message)

    # -- when something is away ---------------------------------------------------------------------------------------

    def _lost_transport(self, error: BusDown) -> None:
        if not self._away:
            self._warn("transport-away", error=error.message)
        self._away = True
        self._clock.sleep_ms(AWAY_MS)

    def _not_written(self, messages: Sequence[Message], error: FairTierError) -> None:
        """Nothing of this pass is on record: requests are refused and taken out of the inbox, reports read again."""
        self._warn("commit-failed", error=error.message)
        sort = "refused" if isinstance(error, Refused) else "unreachable"
        try:
            for message in messages:
                if isinstance(message.content, Request):
                    self._bus.discard(message.stream, [message.id])
                    self._bus.answer([self._verdict(message.content, error, sort)])
        except BusDown as lost:
            self._lost_transport(lost)
        self._clock.sleep_ms(AWAY_MS)
        self._reload()

    def _verdict(self, request: Request, error: FairTierError, sort: str) -> tuple[str, Answer]:
        """A commit may have happened although it failed: then what is on record is true."""
        try:
            known = self._store.answer(request.key)
        except (StoreFull, StoreDown):
            known = None
        return (request.reply_to, known) if known is not None else _refusal(request, error, sort)

    def _reload(self) -> None:
        """Load again from the truth, as long as it takes."""
        while not self._stopping:
            try:
                self._load()
            except StoreDown as error:
                self._warn("store-away", error=error.message)
                self._clock.sleep_ms(AWAY_MS)
            else:
                return

    # -- begin and end ------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Core, rows and outbox as of the last commit."""
        store = self._store
        replica = Replica(store)
        core = replica.catch_up()
        self._lines = replica.followed
        self._core = core = self._begin(core)
        self._params = None  # from here on what is on record is in force, also when it is loaded again
        self._versions = Versions(store, core)
        self._ahead_ms = max(self._ahead_ms, core.now_ms - self._clock.now_ms())
        self._cursors = store.cursors()
        self._roster = Roster(store)
        self._dispatch = Dispatch(core, self._roster, store.outbox())
        check: Check | None = self._background.check if self._background is not None else None
        self._intake = Intake(core, store, self._roster, self._dispatch, self._versions, check)
        self._intake.closing = self._closing
        self._telemetry = Telemetry(core, self._roster, self._dispatch, self._warn)
        self._away = True

    def _begin(self, old: Core | None) -> Core:
        """The core on record; an empty one; or the state on record under the policy that the start was given.

        Where the policy changes, its head begins a part of the journal; where it has no version yet, it gets one.
        """
        versions, wanted = self._store.policies(), self._params
        if old is not None and (wanted is None or wanted.to_toml() == old.params.to_toml()):
            if not versions:
                now_ms = max(old.now_ms, self._clock.now_ms())
                self._store.commit(Batch(now_ms, policies=[version_row(1, old.params, now_ms, "start")]))
            return old
        if wanted is None:
            raise FairTierError("nothing is on record yet and no policy was given", "--policy names one")
        if old is not None and not wanted_anew(wanted, versions):
            active = versions[-1]
            self._warn("policy-stays", version=active["version"], policy=active["name"], given=wanted.name)
            return old
        core = Core(make_policy(wanted), self._clock.now_ms()) if old is None else successor(old, wanted)
        head, now_ms = head_line(core), max(core.now_ms, self._clock.now_ms())
        first = [version_row(1, old.params, now_ms, "start")] if old is not None and not versions else []
        row = version_row(len(versions) + len(first) + 1, wanted, now_ms, "start")
        self._store.commit(Batch(core.now_ms, lines=[head], checkpoint=head, policies=[*first, row]))
        self._lines = 0
        return core

    def _leave(self) -> None:
        try:
            self._store.commit(Batch(self._now_ms(), checkpoint=head_line(self._core)))
        except (StoreFull, StoreDown) as error:
            self._warn("no-checkpoint", error=error.message)


def _utf8(text: str) -> str:
    """Text that can be sent; JSON can name halves of characters, which cannot."""
    return text.encode(errors="replace").decode()


def _refusal(request: Request, error: FairTierError, sort: str) -> tuple[str, Answer]:
    answer = {"key": request.key, "error": sort, "message": error.message, "hint": error.hint}
    return request.reply_to, Answer.model_validate(answer)
