"""The service on the adapters in memory: requests and reports in, one commit, answers and commands out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from policies.limits import FOR_EVER_MS
from policies.params import HeadroomParams, LadderParams, Params, TelemetryParams, TierParams, UsageParams
from scheduler import journal, service
from scheduler.adapters.memory import MemoryStore
from scheduler.adapters.memory_bus import MemoryBus
from scheduler.dispatch import LEASE_MS
from scheduler.ports import Batch, BusDown, StoreDown, StoreFull
from scheduler.requests import (
    Act,
    Answer,
    Close,
    Pardon,
    Ping,
    Plan,
    Request,
    Restrict,
    SetHost,
    SetUser,
    Submit,
    Unplan,
)
from scheduler.service import Service
from workers.protocol import Notice, Report, Result, SessionReport, Start, Stop, Throttle, encode

QUICK = Params(
    usage=UsageParams(half_life_h=0.05),
    tiers={"free": TierParams(baseline_gpus=0.1)},
    headroom=HeadroomParams(fixed_gpus=0),
    ladder=LadderParams(contention_ms=0, warn_ms=2_000, throttle_step_ms=2_000, grace_ms=3_000, min_run_ms=4_000),
    telemetry=TelemetryParams(report_ms=1_000, stale_ms=5_000, lost_ms=15_000),
)
"""Credit of 26 GPU-seconds a user; steps of seconds."""


class HandClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.at = 1_000_000

    def now_ms(self) -> int:
        return self.at

    def sleep_ms(self, duration_ms: int) -> None:
        self.at += duration_ms


class Host:
    """A host that obeys at once, and reports what it does."""

    def __init__(self, name: str, gpus: int) -> None:
        self.name, self.gpus = name, gpus
        self.epoch, self.seq = 1, 0
        self.running: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, tuple[str, int | None]] = {}
        self.results: list[Result] = []
        self.seen: set[str] = set()
        self.notices: list[Notice] = []
        self.starts: list[str] = []
        self.load = 1.0

    def obey(self, command: Any, now: int) -> None:
        if command.action in self.seen:
            return
        self.seen.add(command.action)
        self.results.append(Result(action=command.action, result="done"))
        sid = command.session
        if isinstance(command, Start):
            self.starts.append(sid)
            self.running[sid] = {
                "at": now,
                "busy": 0.0,
                "granted": 0.0,
                "m": command.fraction_m,
                "n": len(command.gpus),
            }
        elif isinstance(command, Stop) and sid in self.running:
            self.end(sid, command.outcome, None)
        elif isinstance(command, Throttle) and sid in self.running:
            self.running[sid]["m"] = command.granted_m
        elif isinstance(command, Notice):
            self.notices.append(command)
        elif command.kind == "forget":
            self.ended.pop(sid, None)

    def end(self, sid: str, outcome: str, code: int | None) -> None:
        self.last = self.running.pop(sid)
        self.ended[sid] = (outcome, code)

    def report(self, now: int, *, full: bool = True) -> bytes:
        self.seq += 1
        said = []
        for sid, state in self.running.items():
            granted = (now - state["at"]) * state["n"] * state["m"] / 1000
            state["granted"] += granted
            state["busy"] += granted * self.load
            state["at"] = now
            said.append(
                SessionReport(
                    session=sid,
                    state="running",
                    busy_ms=int(state["busy"]),
                    granted_ms=int(state["granted"]),
                    known=True,
                    granted_m=state["m"],
                )
            )
        for sid, (outcome, code) in self.ended.items():
            last = self.last
            said.append(
                SessionReport(
                    session=sid, state="ended", outcome=outcome, exit_code=code,
                    busy_ms=int(last["busy"]), granted_ms=int(last["granted"]), known=True,
                )
            )  # fmt: skip
        results, self.results = tuple(self.results), []
        return encode(
            Report(
                host=self.name, boot="b", epoch=self.epoch, seq=self.seq, sent_ms=now, full=full, gpus=self.gpus,
                sessions=tuple(said), results=results,
            )
        )  # fmt: skip


class House:
    """Service, hosts and the people who ask, on one clock."""

    def __init__(self, *hosts: Host, params: Params = QUICK, store: Any = None) -> None:
        self.clock = HandClock()
        self.store = store or MemoryStore(self.clock.now_ms)
        self.store.lead("test")
        self.bus = MemoryBus()
        self.params = params
        self.warnings: list[tuple[str, dict[str, Any]]] = []
        self.hosts = {host.name: host for host in hosts or (Host("h1", 2),)}
        self.keys = 0
        self.listened: tuple[str, ...] | None = None
        self.restart()
        for host in self.hosts.values():
            self.bus.report(host.report(self.clock.at), host.name)
        self.turn()
        for user in ("ann", "bob"):
            assert not self.ask(SetUser(user=user)).error

    def restart(self) -> None:
        """The scheduler was killed and starts again on what is on record."""
        self.service = Service(self.store, self.bus, self.clock, self.params, self._warn, None, self.listened)

    def _warn(self, event: str, **members: Any) -> None:
        self.warnings.append((event, members))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.service.turn()
            self.deliver()

    def deliver(self) -> None:
        sent, self.bus.sent = self.bus.sent, []
        for host, command in sent:
            if host in self.hosts:
                self.hosts[host].obey(command, self.clock.at)

    def post(self, operation: Any, key: str | None = None) -> str:
        self.keys += 1
        key = key or f"key-{self.keys:06}"
        self.bus.post(
            Request(key=key, reply_to="ft:reply:t", by="tests", operation=operation).model_dump_json().encode()
        )
        return key

    def ask(self, operation: Any, key: str | None = None) -> Answer:
        key = self.post(operation, key)
        self.turn()
        return self.answer(key)

    def answer(self, key: str) -> Answer:
        return next(answer for _, answer in reversed(self.bus.answered) if answer.key == key)

    def submit(self, user: str, **asked: Any) -> str:
        answer = self.ask(Submit(user=user, argv=("true",), **asked))
        assert not answer.error, answer.message
        return str(answer.body["session"]["session"])

    def seconds(self, count: float, *, silent: tuple[str, ...] = ()) -> None:
        """Time goes by in steps of 200 ms, with a full report of each host a second."""
        for step in range(int(count * 5)):
            self.clock.at += 200
            if step % 5 == 4:
                for host in self.hosts.values():
                    if host.name not in silent and not self.bus.down:
                        self.bus.report(host.report(self.clock.at), host.name)
            self.turn(2)

    def row(self, sid: str) -> dict[str, Any]:
        row = self.store.session(sid)
        assert row is not None
        return row

    def user(self, name: str) -> dict[str, Any]:
        return next(row for row in self.store.users() if row["user"] == name)

    def usage_gpu_s(self, user: str) -> float:
        core = self.service._core
        return core.view.clock.usage(core.ledger.users[user]) * 3600


@pytest.fixture
def house() -> Iterator[House]:
    """Two GPUs on one host, users ann and bob; afterwards the whole journal is run again and must decide the same."""
    made = House()
    yield made
    lines = list(made.store.journal())
    outcome = list(journal.replay(lines, "journal"))
    assert all(isinstance(line, int) for line in outcome)


def test_a_session_is_accepted_started_and_ends_with_its_exit_code(house: House) -> None:
    """From request to end: the answer comes with the commit, rows and ledger follow the host's reports."""
    sid = house.submit("ann")
    assert house.row(sid)["state"] == "starting"
    house.seconds(2)
    assert house.row(sid)["state"] == "running"
    house.hosts["h1"].end(sid, "completed", 0)
    house.seconds(2)
    row = house.row(sid)
    assert (row["state"], row["outcome"], row["exit_code"]) == ("ended", "completed", 0)
    assert not house.hosts["h1"].ended  # its end is on record, so it was forgotten there
    assert house.usage_gpu_s("ann") == pytest.approx(2, abs=1)


def test_one_key_is_one_session(house: House) -> None:
    """A request told three times, the last one after a restart, is done once and answered three times alike."""
    first = house.ask(Submit(user="ann", argv=("true",)), "the-same-key")
    second = house.ask(Submit(user="ann", argv=("true",)), "the-same-key")
    house.restart()
    third = house.ask(Submit(user="ann", argv=("true",)), "the-same-key")
    assert first.body["session"]["session"] == second.body["session"]["session"] == third.body["session"]["session"]
    assert len(house.store.sessions()) == 1
    assert house.hosts["h1"].starts == ["s-1"]


def test_a_heavy_session_is_warned_given_grace_and_evicted_for_a_waiter(house: House) -> None:
    """Both GPUs are ann's; once her credit is gone and bob waits: warn, grace for its whole time, evict, bob starts."""
    sids = [house.submit("ann"), house.submit("ann")]
    house.seconds(20)
    waiting = house.submit("bob")
    assert house.row(waiting)["state"] == "queued"
    house.seconds(12)
    assert house.row(waiting)["state"] == "running"
    ended = [sid for sid in sids if house.row(sid)["outcome"] == "evicted"]
    assert len(ended) == 1
    steps = {row["action"]: row["at_ms"] for row in house.store.decisions(session=ended[0])}
    assert steps["grace"] - steps["warn"] >= 2_000
    assert 3_000 <= steps["evict"] - steps["grace"] < 4_500
    levels = [notice.level for notice in house.hosts["h1"].notices if notice.session == ended[0]]
    assert levels[-3:] == ["warn", "grace", "evict"]


def test_a_shared_gpu_is_throttled_and_the_lease_renewed() -> None:
    """Most of the only GPU is ann's and bob wants a half: she is throttled, and the throttle goes on being sent."""
    house = House(Host("h1", 1))
    big = house.submit("ann", fraction=0.8)
    house.seconds(36)
    house.submit("bob", fraction=0.5)
    house.seconds(6)
    assert house.row(big)["ladder"] == "throttle"
    assert house.hosts["h1"].running[big]["m"] < 800
    house.bus.sent.clear()
    house.clock.at += LEASE_MS // 3
    house.service.turn()
    assert [c.granted_m for _, c in house.bus.sent if isinstance(c, Throttle)] == [house.row(big)["granted_m"]]


def test_everything_survives_a_killed_scheduler_and_a_wiped_transport(house: House) -> None:
    """Killed after the commit and before the command was sent, and the server wiped: the start still arrives, once."""
    house.post(Submit(user="ann", argv=("true",)))
    house.service.turn()  # committed and sent ...
    house.bus.sent.clear()  # ... and lost
    house.bus.wipe()
    house.restart()
    house.seconds(2)
    assert house.row("s-1")["state"] == "running"
    assert house.hosts["h1"].starts == ["s-1"]


def test_a_command_that_was_lost_is_sent_again(house: House) -> None:
    """The start went out and was wiped, nobody noticed: it is sent again within seconds, and obeyed once."""
    house.post(Submit(user="ann", argv=("true",)))
    house.service.turn()
    assert house.bus.sent
    house.bus.sent.clear()
    house.seconds(3)
    assert house.row("s-1")["state"] == "running"
    assert house.hosts["h1"].starts == ["s-1"]


def test_nothing_is_lost_while_the_transport_is_away(house: House) -> None:
    """A minute without transport: no host is declared lost, no session either."""
    sid = house.submit("ann")
    house.seconds(2)
    house.bus.down = True
    house.seconds(60)
    house.bus.down = False
    house.seconds(3)
    assert house.row(sid)["state"] == "running"
    assert not house.service._core.view.lost_hosts


def test_a_full_disk_refuses_and_forgets_nothing() -> None:
    """The submitter hears why and nothing of it remains; what was accepted goes on; with room it recovers."""

    class Full(MemoryStore):
        full = False

        def commit(self, batch: Batch) -> None:
            if self.full:
                raise StoreFull("the disk is full", "make room")
            super().commit(batch)

    clock = HandClock()
    store = Full(clock.now_ms)
    house = House(store=store)
    kept = house.submit("ann")
    store.full = True
    refused = house.ask(Submit(user="bob", argv=("true",)))
    assert (refused.error, refused.message) == ("refused", "the disk is full")
    house.seconds(3)
    store.full = False
    house.seconds(3)
    assert [row["session"] for row in store.sessions()] == [kept]
    assert house.row(kept)["state"] == "running"
    assert house.submit("bob") == "s-2"


def test_people_act_on_sessions(house: House) -> None:
    """Hold, unhold, cancel a waiting and a running session, evict one: states, outcomes, and the record of it."""
    first, second, third = house.submit("ann"), house.submit("ann"), house.submit("bob")
    assert house.ask(Act(op="hold", session=third)).body["session"]["state"] == "held"
    assert house.ask(Act(op="hold", session=third)).error == "refused"
    assert house.ask(Act(op="unhold", session=third)).body["session"]["state"] == "queued"
    assert house.ask(Act(op="evict", session=third)).error == "refused"
    house.seconds(2)
    assert not house.ask(Act(op="evict", session=first, reason="exam")).error
    house.seconds(3)
    assert house.row(first)["outcome"] == "evicted"
    notice = [said for said in house.hosts["h1"].notices if said.session == first][-1]
    assert (notice.level, notice.rule) == ("evict", "admin.evict")
    assert notice.text.endswith(f"{first} of ann: evicted by tests: exam")
    assert house.row(third)["state"] == "running"
    house.ask(Act(op="cancel", session=second))
    house.seconds(2)
    assert house.row(second)["outcome"] == "cancelled"
    assert [row["rule"] for row in house.store.decisions(session=first)][-1] == "admin.evict"
    assert house.ask(Act(op="cancel", session=second)).error == "refused"
    assert house.ask(Act(op="cancel", session="s-99")).error == "not-found"


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (Submit(user="nobody", argv=("true",)), "not-found"),
        (Submit(user="ann", argv=("true",), gpus=3), "refused"),
        (Submit(user="ann", argv=("true",), tier="pro"), "refused"),
        (Submit(user="ann", argv=("true",), group="other"), "refused"),
        (SetUser(user="ann", group="elsewhere"), "refused"),
        (SetHost(op="drain", host="h9"), "not-found"),
        (Restrict(user="nobody"), "not-found"),
        (Restrict(user="ann", until_ms=1_000), "bad-input"),
        (Pardon(user="nobody"), "not-found"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(house: House, operation: Any, error: str) -> None:
    """The sort of error decides the exit code; the core is as it was."""
    before = house.service._core.revision
    answer = house.ask(operation)
    assert answer.error == error
    assert answer.message
    assert house.service._core.revision - before <= 1


def test_a_drained_host_gets_nothing_new(house: House) -> None:
    """Drain, submit: it waits; resume: it starts."""
    house.ask(SetHost(op="drain", host="h1"))
    sid = house.submit("ann")
    assert house.row(sid)["state"] == "queued"
    house.ask(SetHost(op="resume", host="h1"))
    house.seconds(1)
    assert house.row(sid)["state"] in ("starting", "running")


def test_nothing_new_of_a_restricted_user_starts_until_it_is_pardoned(house: House) -> None:
    """What runs goes on, what is submitted waits, also after a restart; the pardon starts it; both are on record."""
    running = house.submit("ann")
    house.seconds(1)
    assert not house.ask(Restrict(user="ann", reason="mining")).error
    waiting = house.submit("ann")
    house.restart()
    house.seconds(2)
    assert (house.row(running)["state"], house.row(waiting)["state"]) == ("running", "queued")
    assert house.user("ann")["restricted_until_ms"] == FOR_EVER_MS
    answer = house.ask(Pardon(user="ann", reason="sorry"))
    assert (answer.body["pardoned"], answer.body["user"]["restricted_until_ms"]) == (True, None)
    house.seconds(2)
    assert house.row(waiting)["state"] == "running"
    told = [json.loads(row["body"]) for row in house.store.decisions(user="ann") if not row["session"]]
    assert [(entry["rule"], entry["by"], entry["text"]) for entry in told] == [
        ("admin.restrict", "tests", "mining"),
        ("admin.pardon", "tests", "sorry"),
    ]


def test_a_restriction_ends_by_itself(house: House) -> None:
    """So long, or until then; of two the later word counts. A user that is changed afterwards has none."""
    house.ask(Restrict(user="ann", until_ms=house.clock.at + 3_600_000))
    house.ask(Restrict(user="ann", for_s=3))
    assert house.user("ann")["restricted_until_ms"] == house.clock.at + 3_000
    waiting = house.submit("ann")
    house.seconds(2)
    assert house.row(waiting)["state"] == "queued"
    house.ask(SetUser(user="ann", shares=2.0))
    assert house.user("ann")["restricted_until_ms"] is not None
    house.seconds(3)
    assert house.row(waiting)["state"] == "running"
    house.ask(SetUser(user="ann", shares=1.0))
    assert house.user("ann")["restricted_until_ms"] is None


def test_a_tier_ends_by_itself_over_a_restart(house: House) -> None:
    """Row and core are of the tier from before from its end on; other changes of the user do not move the end."""
    now = house.clock.at

    def tier() -> tuple[str, str]:
        return house.user("ann")["tier"], house.service._core.ledger.users["ann"].tier

    answer = house.ask(SetUser(user="ann", tier="pro", until_ms=now + 60_000))
    assert answer.body["then_tier"] == "free"
    house.ask(SetUser(user="ann", tier="lab", until_s=30))
    end = house.clock.at + 30_000
    house.ask(SetUser(user="ann", shares=2.0))
    assert tier() == ("lab", "lab")
    house.seconds(10)
    house.restart()
    house.clock.at = end - 1
    house.turn()
    assert tier() == ("lab", "lab")
    house.clock.at = end
    house.turn()
    assert tier() == ("free", "free")
    assert house.user("ann")["shares"] == 2.0
    house.ask(SetUser(user="ann", tier="pro"))
    house.ask(SetUser(user="ann", tier="pro", until_s=1))
    house.seconds(2)
    assert tier() == ("free", "free"), "whose own tier is given an end falls back to the usual one"
    for wrong in ({"tier": "pro", "until_ms": house.clock.at}, {"tier": "pro", "until_ms": 5}):
        assert house.ask(SetUser.model_validate({"user": "ann", **wrong})).error == "bad-input"
    assert tier() == ("free", "free")


def test_a_tier_that_is_over_is_not_given_back_by_a_change_of_that_instant(house: House) -> None:
    """The user is changed after the end and before the cycle that takes note of it."""
    house.ask(SetUser(user="ann", tier="pro", until_s=1))
    house.clock.at += 1_000
    answer = house.ask(SetUser(user="ann", shares=3.0))
    assert (answer.body["user"]["tier"], answer.body["tier_until"]) == ("free", None)
    assert house.user("ann")["tier"] == "free"


def test_the_calendar_outlives_a_restart_and_keeps_what_it_agreed(house: House) -> None:
    """Agreed, killed, loaded: kept from others; nothing is agreed by a check, or by a request that fails in part."""
    house.ask(SetUser(user="eve", group="x"))
    two = {"kind": "reservation", "gpus": 2, "group": "x", "from_s": 0}
    asked = Plan.model_validate({"entries": [{"entry": "c1", **two, "until_s": 60}]})
    assert not house.ask(asked.model_copy(update={"check": True})).error
    assert not house.service._core.view.calendar.entries
    both = {"entries": [{"entry": "c1", **two, "until_s": 60}, {"entry": "c2", **two, "until_s": 60}]}
    answer = house.ask(Plan.model_validate(both))
    assert answer.error == "refused"
    assert "c1 reserves GPUs for group x" in answer.message
    assert not house.service._core.view.calendar.entries
    house.ask(asked)
    house.restart()
    waits, starts = house.submit("ann"), house.submit("eve")
    assert (house.row(waits)["state"], house.row(starts)["state"]) == ("queued", "starting")
    assert house.ask(Unplan(entry="c2")).error == "not-found"
    assert not house.ask(Unplan(entry="c1")).error
    assert house.row(waits)["state"] == "starting"


def test_a_policy_without_limits_does_not_pretend_to_restrict() -> None:
    """A plain order starts whoever comes: that is told, and nothing is on record."""
    house = House(params=Params(policy="fifo"))
    answer = house.ask(Restrict(user="ann"))
    assert answer.error == "refused"
    assert "the policy fifo has no limits" in answer.message
    assert house.user("ann")["restricted_until_ms"] is None
    assert house.store.decisions(user="ann") == []


def test_a_pardon_of_who_has_done_nothing_changes_nothing(house: House) -> None:
    """It is answered, and neither journal nor record have it; of who cools down after an eviction, it ends that."""
    lines = house.store.last_seq()
    assert house.ask(Pardon(user="ann")).body["pardoned"] is False
    assert house.store.last_seq() == lines
    assert house.store.decisions(user="ann") == []
    user = house.service._core.ledger.users["ann"]
    house.submit("ann")
    house.submit("ann")
    house.seconds(20)
    house.submit("bob")
    house.seconds(12)
    assert user.cooldown_until_ms > house.clock.at
    assert house.ask(Pardon(user="ann")).body["pardoned"] is True
    assert user.cooldown_until_ms <= house.clock.at


def test_a_session_that_its_host_does_not_know_failed(house: House) -> None:
    """The host lost its memory: its full report says so by silence, and the session is over."""
    sid = house.submit("ann")
    house.seconds(2)
    del house.hosts["h1"].running[sid]
    house.seconds(2)
    row = house.row(sid)
    assert (row["outcome"], row["error"]) == ("failed", "host h1 does not know it any more")


def test_a_session_that_is_not_on_record_is_stopped(house: House) -> None:
    """A host that was lost comes back with a session that was given up: it is ended there, and nothing runs twice."""
    sid = house.submit("ann")
    house.seconds(2)
    house.seconds(20, silent=("h1",))
    assert house.row(sid)["outcome"] == "lost"
    assert sid in house.hosts["h1"].running
    house.seconds(3)
    assert not house.hosts["h1"].running


def test_a_host_that_never_answers_a_start(house: House) -> None:
    """The start expires: the session failed, with the reason, and the GPU is free again."""
    house.hosts["h1"].obey = lambda command, now: None  # type: ignore[method-assign]
    sid = house.submit("ann")
    house.seconds(75)
    assert house.row(sid)["error"] == "its host did not start it in time"
    assert house.service._core.cluster.free_m == 2000


def test_closing_ends_what_runs_and_keeps_what_waits(house: House) -> None:
    """After close: running sessions are cancelled, waiting ones keep their place for the next start."""
    first, second = house.submit("ann"), house.submit("ann")
    third = house.submit("bob")
    house.seconds(2)
    house.ask(Close())
    house.seconds(2)
    assert [house.row(sid)["outcome"] for sid in (first, second)] == ["cancelled"] * 2
    assert house.row(third)["state"] == "queued"
    assert house.ask(Submit(user="ann", argv=("true",))).error == "refused"
    house.restart()
    house.seconds(2)
    assert house.row(third)["state"] == "running"


def test_another_policy_takes_over_at_a_start(house: House) -> None:
    """The state goes on under the new policy, and the journal says where it began."""
    sid = house.submit("ann")
    house.params = Params(policy="fifo", tiers={"free": TierParams(baseline_gpus=0.2)})
    house.restart()
    house.seconds(1)
    assert house.row(sid)["state"] == "running"
    assert sum('"journal"' in line[:20] for line in house.store.journal()) == 2


def test_a_wrong_message_is_answered_and_passed(house: House) -> None:
    """Garbage in the inbox and in a host's stream stops nothing."""
    house.bus.post(b'{"key":"key-12345","reply_to":"ft:reply:t","operation":{"op":"submit","user":"../x"}}')
    house.bus.report(b'{"host":"h1"', "h1")
    house.turn()
    assert house.answer("key-12345").error == "bad-input"
    assert not house.ask(Ping()).error


def test_a_host_that_is_listened_to_no_more_is_lost_at_once() -> None:
    """Taken out of the configuration: its sessions are lost, nothing is placed there; put back, it serves again."""
    house = House(Host("h1", 1), Host("h2", 1))
    sids = [house.submit("ann"), house.submit("ann")]
    house.seconds(2)
    house.listened = ("h1",)
    house.restart()
    house.seconds(1, silent=("h2",))
    assert sorted(house.row(sid)["state"] for sid in sids) == ["ended", "running"]
    assert "lost" in {house.row(sid)["outcome"] for sid in sids}
    waiting = house.submit("bob")
    house.seconds(1, silent=("h2",))
    assert house.row(waiting)["state"] == "queued"
    house.listened = ("h1", "h2")
    house.restart()
    house.seconds(3)
    assert house.row(waiting)["state"] == "running"
    assert all(isinstance(line, int) for line in journal.replay(list(house.store.journal()), "journal"))


def test_a_clock_that_was_set_back_stops_nothing(house: House) -> None:
    """The scheduler starts again with a wall clock of ten minutes ago: time goes on from what is on record."""
    sid = house.submit("ann")
    house.seconds(2)
    begun = house.row(sid)["running_ms"]
    house.clock.at -= 600_000
    for state in house.hosts["h1"].running.values():
        state["at"] -= 600_000
    house.restart()
    house.seconds(3)
    other = house.submit("bob")
    house.seconds(2)
    assert [house.row(one)["state"] for one in (sid, other)] == ["running", "running"]
    assert 0 < house.row(other)["running_ms"] - begun < 20_000


def test_a_machine_that_slept_loses_nobody(house: House) -> None:
    """All of it stood still for ten minutes, the hosts too: their silence then means nothing."""
    sid = house.submit("ann")
    house.seconds(2)
    house.clock.at += 600_000
    house.turn()
    house.seconds(2)
    assert house.row(sid)["state"] == "running"
    house.seconds(20, silent=("h1",))
    assert house.row(sid)["outcome"] == "lost"


def test_one_key_in_one_batch_has_one_answer(house: House) -> None:
    """Refused, and a moment later possible: the repetition hears the refusal too, wherever it wants to hear it."""
    asked = Submit(user="new", argv=("true",))
    house.post(asked, "the-same-key")
    house.post(SetUser(user="new"))
    again = Request(key="the-same-key", reply_to="ft:reply:other", operation=asked)
    house.bus.post(again.model_dump_json().encode())
    house.turn()
    told = [(to, answer.error) for to, answer in house.bus.answered if answer.key == "the-same-key"]
    assert told == [("ft:reply:t", "not-found"), ("ft:reply:other", "not-found")]
    assert not house.store.sessions()


def test_acts_on_what_ended_a_moment_ago_say_so(house: House) -> None:
    """Submitted, cancelled and cancelled again within one batch: the second one hears that it has ended, and how."""
    house.ask(SetHost(op="drain", host="h1"))
    house.post(Submit(user="ann", argv=("true",)))
    house.post(Act(op="cancel", session="s-1"))
    second = house.post(Act(op="cancel", session="s-1"))
    house.turn()
    assert house.answer(second).message == "session s-1 has ended already (cancelled)"


def test_a_message_with_half_a_character_stops_nothing(house: House) -> None:
    """JSON can name a lone surrogate, which no answer can carry: it is told with a replacement."""
    house.bus.post(b'{"key":"\\ud800-12345678","reply_to":"ft:reply:\\ud800"}')
    house.turn()
    [(reply_to, answer)] = house.bus.answered[-1:]
    assert (reply_to, answer.error) == ("ft:reply:?", "bad-input")
    assert answer.model_dump_json().encode()


def test_nothing_is_sent_about_a_session_that_has_ended(house: House) -> None:
    """Its host fell silent before it heard the start, and is lost: back again, it is not told to start it."""
    sent = house.bus.sent
    house.post(Submit(user="ann", argv=("true",)))
    house.service.turn()
    sent.clear()  # the start was lost on its way
    house.service._bus.send = lambda commands: None  # type: ignore[method-assign]
    house.seconds(17, silent=("h1",))
    assert house.row("s-1")["outcome"] == "lost"
    del house.service._bus.send  # type: ignore[attr-defined]
    house.seconds(5)
    assert not house.hosts["h1"].starts
    assert not house.store.outbox()


def test_a_worker_that_lost_its_folder_is_heard_again(house: House) -> None:
    """It counts its starts from 1, within the same boot: passed over until its host is lost, and then believed."""
    host = house.hosts["h1"]
    host.epoch = 7
    house.seconds(2)
    host.epoch, host.seq = 1, 0
    house.seconds(10)
    assert house.service._core.view.stale_hosts == {"h1"}
    house.seconds(8)
    assert not house.service._core.view.stale_hosts
    sid = house.submit("ann")
    house.seconds(2)
    assert house.row(sid)["state"] == "running"


def test_an_end_without_news_is_charged_as_it_was_measured(house: House) -> None:
    """The host died right after a report: what was charged from then on is given back with the end."""
    sid = house.submit("ann")
    house.seconds(5)
    measured = house.row(sid)["busy_ms"] / 1000
    state = house.hosts["h1"].running[sid]
    house.seconds(4, silent=("h1",))
    assert house.usage_gpu_s("ann") > measured + 3
    house.hosts["h1"].end(sid, "failed", None)
    house.bus.report(house.hosts["h1"].report(house.clock.at), "h1")
    house.turn()
    assert house.row(sid)["busy_ms"] == int(state["busy"])
    assert house.usage_gpu_s("ann") == pytest.approx(measured + 2, abs=0.5)  # four seconds held, at half the price


def test_what_was_read_is_trimmed_before_anything_is_told() -> None:
    """A transport full of refused requests takes no answer: what was taken in goes first, without a checkpoint."""

    class Full(MemoryBus):
        def answer(self, answers: Any) -> None:
            if len(self._streams["ft:inbox"]) > 50:
                raise BusDown("no room")
            super().answer(answers)

    house = House()
    house.bus = Full()
    house.restart()
    submit = Submit(user="no", argv=("x" * 60_000,))
    for number in range(320):  # 19 MB
        house.bus.post(Request(key=f"flood-{number:04}", operation=submit).model_dump_json().encode())
    house.turn()
    house.turn()
    assert not house.ask(Ping()).error


def test_a_commit_that_failed_after_it_was_written_is_told_as_done(house: House) -> None:
    """The disk went away while it wrote: the truth has the session, so the submitter hears that."""

    class Late(MemoryStore):
        late = False

        def commit(self, batch: Batch) -> None:
            super().commit(batch)
            if self.late:
                self.late = False
                raise StoreDown("the disk went away while it wrote")

    clock = HandClock()
    store = Late(clock.now_ms)
    house = House(store=store)
    store.late = True
    assert house.submit("ann") == "s-1"
    house.seconds(2)
    assert house.row("s-1")["state"] == "running"


def test_a_failed_commit_does_not_end_the_closing() -> None:
    """While the instance closes, a full disk does not make it start what waits."""

    class Full(MemoryStore):
        full = False

        def commit(self, batch: Batch) -> None:
            if self.full:
                raise StoreFull("the disk is full")
            super().commit(batch)

    clock = HandClock()
    store = Full(clock.now_ms)
    house = House(Host("h1", 1), store=store)
    first, second = house.submit("ann"), house.submit("ann")
    house.seconds(2)
    house.ask(Close())
    store.full = True
    house.seconds(1)
    store.full = False
    house.seconds(5)
    assert house.row(first)["outcome"] == "cancelled"
    assert house.row(second)["state"] == "queued"


@pytest.mark.parametrize("policy", ["fifo", "fifo-skip", "sjf", "fair-share"])
def test_who_was_promised_a_gpu_is_served_under_another_policy_too(house: House, policy: str) -> None:
    """A restart during the grace: the promise is of the old rules, the waiter waits and starts all the same."""
    sids = [house.submit("ann"), house.submit("ann")]
    house.seconds(20)
    waiting = house.submit("bob")
    while not any(house.row(sid)["ladder"] == "grace" for sid in sids):
        house.seconds(0.2)
    house.params = Params(policy=policy)
    house.restart()
    house.seconds(2)
    for sid in sids:
        if house.row(sid)["ladder"] == "grace":
            house.hosts["h1"].end(sid, "completed", 0)
    house.seconds(3)
    assert house.row(waiting)["state"] == "running"


def test_a_service_that_dies_again_and_again_still_makes_checkpoints(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that were run again at a start count for the next checkpoint, so that recovery stays short."""
    monkeypatch.setattr(service, "CHECKPOINT_LINES", 40)
    house.submit("ann")
    for _ in range(20):
        house.seconds(3)
        house.restart()
        assert house.store.past().seq >= house.store.last_seq() - 60
