"""A service among hosts, people, a transport and a disk that all fail at random; the same for the same seed.

`World.run` goes through a phase of faults and a phase of healing, and checks after every step what must always hold.
Hosts obey as a worker does: each action once, answered again when it comes again, the end of a session told until it
is forgotten.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from policies.model import State
from policies.params import HeadroomParams, LadderParams, Params, TelemetryParams, TierParams, UsageParams
from scheduler import journal
from scheduler.adapters.memory import MemoryStore
from scheduler.adapters.memory_bus import MemoryBus
from scheduler.checkpoint import dump
from scheduler.ports import Batch, StoreDown, StoreFull
from scheduler.replica import Replica
from scheduler.requests import (
    Act,
    Activate,
    Answer,
    Pardon,
    Ping,
    Request,
    Restrict,
    Rollback,
    SetHost,
    SetUser,
    Submit,
)
from scheduler.service import Service
from workers.protocol import Forget, Notice, Report, Result, SessionReport, Start, Stop, Throttle, encode

if TYPE_CHECKING:
    from scheduler.ports import HostCommand

QUICK = Params(
    usage=UsageParams(half_life_h=500.0, idle_charge=0.0),  # nothing is forgotten within a run: usage is what was busy
    tiers={"free": TierParams(baseline_gpus=0.00001)},  # and the credit is that of 26 GPU-seconds all the same
    headroom=HeadroomParams(fixed_gpus=0),
    ladder=LadderParams(
        contention_ms=0, warn_ms=2_000, throttle_step_ms=2_000, grace_ms=3_000, recover_ms=2_000, min_run_ms=4_000
    ),
    telemetry=TelemetryParams(report_ms=1_000, stale_ms=5_000, lost_ms=15_000),
)
USERS = ("u1", "u2", "u3", "u4")
REPEAT_MS = 60_000
STRANGERS_GONE = 24
"""Steps of healing after which no host runs what has ended on record; from then on sessions end by themselves."""
UNTOLD = ("refused", "unreachable")


class Crash(BaseException):
    """The scheduler is killed at this point."""


class Clock:
    """Time that the world moves."""

    def __init__(self) -> None:
        self.at = 10_000_000_000
        self.behind = 0

    def now_ms(self) -> int:
        return self.at - self.behind

    def sleep_ms(self, duration_ms: int) -> None:
        self.at += duration_ms


class FlakyStore(MemoryStore):
    """The next commit may fail: before anything is written, or after all of it was."""

    fail = ""
    committed: ClassVar[dict[str, str]] = {}

    def commit(self, batch: Batch) -> None:
        fail, self.fail = self.fail, ""
        if fail == "full":
            raise StoreFull("the disk is full")
        if fail == "before":
            raise StoreDown("the disk is away")
        super().commit(batch)
        self.committed = self.cursors()
        if fail == "after":
            raise StoreDown("the disk went away while it wrote")
        if fail == "crash":
            raise Crash


class FlakyBus(MemoryBus):
    """The scheduler may be killed before it tells, and between its answers and its commands."""

    fail = ""

    def _maybe(self, where: str) -> None:
        if self.fail == where:
            self.fail = ""
            raise Crash

    def answer(self, answers: Iterable[tuple[str, Answer]]) -> None:
        self._maybe("answer")
        super().answer(answers)

    def send(self, commands: Iterable[tuple[str, HostCommand]]) -> None:
        self._maybe("send")
        super().send(commands)


class RandomHost:
    """A host: it obeys, computes, and tells what it knows."""

    def __init__(self, name: str, gpus: int, chance: random.Random) -> None:
        self.name, self.gpus, self.chance = name, gpus, chance
        self.boot, self.epoch, self.seq, self.silent_until = 1, 1, 0, 0
        self.sessions: dict[str, dict[str, Any]] = {}
        self.done: dict[str, Result] = {}
        self.results: dict[str, Result] = {}
        self.repeated: list[tuple[int, Result]] = []
        self.ran: Counter[str] = Counter()
        self.final: dict[str, tuple[int, int]] = {}
        self.ended_by: dict[str, str] = {}
        self.quick = self.forgetful = self.lost_disk = False

    # -- commands --------------------------------------------------------------------------------------------------

    def obey(self, command: HostCommand, now: int) -> None:
        known = self.done.get(command.action)
        if known is not None and not self.forgetful:
            self.results[command.action] = known
            return
        result = "expired" if now > command.expires_ms else self._do(command, now)
        self.done[command.action] = self.results[command.action] = Result(action=command.action, result=result)

    def _do(self, command: HostCommand, now: int) -> Any:
        session = self.sessions.get(command.session)
        if isinstance(command, Start):
            self._start(command, session, now)
        elif isinstance(command, Stop):
            self._stop(command, session, now)
        elif session is None:
            return "done" if isinstance(command, Forget) else "failed"
        elif isinstance(command, Forget):
            if session["state"] == "running":
                return "failed"
            del self.sessions[command.session]
        elif isinstance(command, Throttle) and session["state"] == "running":
            self._count(session, now)
            session["m"] = command.granted_m
            session["lapse"] = now + command.lease_ms
        elif isinstance(command, Notice):
            session["level"] = command.level
            session["saved"] = command.level == "grace" and self.chance.random() < 0.3
        return "done"

    def _start(self, command: Start, session: dict[str, Any] | None, now: int) -> None:
        if session is not None and not self.forgetful:
            return
        self.ran[command.session] += 1
        heavy = self.chance.random() < 0.7
        self.sessions[command.session] = {
            "state": "running",
            "at": now,
            "until": now + self.chance.choice((100, 2_000, 20_000, 90_000)),
            "busy": 0,
            "granted": 0,
            "m": command.fraction_m,
            "whole": command.fraction_m,
            "n": len(command.gpus),
            "load": 1 if heavy else 0,
            "stop": None,
            "lapse": None,
            "saved": False,
            "level": "",
            "outcome": None,
        }

    def _stop(self, command: Stop, session: dict[str, Any] | None, now: int) -> None:
        if session is None:
            empty = {"state": "ended", "outcome": command.outcome, "busy": 0, "granted": 0, "m": 1000, "saved": False}
            self.sessions[command.session] = empty
        elif session["state"] == "running" and session["stop"] is None:
            wait_ms = self.chance.choice((0, command.wait_ms // 2, command.wait_ms))
            session["stop"] = (now + wait_ms, command.outcome)

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        for sid, session in self.sessions.items():
            if session["state"] == "running":
                self._tick(sid, session, now)

    def _tick(self, sid: str, session: dict[str, Any], now: int) -> None:
        if session["lapse"] is not None and now >= session["lapse"]:
            self._count(session, session["lapse"])
            session["m"], session["lapse"] = session["whole"], None
        if self.quick:
            session["until"] = min(session["until"], now + 3_000)
        end, outcome = session["until"], self.chance.choice(("completed", "failed"))
        if session["stop"] is not None and session["stop"][0] <= end:
            end, outcome = session["stop"]
        self._count(session, min(now, max(end, session["at"])))
        if now >= end:
            session["state"], session["outcome"] = "ended", outcome
            self.final[sid] = (session["busy"], session["granted"])
            self.ended_by[sid] = outcome

    @staticmethod
    def _count(session: dict[str, Any], now: int) -> None:
        granted = (now - session["at"]) * session["n"] * session["m"] // 1000
        session["granted"] += granted
        session["busy"] += granted * session["load"]
        session["at"] = now

    # -- what goes wrong with it -------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Its worker dies and starts again: sessions go on, news that were not written down are told again."""
        self.epoch, self.seq = self.epoch + 1, 0

    def reboot(self, now: int) -> None:
        """Every process is gone; the worker notes that when it is back."""
        self.boot += 1
        self.restart()
        for sid, session in self.sessions.items():
            if session["state"] == "running":
                self._count(session, now)
                session["state"], session["outcome"] = "ended", "failed"
                self.final[sid] = (session["busy"], session["granted"])
                self.ended_by[sid] = "failed"

    def amnesia(self, now: int) -> None:
        """It lost its disk, and its processes with it."""
        self.lost_disk = True
        self.reboot(now)
        for sid in self.sessions:
            self.final.pop(sid, None)
        self.sessions.clear()
        self.results.clear()
        self.repeated.clear()

    # -- reports ----------------------------------------------------------------------------------------------------

    def report(self, now: int, *, full: bool) -> bytes:
        self.seq += 1
        names = list(self.sessions) if full else self.chance.sample(sorted(self.sessions), len(self.sessions) // 2)
        self.repeated = [(at, result) for at, result in self.repeated if now - at < REPEAT_MS]
        again = [result for _, result in self.repeated] if full else []
        results, self.results = list(self.results.values()), {}
        self.repeated += [(now, result) for result in results]
        return encode(
            Report(
                host=self.name, boot=str(self.boot), epoch=self.epoch, seq=self.seq, sent_ms=now, full=full,
                gpus=self.gpus, sessions=tuple(self._said(sid) for sid in names), results=(*results, *again)[:500],
            )
        )  # fmt: skip

    def _said(self, sid: str) -> SessionReport:
        session = self.sessions[sid]
        return SessionReport(
            session=sid,
            state=session["state"],
            outcome=session["outcome"],
            exit_code={"completed": 0, "failed": 1}.get(session["outcome"] or ""),
            busy_ms=session["busy"],
            granted_ms=session["granted"],
            known=self.chance.random() < 0.9,
            saved=session["saved"],
            granted_m=session["m"],
        )


class World:
    """See the module's docstring.

    Attributes:
        params: the command line's policies, one of them at each restart; others: what people activate.
        told: answers by key, as people heard them.
        accepted: sessions that somebody was told of.
    """

    def __init__(
        self, seed: int, *, params: tuple[Params, ...] = (QUICK,), others: tuple[Params, ...] = (), events: bool = True
    ) -> None:
        self.seed, self.params_list, self.params = seed, params, params[0]
        self.others = others
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.store = FlakyStore(self.clock.now_ms)
        self.bus = FlakyBus()
        self.hosts = {name: RandomHost(name, gpus, self.chance) for name, gpus in (("h1", 2), ("h2", 1))}
        self.ordered = self.chance.random() < 0.7
        self.latest: dict[str, int] = {}
        self.down: list[tuple[int, str, HostCommand]] = []
        self.up: list[tuple[int, str, bytes]] = []
        self.waiting: dict[str, tuple[int, bytes]] = {}
        self.operations: dict[str, Any] = {}
        self.told: dict[str, list[Answer]] = {}
        self.accepted: set[str] = set()
        self.ends: dict[str, dict[str, Any]] = {}
        self.starts: dict[str, set[str]] = {}
        self.checked = 0
        self.issued: dict[tuple[str, str], int] = {}
        self.crashes = 0
        self.faulty = False
        self.keys = 0
        self.warnings: list[str] = []
        self.replica = Replica(self.store)
        self.events = events
        self.restart()
        for host in self.hosts.values():
            self.bus.report(host.report(self.clock.at, full=True), host.name)
        self.turn()
        for user in USERS:
            self.ask(SetUser(user=user))
        self.turn()
        self.collect()

    # -- the service --------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        self.store.lead("test")
        self.store.fail = self.bus.fail = ""
        self.service = Service(self.store, self.bus, self.clock, self.params, self._warn)
        self.crashes += 1

    def _warn(self, event: str, **members: Any) -> None:
        self.warnings.append(f"{event} {members}")

    def turn(self) -> None:
        try:
            self.service.turn()
        except Crash:
            self.restart()
            self.service.turn()

    # -- people -------------------------------------------------------------------------------------------------------

    def ask(self, operation: Any, key: str | None = None) -> None:
        if key is None:
            self.keys += 1
            key = f"key-{self.keys:06}"
        self.operations[key] = operation
        reply_to = f"ft:reply:{self.chance.randrange(2)}"
        raw = Request(key=key, reply_to=reply_to, by="tests", operation=operation).model_dump_json().encode()
        self.waiting[key] = (self.clock.at, raw)
        self._post(raw)
        if self.faulty and self.chance.random() < 0.1:
            if isinstance(operation, Submit) and operation.user == "new":
                self.ask(SetUser(user="new"))  # between the two copies the refused becomes possible
            self._post(raw)

    def _post(self, raw: bytes) -> None:
        if not self.bus.down:
            self.bus.post(raw)

    def collect(self) -> None:
        """People hear their answers; those who hear nothing for a second ask again with the same key."""
        answered, self.bus.answered = self.bus.answered, []
        for _, answer in answered:
            if self.faulty and self.chance.random() < 0.1:
                continue
            self.told.setdefault(answer.key, []).append(answer)
            self.waiting.pop(answer.key, None)
            session = answer.body.get("session", {}).get("session")
            if session and not answer.error:
                self.accepted.add(session)
        for key, (at, raw) in list(self.waiting.items()):
            if self.clock.at - at >= 1_000:
                self.waiting[key] = (self.clock.at, raw)
                self._post(raw)

    def act(self) -> None:
        """Somebody wants something."""
        chance = self.chance
        live = [row["session"] for row in self.store.sessions() if row["state"] != "ended"]
        if self.others and chance.random() < 0.1:
            toml = chance.choice((QUICK, *self.others)).to_toml()
            self.ask(chance.choice((Activate(toml=toml), Activate(toml=toml), Rollback())))
            return
        what = chance.random()
        if what < 0.45 and len(live) < 14:
            fraction = chance.choice((1.0, 1.0, 0.5, 0.8, 0.3))
            gpus = 2 if fraction == 1 and chance.random() < 0.15 else 1
            self.ask(Submit(user=chance.choice(USERS), argv=("true",), gpus=gpus, fraction=fraction))
        elif what < 0.75 and live:
            op = chance.choice(("cancel", "hold", "unhold", "evict", "unhold"))
            self.ask(Act(op=op, session=chance.choice(live)))
        elif what < 0.8:
            self.ask(SetHost(op=chance.choice(("drain", "resume", "resume")), host=chance.choice(("h1", "h2"))))
        elif what < 0.85:
            self.ask(SetUser(user=chance.choice((*USERS, "new")), shares=chance.choice((0.5, 1.0, 3.0))))
        elif what < 0.9:
            self.ask(Submit(user="new", argv=("true",)))
        elif self.operations and what < 0.97:
            key = chance.choice(sorted(self.operations))
            self.ask(self.operations[key], key)
        elif what < 0.985:
            user = chance.choice(USERS)
            self.ask(chance.choice((Restrict(user=user), Restrict(user=user, for_s=5), Pardon(user=user))))
        else:
            self.ask(Ping())

    # -- transport ----------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        sent, self.bus.sent = self.bus.sent, []
        for host, command in sent:
            if isinstance(command, Start):
                self.starts.setdefault(command.session, set()).add(command.action)
                assert command.session not in self.ends, f"a start of {command.session} was sent after its end"
            for late_ms in self._copies():
                self.down.append((self._in_order(host, late_ms), host, command))
        due = [entry for entry in self.down if self._arrives(*entry[:2])]
        self.down = [entry for entry in self.down if not self._arrives(*entry[:2])]
        for _, host, command in sorted(due, key=lambda entry: entry[0]):
            self._check_order(self.hosts[host], command)
            self.hosts[host].obey(command, self.clock.at)

    def _arrives(self, at: int, host: str) -> bool:
        return at <= self.clock.at >= self.hosts[host].silent_until

    def _in_order(self, host: str, late_ms: int) -> int:
        """When a command arrives; in order where this world's transport keeps it, as a stream does."""
        at = self.clock.at + late_ms
        if self.ordered:
            at = self.latest[host] = max(at, self.latest.get(host, 0))
        return at

    def _copies(self) -> list[int]:
        """When a message arrives, and how often: usually once and at once."""
        if not self.faulty:
            return [0]
        what = self.chance.random()
        if what < 0.1:
            return []
        if what < 0.2:
            return [0, self.chance.choice((0, 1_500))]
        return [self.chance.choice((300, 2_000, 6_000))] if what < 0.35 else [0]

    def report(self, host: RandomHost, *, full: bool) -> None:
        if host.silent_until > self.clock.at:
            return
        raw = host.report(self.clock.at, full=full)
        self.up += [(self.clock.at + late_ms, host.name, raw) for late_ms in self._copies()]

    def pass_on(self) -> None:
        due = [entry for entry in self.up if entry[0] <= self.clock.at]
        self.up = [entry for entry in self.up if entry[0] > self.clock.at]
        for _, host, raw in due:
            if not self.bus.down:
                self.bus.report(raw, host)

    # -- a run ---------------------------------------------------------------------------------------------------------

    def run(self, steps: int = 50) -> None:
        self.faulty = True
        for _ in range(steps):
            self.step()
        self.heal()

    def step(self) -> None:
        chance = self.chance
        self.clock.at += chance.choice((0, 50, 200, 200, 1_000, 1_000, 3_000))
        for host in self.hosts.values():
            host.tick(self.clock.at)
            if chance.random() < 0.6:
                self.report(host, full=chance.random() < 0.6)
        for _ in range(chance.choice((0, 0, 1, 2))):
            self.act()
        self._misfortune()
        self._go()

    def _go(self) -> None:
        self.pass_on()
        self.turn()
        self.deliver()
        self.collect()
        self.check()

    def _misfortune(self) -> None:
        chance = self.chance
        host = self.hosts[chance.choice(("h1", "h2"))]
        what = chance.random()
        if what < 0.03:
            self.bus.wipe()
        elif what < 0.06:
            self.params = chance.choice(self.params_list)
            self.restart()
        elif what < 0.09:
            self.store.fail = chance.choice(("full", "before", "after", "crash"))
        elif what < 0.12:
            self.bus.fail = chance.choice(("answer", "send"))
        elif what < 0.14:
            host.restart()
        elif what < 0.16:
            self.up = [
                entry for entry in self.up if entry[1] != host.name
            ]  # what was under way is gone with its kernel
            (host.reboot if what < 0.15 else host.amnesia)(self.clock.at)
        elif what < 0.18:
            host.silent_until = self.clock.at + chance.choice((3_000, 8_000, 25_000, 70_000))
        elif what < 0.20:
            self.bus.down = True
        elif what < 0.205:
            self._nap(chance.choice((12_000, 60_000)))
        elif what < 0.21:
            self._set_clock_back()
        elif what < 0.22:
            self._post(
                chance.choice((b"{", b'{"key":"\\ud800key-0001","reply_to":"ft:reply:\\ud800"}', b"\xff", b"[]"))
            )
        elif what < 0.35:
            self.bus.down = False

    def _nap(self, duration_ms: int) -> None:
        """All of the machine is suspended for a while: nobody may be lost for that."""
        lost = self.service._core.view.lost_hosts.copy()
        late = self.clock.at - min(self.service._core.hosts.reported_ms.values())
        self.clock.at += duration_ms
        self.turn()
        assert self.bus.down or late > 12_000 or self.service._core.view.lost_hosts <= lost, "a nap lost a host"

    def _set_clock_back(self) -> None:
        """The scheduler is killed, and started again with an earlier wall clock; the world's own goes on."""
        self.clock.behind += self.chance.choice((1_000, 3_600_000))
        self.restart()

    def heal(self) -> None:
        """Nothing fails any more and everybody finishes: then everything accepted comes to its end."""
        self.faulty = self.bus.down = False
        self.store.fail = self.bus.fail = ""
        for host in self.hosts.values():
            host.silent_until = 0
        for number in range(200):
            self.clock.at += 500
            for host in self.hosts.values():
                host.tick(self.clock.at)
                if number % 2:
                    self.report(host, full=True)
            if number == STRANGERS_GONE:
                self._check_strangers()
            if number % 10 == 0:
                for name in self.hosts:  # again: a request of before, told again, may come after it
                    self.ask(SetHost(op="resume", host=name))
                for user in USERS:
                    self.ask(Pardon(user=user))
                for row in self.store.sessions(states=("held",)):
                    self.ask(Act(op="unhold", session=row["session"]))
            self._go()
            if self._at_rest(number):
                return
        left = [(row["session"], row["state"], row["ladder"]) for row in self.store.sessions() if not row["ended_ms"]]
        told = [self.operations[key] for key in self.waiting]
        known = {name: list(host.sessions) for name, host in self.hosts.items()}
        outbox = [row["action"] for row in self.store.outbox()]
        raise AssertionError(f"no rest: {left}, not answered {told}, on hosts {known}, outbox {outbox}")

    def _at_rest(self, number: int) -> bool:
        if number < 10 or self.waiting or any(host.sessions for host in self.hosts.values()) or self.store.outbox():
            return False
        if any(row["state"] != "ended" for row in self.store.sessions()):
            return False
        self.check_at_the_end()
        return True

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every step."""
        core = self.service._core
        core.validate()
        self.checked += 1
        followed = self.replica.catch_up()
        assert followed is not None
        if self.checked % 4 == 0:  # it takes longer than all the rest
            assert dump(followed) | {"now_ms": 0} == dump(core) | {"now_ms": 0}, "memory is not what the journal says"
        assert self.store.cursors() == self.store.committed, "a cursor moved without what it caused"
        self._check_rows()
        self._check_ends()
        for host in self.hosts.values():
            assert max(host.ran.values(), default=0) <= 1, f"a session ran twice: {host.ran}"
        for sid, actions in self.starts.items():
            assert len(actions) == 1, f"{sid} was started by several commands: {actions}"
        on_record = self.store.data.commands
        for sid, actions in self.starts.items():
            assert actions <= set(on_record), f"{sid} was started by a command that is not on record"

    def _check_order(self, host: RandomHost, command: HostCommand) -> None:
        """A host never hears an older notice, or change of a grant, after a newer one of the same session."""
        if command.kind == "forget":
            row = self.store.session(command.session)
            assert row is None or row["state"] == "ended", f"{command.session} is forgotten before its end is on record"
        if command.action in host.done or not self.ordered:
            return
        if command.kind in ("notice", "throttle") and ":renew:" not in command.action:
            about = (command.session, command.kind)
            assert command.issued_ms >= self.issued.get(about, 0), f"{command.action} came after a newer one"
            self.issued[about] = command.issued_ms

    def _check_strangers(self) -> None:
        ended = {row["session"] for row in self.store.sessions() if row["state"] == "ended"}
        for host in self.hosts.values():
            host.quick = True
            running = {sid for sid, session in host.sessions.items() if session["state"] == "running"}
            assert not running & ended, f"{host.name} still runs {sorted(running & ended)}, which have ended"

    def _check_rows(self) -> None:
        core = self.service._core
        live = {row["session"]: row for row in self.store.sessions() if row["state"] != "ended"}
        assert set(live) == set(core.sessions), f"rows {sorted(live)}, core {sorted(core.sessions)}"
        for sid, session in core.sessions.items():
            row, held = live[sid], session.allocation
            placed = None if held is None else [[host, list(gpus)] for host, gpus in held.parts]
            found = (row["state"], row["ladder"], row["granted_m"], row["allocation"] and json.loads(row["allocation"]))
            assert found == (session.state.value, session.ladder.value, session.granted_m, placed), f"{sid}: {found}"
            assert row["started_ms"] is None or session.start_ms == row["started_ms"], sid
            if session.state in (State.STARTING, State.RUNNING):
                assert row["ending"] is None, f"{sid} is {session.state} and to end {row['ending']}"
        users = {row["user"]: row["restricted_until_ms"] or 0 for row in self.store.users()}
        assert users.keys() == core.ledger.users.keys()
        for name, user in core.ledger.users.items():
            until, now = user.restricted_until_ms, core.now_ms
            assert users[name] == until or max(users[name], until) <= now, f"{name} is restricted until {until}"
        drained = {row["host"] for row in self.store.hosts() if row["drained"]}
        assert drained == core.view.drained_hosts

    def _check_ends(self) -> None:
        for row in self.store.sessions():
            if row["state"] != "ended":
                assert row["ended_ms"] is None
                continue
            assert row["outcome"], f"{row['session']} ended without an outcome"
            assert self.ends.setdefault(row["session"], row) == row, f"{row['session']} ended twice"

    def check_at_the_end(self) -> None:
        """When everything has come to rest."""
        rows = {row["session"]: row for row in self.store.sessions()}
        assert self.accepted <= set(rows), "a session that was accepted is not on record"
        lines = list(self.store.journal())
        assert all(isinstance(line, int) for line in journal.replay(lines, "journal")), (
            "the journal replays differently"
        )
        self._check_answers(rows)
        self._check_counters(rows)
        self._check_versions()
        for sid, row in rows.items():
            ran = sum(host.ran[sid] for host in self.hosts.values())
            for host in self.hosts.values():
                forgot = row["error"].endswith("does not know it any more") and host.name in row["error"]
                assert not (forgot and host.ran[sid] and not host.lost_disk), f"{sid}'s end was lost: {row['error']}"
            if row["outcome"] == "completed":
                assert ran == 1, f"{sid} is on record as completed and ran {ran} times"

    def _check_versions(self) -> None:
        """One version for each part of the journal, and decisions by the version that was in force."""
        versions = self.store.policies()
        heads = [entry["policy"] for entry in map(json.loads, self.store.journal()) if "journal" in entry]
        toml = [row["toml"] for row in versions]
        assert heads[-1] == toml[-1], "the policy in force is not the newest version"
        assert toml[len(toml) - len(heads) :] == heads[-len(toml) :], "parts of the journal without a version"
        by = [row["policy_version"] for row in self.store.decisions()]
        assert by == sorted(by), "a decision has the version of another time"
        assert set(by) <= {row["version"] for row in versions}

    def _check_answers(self, rows: dict[str, dict[str, Any]]) -> None:
        """What was told is what is on record, but for refusals because nothing could be written."""
        asked_for = Counter()
        for key in sorted(set(self.told) & set(self.operations)):
            answers = self.told[key]
            recorded = self.store.answer(key)
            for answer in answers:
                if answer.message in ("the disk is full", "the disk is away"):
                    continue
                assert answer == recorded, f"{key}: told {answer}, on record {recorded}"
            accepted = recorded is not None and not recorded.error and "session" in recorded.body
            if accepted and isinstance(self.operations[key], Submit):
                asked_for[recorded.body["session"]["session"]] += 1
        assert set(asked_for) == set(rows), "sessions nobody asked for, or requests without a session"
        assert max(asked_for.values(), default=1) == 1, "two keys became one session"

    def _check_counters(self, rows: dict[str, dict[str, Any]]) -> None:
        """Rows have the host's last counters, and the ledger has their sum."""
        busy, slack = Counter(), Counter()
        for sid, row in rows.items():
            busy[row["user"]] += row["busy_ms"]
            final = [host.final[sid] for host in self.hosts.values() if sid in host.final]
            by_report = row["outcome"] != "lost" and not row["error"]
            if self.ordered and by_report and row["started_ms"] is not None and final:
                assert (row["busy_ms"], row["granted_ms"]) == final[0], f"{sid}: {row} measured {final}"
            elif row["started_ms"] is not None:
                slack[row["user"]] += (row["ended_ms"] - row["started_ms"]) * row["gpus"]
        if len(self.params_list) > 1 or self.others:
            return  # another policy has another price, and what was charged ahead at that moment stays so
        core = self.service._core
        for name, user in core.ledger.users.items():
            usage_ms = core.view.clock.usage(user) * 3_600_000
            assert busy[name] * 0.999 - 5 <= usage_ms <= busy[name] + slack[name] + 5, (
                f"{name} is charged {usage_ms:.0f} GPU-ms, hosts measured {busy[name]} (+ {slack[name]})"
            )
