"""Why, in numbers: every state has its reason, and doing what a reason says has the effect that it says."""

from __future__ import annotations

import json
import re
import shlex
from datetime import datetime
from typing import Any

import pytest

from policies import instead as instead_module
from policies.catalogue import make_policy
from policies.explain import CHANGES, RULES
from policies.model import Action, Decision, Ladder, Shape, State
from policies.params import HeadroomParams, LadderParams, Params, TierParams, UsageParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from scheduler.journal import decision_dict
from scheduler.why import Positions, positions, utc, why
from scheduler.why_stored import decision_of
from tests.policies.random_sites import POLICIES, acts_of, copy_of, pause, settle, site_of

MINUTE_MS = 60_000
MEMBERS = ["code", "rule", "value", "threshold", "unit", "until", "change", "text"]
RICH = Params(tiers={"free": TierParams(baseline_gpus=1.0)})
WAITING = {"Position", "NoFreeGpu", "NoMatchingGpu", "NeverFits", "Draining", "HostLost", "Cooldown"}
PLAIN = Params(
    usage=UsageParams(half_life_h=24.0),
    tiers={"free": TierParams(baseline_gpus=0.05)},  # a cap of 1.73 GPU-h
    headroom=HeadroomParams(fixed_gpus=1),
    ladder=LadderParams(warn_ms=5 * MINUTE_MS, grace_ms=5 * MINUTE_MS, min_run_ms=30 * MINUTE_MS),
)


class Site:
    """A core with what the record would hold of its decisions."""

    def __init__(self, params: Params = PLAIN, *hosts: ev.HostJoined, seen: list[Decision] | None = None) -> None:
        self.core = Core(make_policy(params))
        self.seen: list[Decision] = [] if seen is None else seen
        self.acts: list[dict[str, Any]] = []
        self.apply(*(hosts or (ev.HostJoined(0, "h", 4),)))

    @property
    def now(self) -> int:
        return self.core.now_ms

    def apply(self, *events: ev.Event) -> None:
        for event in events:
            self.core.apply(event)

    def submit(self, sid: str, user: str = "ann", **asked: Any) -> None:
        self.apply(ev.SessionSubmitted(self.now, sid, user, **asked))
        self.settle()

    def use(self, user: str, gpu_h: float) -> None:
        self.apply(ev.UserSet(self.now, user), ev.UsageSet(self.now, user, gpu_h))

    def settle(self) -> None:
        settle(self.core, self.seen)

    def until(self, at_ms: int) -> None:
        pause(self.core, at_ms, self.seen)

    def admin(self, act: str, sid: str, text: str = "") -> None:
        """What the record holds of an operator's act."""
        entry = {"at_ms": self.now, "action": act, "session": sid, "user": "ann", "rule": f"admin.{act}"}
        self.acts.append(entry | {"by": "ops", "text": text})

    def decisions(self, sid: str) -> list[dict[str, Any]]:
        made = [json.loads(json.dumps(decision_dict(d))) for d in self.seen if d.session == sid]
        return sorted([*made, *(act for act in self.acts if act["session"] == sid)], key=lambda entry: entry["at_ms"])

    def why(self, sid: str, now_ms: int | None = None, **row: Any) -> dict[str, Any]:
        session = self.core.sessions.get(sid)
        known = {"session": sid, "user": "ann", "state": "ended" if session is None else session.state.value}
        found = why(self.core, known | row, self.decisions(sid), self.now if now_ms is None else now_ms)
        check_shape(found)
        return found

    def reasons(self, sid: str, **row: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.why(sid, **row)["reasons"]
        return found

    def code(self, sid: str) -> str:
        code: str = self.reasons(sid)[0]["code"]
        return code


def check_shape(found: dict[str, Any]) -> None:
    """The members and their types are those that programs rely on; texts are free of slips."""
    assert list(found) == ["session", "state", "position", "eta_s", "reasons"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["reasons"]
    for reason in found["reasons"]:
        assert list(reason) == MEMBERS
        assert reason["rule"] is None or reason["rule"] in RULES or reason["rule"].startswith("admin.")
        change = reason["change"]
        assert change is None or change in CHANGES or change.startswith("--")
        assert reason["until"] is None or reason["until"].endswith("Z")
        for slip in ("None", "inf ", "{", "  of", "..", "State."):
            assert slip not in reason["text"]
        assert not re.search(r"\bnan\b", reason["text"])  # a number that is none; `maintenance` is a word
        if reason["until"] is not None and reason["code"] not in ("Grace", "Evicted", "Stopping"):
            assert reason["until"] in reason["text"]


# -- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (999, "1970-01-01T00:00:00Z"),
        (1_700_000_000_123, "2023-11-14T22:13:20Z"),
        (10**15, "9999-12-31T23:59:59Z"),
        (1 << 62, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_utc_to_the_second(at_ms: int, text: str) -> None:
    """Rounded down; what no calendar holds is its end."""
    assert utc(at_ms) == text


# -- waiting ---------------------------------------------------------------------------------------------------------


def shape_of(shape: Shape, options: str) -> Shape:
    """A request with other options of `fairtier submit`."""
    words = shlex.split(options)
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == "--gpus":
            shape = shape._replace(gpus=int(value))
        elif name == "--fraction":
            shape = shape._replace(fraction_m=round(float(value) * 1000))
        elif name == "--gpu-type":
            shape = shape._replace(gpu_type=value)
        else:
            assert name == "--memory"
            number, unit = int(value[:-3]), value[-3:]
            shape = shape._replace(memory_mib=number * {"GiB": 1024, "MiB": 1}[unit])
    return shape


def starts_instead(core: Core, sid: str, options: str) -> bool:
    """Whether the session, cancelled and submitted again with these options, starts in the next cycle of a copy."""
    copy, now = copy_of(core), core.now_ms
    session = copy.sessions[sid]
    shape, user = shape_of(session.shape, options), session.user
    copy.apply(ev.SessionCancelled(now, sid))
    copy.apply(ev.SessionSubmitted(now, "again", user.name, user.group.name, user.tier, *shape))
    return any(d.action is Action.START and d.session == "again" for d in copy.cycle(now).decisions)


def check_changes(core: Core) -> int:
    """Every change that is suggested flips the decision; how many were."""
    suggested = 0
    for session in list(core.sessions.values()):
        if session.state is not State.QUEUED:
            continue
        found = why(core, {"session": session.id, "user": session.user.name, "state": "queued"}, [], core.now_ms)
        check_shape(found)
        assert {reason["code"] for reason in found["reasons"]} <= WAITING
        change = found["reasons"][0]["change"]
        if change is not None and change.startswith("--"):
            suggested += 1
            assert starts_instead(core, session.id, change), f"{session.id} does not start with {change}"
    return suggested


def test_too_few_free_gpus_are_counted_and_a_smaller_request_is_suggested() -> None:
    """Three of four held: two asked, one free; one starts at once."""
    site = Site(RICH)
    site.submit("r", "bob", gpus=3)
    site.submit("s", gpus=2)
    found = site.why("s")
    assert (found["state"], found["position"]) == ("queued", 1)
    first, place = found["reasons"]
    assert (first["code"], first["rule"]) == ("NoFreeGpu", "order.in-credit")
    assert (first["value"], first["threshold"], first["unit"]) == (2.0, 1, "gpu")
    assert first["change"] == "--gpus 1"
    assert "asks for 2 GPUs; 1 GPU is free." in first["text"]
    assert "Cancel it and submit the same with --gpus 1: that starts now." in first["text"]
    assert (place["code"], place["unit"]) == ("Position", "gpu_h")
    assert place["value"] == pytest.approx(1.0)
    assert "number 1 of 1" in place["text"]
    assert check_changes(site.core) == 1


def test_a_part_of_a_gpu_is_suggested_where_no_whole_one_is_free() -> None:
    """0.7 of the only GPU held: 0.3 of it starts."""
    site = Site(RICH, ev.HostJoined(0, "h", 1))
    site.submit("r", "bob", fraction_m=700)
    site.submit("s")
    assert site.reasons("s")[0]["change"] == "--fraction 0.3"
    assert check_changes(site.core) == 1


def test_gpus_on_several_hosts_are_not_together() -> None:
    """One of three is free on each of two hosts, two asked: two are free, but at most one on one host."""
    site = Site(RICH, ev.HostJoined(0, "a", 3), ev.HostJoined(0, "b", 3))
    site.submit("x", "bob", gpus=2)
    site.submit("y", "bob", gpus=2)
    site.submit("s", gpus=2)
    first = site.reasons("s")[0]
    assert (first["code"], first["threshold"], first["change"]) == ("NoFreeGpu", 2, "--gpus 1")
    assert "asks for 2 GPUs; 2 GPUs are free, but at most 1 on one host." in first["text"]
    assert check_changes(site.core) == 1


def test_another_model_is_suggested_before_fewer_gpus() -> None:
    """Two A100 asked, all held; the T4s are free."""
    site = Site(PLAIN, ev.HostJoined(0, "a", 2, "A100"), ev.HostJoined(0, "t", 4, "T4 16GB"))
    site.submit("r", "bob", gpus=2, gpu_type="A100")
    site.submit("s", gpus=2, gpu_type="A100")
    first = site.reasons("s")[0]
    assert (first["code"], first["change"]) == ("NoMatchingGpu", "--gpu-type 'T4 16GB'")
    assert "0 GPUs of that kind are free" in first["text"]
    assert check_changes(site.core) == 1


def test_less_memory_is_suggested_if_it_is_at_least_half() -> None:
    """The 40 GiB host is full, the 24 GiB one is free: 24 of 30, not 24 of 60."""
    hosts = (ev.HostJoined(0, "a", 1, "A", 61_440), ev.HostJoined(0, "b", 1, "B", 24_576))
    site = Site(RICH, *hosts)
    site.submit("r", "bob", memory_mib=40_960)
    site.submit("s", memory_mib=30_720)
    assert site.reasons("s")[0]["change"] == "--memory 24GiB"
    assert check_changes(site.core) == 1
    site.submit("t", "cid", memory_mib=61_440)
    assert site.reasons("t")[0]["change"] is None


def test_the_headroom_keeps_who_is_out_of_credit_waiting_until_the_credit_is_back() -> None:
    """One GPU is free and kept; at the instant named, and not a second before, the session is in credit and starts."""
    site = Site()
    site.submit("r", "bob", gpus=3)
    site.use("ann", 3.0)
    site.submit("s")
    first, place = site.reasons("s")
    assert (first["code"], first["rule"]) == ("NoFreeGpu", "order.out-of-credit")
    assert (first["value"], first["threshold"]) == (1.0, 0.0)
    assert "1 must stay free for requests in credit (headroom)" in first["text"]
    assert place["value"] == pytest.approx(3.5)
    assert "out of credit for it: 3.00 GPU-h used and 0.50 committed with it, 1.77 past" in place["text"]
    assert first["until"] == place["until"]
    back_s = int(datetime.fromisoformat(first["until"]).timestamp())
    copy = copy_of(site.core)
    seen: list[Decision] = []
    pause(copy, back_s * 1000, seen)
    assert "s" not in [d.session for d in seen if d.action is Action.START]
    pause(copy, (back_s + 1) * 1000, seen)
    assert "s" in [d.session for d in seen if d.action is Action.START]


def test_a_request_that_is_never_in_credit_is_told_so() -> None:
    """Eight GPUs commit 4 GPU-h, more than the cap of 1.73: no time brings that back."""
    site = Site(PLAIN, ev.HostJoined(0, "h", 8))
    site.submit("r", "bob")
    site.submit("s", gpus=8)
    place = site.reasons("s")[-1]
    assert place["until"] is None
    assert "A request of this size is never in credit here" in place["text"]


def test_what_could_never_run_is_told_before_it_is_refused_and_after() -> None:
    """Between submission and the next cycle from the live state, then from the record."""
    site = Site()
    site.apply(ev.SessionSubmitted(0, "s", "ann", gpus=9))
    before = site.reasons("s")[0]
    assert (before["code"], before["rule"]) == ("NeverFits", "never-fits")
    assert (before["value"], before["threshold"]) == (9.0, 4.0)
    assert before["change"] == "--gpus 4"
    assert starts_instead(site.core, "s", "--gpus 4")
    site.settle()
    after = site.reasons("s", outcome="rejected", ended_ms=0)[0]
    assert (after["code"], after["value"], after["threshold"], after["change"]) == (
        "NeverFits",
        9.0,
        4.0,
        "ask-for-less",
    )
    assert "without having started" in after["text"]


def test_a_drained_host_is_named_and_resuming_it_helps() -> None:
    """Only while no open host could ever serve the request."""
    site = Site(PLAIN, ev.HostJoined(0, "big", 4), ev.HostJoined(0, "small", 1))
    site.apply(ev.HostDrained(0, "big"))
    site.submit("s", gpus=3)
    first = site.reasons("s")[0]
    assert (first["code"], first["rule"], first["change"]) == ("Draining", "admin.drain", "--gpus 1")
    assert "big is drained" in first["text"]
    site.submit("x", "bob")
    assert site.reasons("s")[0]["change"] == "resume-host"
    site.apply(ev.HostResumed(0, "big"))
    site.settle()
    assert site.core.sessions["s"].state is State.RUNNING


def test_a_silent_host_is_named_with_its_silence() -> None:
    """30 s is the limit; nothing is placed there, what runs keeps running."""
    site = Site(PLAIN, ev.HostJoined(0, "h", 2, heartbeat=True))
    site.submit("r", "bob")
    site.until(31_000)
    site.submit("s", gpus=2)
    first = site.why("s", now_ms=38_000)["reasons"][0]
    assert (first["code"], first["rule"]) == ("HostLost", "host.lost")
    assert (first["value"], first["threshold"], first["unit"]) == (38.0, 30.0, "s")
    assert "host h has not reported for 38 s (limit 30 s); nothing new is placed there" in first["text"]
    running = site.why("r", now_ms=38_000)["reasons"]
    assert [reason["code"] for reason in running] == ["InCredit", "HostLost"]
    assert running[1]["until"] == utc(45_000)
    site.apply(ev.HostReported(40_000, "h"))
    assert [reason["code"] for reason in site.reasons("r")] == ["InCredit"]


def test_of_several_silent_hosts_the_one_silent_longest_is_named() -> None:
    """Its silence is the one that is told."""
    hosts = (ev.HostJoined(0, "late", 2, heartbeat=True), ev.HostJoined(0, "early", 2, heartbeat=True))
    site = Site(PLAIN, *hosts)
    site.apply(ev.HostReported(5_000, "late"))
    site.until(40_000)
    site.submit("s", gpus=2)
    first = site.reasons("s")[0]
    assert first["value"] == 40.0
    assert "host early has not reported for 40 s" in first["text"]


def test_a_throttled_session_is_told_its_part_and_until_when() -> None:
    """Half of a shared GPU, out of credit, somebody in credit waits: 37.5 % after the warning."""
    site = Site(PLAIN, ev.HostJoined(0, "h", 1))
    site.use("ann", 5.0)
    site.submit("a", fraction_m=500)
    site.until(40 * MINUTE_MS)
    site.submit("b", "bob", fraction_m=900)
    site.until(45 * MINUTE_MS)
    first = site.reasons("a")[0]
    assert (first["code"], first["rule"], first["until"]) == ("Throttled", "ladder.throttle", utc(50 * MINUTE_MS))
    assert "is granted 37.5 % of a GPU" in first["text"]
    waits = site.reasons("b")[0]
    assert (waits["value"], waits["threshold"], waits["change"]) == (0.9, 0.625, "--fraction 0.6")
    assert (
        "the most that is left of one GPU is 0.625. 1 session of others has been warned to give way." in waits["text"]
    )
    assert check_changes(site.core) == 1


def test_a_held_session_names_who_holds_it_and_has_no_position() -> None:
    """From the operator's act on record; without it, that it is held."""
    site = Site()
    site.submit("r", "bob", gpus=4)
    site.submit("s")
    site.apply(ev.SessionHeld(0, "s"))
    assert site.reasons("s")[0]["text"].startswith("s of ann is held by an operator. ")
    site.admin("hold", "s", "its data set moves")
    found = site.why("s")
    assert (found["state"], found["position"]) == ("held", None)
    first = found["reasons"][0]
    assert (first["code"], first["rule"], first["change"]) == ("Held", "admin.hold", "unhold")
    assert "s of ann: held by ops: its data set moves" in first["text"]
    assert first["text"].endswith(CHANGES["unhold"])


def test_in_a_line_that_stops_those_in_front_are_the_reason() -> None:
    """`fifo`: a narrow session that would fit waits for the wide one; `fifo-skip` starts it."""
    site = Site(Params(policy="fifo"))
    site.submit("r", "bob", gpus=2)
    site.submit("wide", "bob", gpus=4)
    site.submit("s")
    found = site.why("s")
    assert found["position"] == 2
    (first,) = found["reasons"]
    assert (first["code"], first["rule"], first["value"], first["unit"]) == ("Position", "order.arrival", 1, "sessions")
    assert "The policy fifo starts nobody before those in front." in first["text"]
    assert site.reasons("wide")[0]["change"] is None  # a narrower one would come behind `s`
    assert "starts in its turn" not in first["text"]


def test_before_the_next_cycle_it_is_said_that_it_will_start() -> None:
    """Submitted a moment ago, room for it: nothing stands in its way."""
    site = Site()
    site.apply(ev.SessionSubmitted(0, "s", "ann"))
    (first,) = site.reasons("s")
    assert first["code"] == "Position"
    assert "it starts in its turn, with the next cycle" in first["text"]


def test_nothing_is_suggested_while_somebody_else_is_about_to_start() -> None:
    """What is free now may be gone after the next cycle."""
    site = Site(RICH)
    site.submit("r", "bob", gpus=3)
    site.submit("s", gpus=2)
    site.apply(ev.SessionSubmitted(0, "quick", "cid"))
    assert site.reasons("s")[0]["change"] is None


# -- holding ---------------------------------------------------------------------------------------------------------


def climbing() -> Site:
    """ann runs out of credit on the only GPU; bob, in credit, asks for it at minute 40."""
    site = Site(PLAIN, ev.HostJoined(0, "h", 1))
    site.use("ann", 5.0)
    site.submit("a")
    site.until(40 * MINUTE_MS)
    return site


def test_in_credit_it_is_said_until_when() -> None:
    """0.5 an hour from zero reach the cap of 1.73 after 3.6 h; load unknown is charged as idle."""
    site = Site()
    site.submit("s")
    found = site.why("s")
    assert (found["state"], found["position"]) == ("running", None)
    (first,) = found["reasons"]
    assert (first["code"], first["rule"], first["value"], first["change"]) == ("InCredit", "ladder.notice", 0.0, None)
    assert first["threshold"] == pytest.approx(1.7312, abs=1e-4)
    gone_ms = 24 * 3_600_000 * 0.15200309  # log2(17.3123 / (17.3123 - 1.7312))
    assert utc(round(gone_ms))[:16] == first["until"][:16]
    assert "runs on h GPU 0 since 1970-01-01T00:00:00Z" in first["text"]


def test_out_of_credit_without_contention_nothing_is_taken() -> None:
    """And if somebody came: not before the warning has run its time."""
    site = climbing()
    first = site.reasons("a")[0]
    assert (first["code"], first["change"]) == ("Notice", "pause-or-finish")
    assert "Nobody needs its GPUs now, so nothing is taken." in first["text"]
    assert first["until"] == utc(45 * MINUTE_MS)
    site.submit("b", "bob")
    assert site.code("a") == "Warned"
    warned = site.reasons("a")[0]
    assert (warned["rule"], warned["until"]) == ("ladder.warn", utc(45 * MINUTE_MS))
    assert f"has to give way from {utc(45 * MINUTE_MS)} on" in warned["text"]
    assert warned["text"].endswith(CHANGES["pause-or-finish"])


def test_each_rung_is_told_from_the_decision_that_led_to_it() -> None:
    """Grace, eviction, and the nominated waiter whose place is first."""
    site = climbing()
    site.submit("b", "bob")
    site.until(45 * MINUTE_MS)
    grace = site.reasons("a")[0]
    assert (grace["code"], grace["rule"], grace["until"]) == ("Grace", "ladder.grace", utc(50 * MINUTE_MS))
    waits = site.why("b")
    assert waits["position"] == 1
    assert (waits["reasons"][0]["rule"], waits["reasons"][0]["until"]) == ("order.nominated", utc(50 * MINUTE_MS))
    assert f"a may save until {utc(50 * MINUTE_MS)} at the latest" in waits["reasons"][0]["text"]
    while not any(d.action is Action.EVICT for d in site.seen):
        site.seen += site.core.cycle(max(site.now + 1, 50 * MINUTE_MS)).decisions
    stopping = site.why("a")
    assert (stopping["state"], stopping["reasons"][0]["code"]) == ("stopping", "Stopping")
    assert stopping["reasons"][0]["rule"] == "ladder.evict"
    assert "a is being stopped" in site.reasons("b")[0]["text"]
    site.apply(ev.SessionEnded(site.now, "a", "evicted"))
    ended = site.reasons("a", outcome="evicted", started_ms=0, ended_ms=site.now, exit_code=143)[0]
    assert (ended["code"], ended["rule"], ended["change"]) == ("Evicted", "ladder.evict", "resubmit")
    assert "gives way for b" in ended["text"]
    assert "after 50 min, with exit code 143." in ended["text"]


def test_a_record_that_lags_behind_the_core_is_not_taken_for_the_present_rung() -> None:
    """In grace, with nothing but the warning on record: the live figures are told, not a deadline that is over."""
    site = climbing()
    site.submit("b", "bob")
    site.until(45 * MINUTE_MS)
    assert site.code("a") == "Grace"
    site.seen = [decision for decision in site.seen if decision.action is not Action.GRACE]
    assert site.code("a") == "OutOfCredit"


def test_who_was_evicted_a_short_while_ago_is_told_of_its_cooldown() -> None:
    """Its sessions count as out of credit until then."""
    site = climbing()
    site.submit("b", "bob")
    site.until(51 * MINUTE_MS)
    assert site.core.sessions["b"].state is State.RUNNING
    site.submit("again")
    codes = [reason["code"] for reason in site.reasons("again")]
    assert codes == ["NoFreeGpu", "Cooldown", "Position"]
    assert site.reasons("again")[1]["until"] == utc(site.core.ledger.users["ann"].cooldown_until_ms)


def test_a_heavy_session_is_told_its_load() -> None:
    """Half an hour at 0.9, limit 0.8."""
    site = climbing()
    site.apply(ev.LoadReported(site.now, "a", 0.9))
    site.until(80 * MINUTE_MS)
    assert "It is heavy: mean load 0.90 over 30 min (limit 0.8)." in site.reasons("a")[0]["text"]


def test_arrival_policies_take_gpus_from_nobody() -> None:
    """No credit is shown where none counts."""
    site = Site(Params(policy="fifo"))
    site.submit("s")
    (first,) = site.reasons("s")
    assert (first["code"], first["rule"], first["value"]) == ("Running", None, None)


# -- ended -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"outcome": "completed", "exit_code": 0}, "Completed", "with exit code 0."),
        ({"outcome": "failed", "exit_code": 137, "error": "out of memory"}, "Failed", "exit code 137 (out of memory)."),
        ({"outcome": "failed", "error": "host h does not know it any more"}, "Failed", "(host h does not know it"),
        ({"outcome": "cancelled"}, "Cancelled", "cancelled. It ended at"),
        ({"outcome": "lost"}, "HostLost", "lost. It ended at"),
        ({"outcome": "rejected"}, "NeverFits", "rejected"),
        ({"outcome": "evicted"}, "Evicted", "evicted"),
        ({"outcome": "abandoned"}, "Abandoned", "abandoned"),
    ],
)
def test_without_a_decision_on_record_the_end_itself_is_told(row: dict[str, Any], code: str, words: str) -> None:
    """When, after how long, exit code and error."""
    site = Site()
    found = site.why("s", started_ms=0, ended_ms=125 * MINUTE_MS, **row)
    assert (found["state"], found["position"]) == ("ended", None)
    (first,) = found["reasons"]
    assert first["code"] == code
    assert words in first["text"]
    assert f"It ended at {utc(125 * MINUTE_MS)}, after 2 h 5 min" in first["text"]
    if code == "Failed":
        assert first["value"] == row.get("exit_code")
        assert "fairtier session s --log" in first["text"]


@pytest.mark.parametrize(
    ("act", "outcome", "code"), [("evict", "evicted", "Evicted"), ("cancel", "cancelled", "Cancelled")]
)
def test_an_operators_act_is_told_with_name_and_reason(act: str, outcome: str, code: str) -> None:
    """The act decides, whatever the policy had said before."""
    site = climbing()
    site.admin(act, "a", "the host is needed")
    site.apply(ev.SessionCancelled(site.now, "a"))
    stopping = site.reasons("a")[0]
    assert (stopping["code"], stopping["rule"]) == ("Stopping", f"admin.{act}")
    site.apply(ev.SessionEnded(site.now, "a", "cancelled"))
    (first,) = site.reasons("a", outcome=outcome, started_ms=0, ended_ms=site.now)
    assert (first["code"], first["rule"]) == (code, f"admin.{act}")
    assert f"a of ann: {outcome} by ops: the host is needed" in first["text"]


def test_a_lost_session_is_told_from_the_decision() -> None:
    """`host.lost`, and that it may be submitted again."""
    site = Site(PLAIN, ev.HostJoined(0, "h", 2, heartbeat=True))
    site.submit("s")
    site.until(46_000)
    (first,) = site.reasons("s", outcome="lost", started_ms=0, ended_ms=site.now)
    assert (first["code"], first["rule"], first["change"]) == ("HostLost", "host.lost", "submit-again")


def test_a_row_that_the_core_does_not_know_is_said_to_be_changing() -> None:
    """A reader's core may be a commit ahead or behind; nothing is made up."""
    (first,) = Site().reasons("s", state="queued")
    assert first["code"] == "Changing"


def test_an_ended_row_wins_over_a_core_that_lags_behind() -> None:
    """The truth has said how it ended."""
    site = Site()
    site.submit("s")
    assert site.reasons("s", state="ended", outcome="completed", ended_ms=5)[0]["code"] == "Completed"


# -- every state -----------------------------------------------------------------------------------------------------


def check_decisions_read_back(decisions: list[Decision]) -> None:
    """A stored decision is the decision, but for what its JSON leaves out of an allocation."""
    for decision in decisions:
        back = decision_of(json.loads(json.dumps(decision_dict(decision))))
        assert decision_dict(back) == decision_dict(decision)


@pytest.mark.shows("I13", examples=(40, 40))
@pytest.mark.parametrize("policy", POLICIES)
def test_every_session_has_a_reason_and_every_suggestion_holds(policy: str) -> None:
    """Whatever happened before: each state is explained, and what is suggested starts; nothing is changed by asking."""
    suggested = sum(check_site(policy, seed) for seed in range(40))
    assert suggested >= 5  # or the test shows little


def check_positions_are_those_of_the_moment(known: Positions) -> list[str]:
    """Positions asked for again after every event, and after the credit of one ends while time passes."""
    site = Site()
    site.submit("s0", "eve", gpus=4)
    found = []
    for number, user in enumerate(("ann", "bob", "cem")):
        site.submit(f"s{number + 1}", user)
        site.use(user, 1.5 - number / 2)
        if known.of(site.core) != positions(site.core):
            found.append(f"after {user} came")
    pause(site.core, site.now + 200 * MINUTE_MS)
    site.apply(ev.SessionCancelled(site.now, "s2"))
    if known.of(site.core) != positions(site.core):
        found.append("after one was cancelled")
    return found


def test_positions_are_worked_out_once_for_each_state() -> None:
    """The same answer object while nothing happens, the right one after anything has."""
    known = Positions()
    assert check_positions_are_those_of_the_moment(known) == []
    site = Site()
    site.submit("s1")
    assert known.of(site.core) is known.of(site.core)


def test_positions_kept_too_long_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: worked out once for each core."""
    monkeypatch.setattr(Positions, "of", lambda self, core: vars(self).setdefault(core, positions(core)))
    assert check_positions_are_those_of_the_moment(Positions())


def check_site(policy: str, seed: int) -> int:
    """Everything that must hold of a site with a random past; the number of changes suggested."""
    site = Site(POLICIES[policy])
    site.core = site_of(POLICIES[policy], acts_of(seed), site.seen)
    before = checkpoint.dump(site.core)
    check_decisions_read_back(site.seen)
    order = positions(site.core)
    assert sorted(order.values()) == list(range(1, len(order) + 1))
    for session in list(site.core.sessions.values()):
        found = site.why(session.id)
        assert found["state"] == session.state
        assert (found["position"] is None) == (session.state is not State.QUEUED)
        if session.ladder in (Ladder.WARN, Ladder.THROTTLE, Ladder.GRACE) and session.state is not State.STOPPING:
            assert found["reasons"][0]["code"] in ("Warned", "Throttled", "Grace")
    suggested = check_changes(site.core)
    assert checkpoint.dump(site.core) == before
    return suggested


@pytest.mark.plants("I13", "a suggestion without regard to the headroom")
@pytest.mark.plants("I13", "a suggestion of a GPU too many")
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suggestion without regard to the headroom, and one that asks for a GPU too many, do not flip the decision."""
    site = Site()
    site.submit("r", "bob", gpus=2)
    site.use("ann", 3.0)
    site.submit("s", gpus=2)
    assert check_changes(site.core) == 1
    assert site.reasons("s")[0]["change"] == "--gpus 1"
    assert not starts_instead(site.core, "s", "--gpus 2")
    with monkeypatch.context() as patch:
        patch.setattr(instead_module, "keep_m", lambda *_: 0)
        patch.setattr(instead_module, "_busy", lambda *_: False)
        site.submit("t", "ann")
        site.use("ann", 3.0)
        with pytest.raises(AssertionError, match="does not start with"):
            check_changes(site.core)
