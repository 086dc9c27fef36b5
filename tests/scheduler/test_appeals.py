"""Appeals, and acceptable use in the service: who is told, what is on record, what a person's answer changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from policies.model import Action, Decision, Reason
from policies.params import Params
from scheduler import events as ev
from scheduler import journal
from scheduler.adapters.memory import MemoryStore
from scheduler.appeals import appeal_words
from scheduler.moment import Moment
from scheduler.notify import level
from scheduler.ports import Message
from scheduler.requests import AnswerAppeal, FileAppeal, Pardon, Restrict
from scheduler.why import why
from tests.scheduler.test_acceptable_use_core import rule
from tests.scheduler.test_service import QUICK, Host, House

TRAIN = rule("train", ("observe", 0), ("warn", 0), ("restrict", 1, 60))
PARAMS = dataclasses.replace(QUICK, rules=(TRAIN, rule("mine", ("warn", 0))))


@pytest.fixture
def house() -> Iterator[House]:
    """One host with two GPUs; afterwards the journal is run again and must decide the same."""
    made = House(params=PARAMS)
    yield made
    assert all(isinstance(line, int) for line in journal.replay(list(made.store.journal()), "journal"))


def see(house: House, sid: str, name: str, *, over: bool = False) -> None:
    """A host reports a rule of a session, in the next pass."""
    take_in = house.service._take_in

    def also(moment: Moment, messages: Sequence[Message]) -> None:
        take_in(moment, messages)
        event = ev.RuleEnded if over else ev.RuleMatched
        moment.apply(event(moment.now_ms, sid, name))

    house.service._take_in = also  # type: ignore[method-assign]
    house.turn()
    house.service._take_in = take_in  # type: ignore[method-assign]


def told_why(house: House, sid: str) -> list[dict[str, Any]]:
    decisions = [json.loads(row["body"]) for row in house.store.decisions(session=sid)]
    row = house.row(sid)
    appeals = house.store.appeals(user=row["user"])
    found: list[dict[str, Any]] = why(house.service._core, row, decisions, house.clock.at, appeals=appeals)["reasons"]
    return found


def restricted(house: House) -> tuple[str, str]:
    """A session of ann's for which she is restricted, and one that waits for that."""
    sid = house.submit("ann")
    house.seconds(1)
    see(house, sid, "train")
    house.seconds(61)
    waiting = house.submit("ann")
    house.seconds(1)
    return sid, waiting


def test_what_is_observed_is_on_record_and_nobody_is_told(house: House) -> None:
    """The session's row does not change; the warning after it is told in the session, as a warning."""
    sid = house.submit("ann")
    house.seconds(1)
    see(house, sid, "train")
    house.seconds(1)
    entries = [row for row in house.store.decisions(session=sid) if row["rule"] == "use.train"]
    assert [row["action"] for row in entries] == ["observe", "notice"]
    notices = [notice for notice in house.hosts["h1"].notices if notice.rule == "use.train"]
    assert [notice.level for notice in notices] == ["warn"]
    assert "A title. Words." in notices[0].text
    assert "restriction: nothing new of its user starts for 1 h" in notices[0].text
    assert "Appeal: fairtier appeal file." in notices[0].text


def test_a_rules_restriction_is_on_the_users_record_and_holds_over_a_restart(house: House) -> None:
    sid, waiting = restricted(house)
    until_ms = house.user("ann")["restricted_until_ms"]
    assert until_ms == house.service._core.ledger.users["ann"].restricted_until_ms
    house.restart()
    house.seconds(2)
    assert (house.row(sid)["state"], house.row(waiting)["state"]) == ("running", "queued")
    assert house.service._core.ledger.users["ann"].restricted_rule == "use.train"
    assert house.user("ann")["restricted_until_ms"] == until_ms


def test_why_names_the_rule_the_numbers_and_the_appeal(house: House) -> None:
    """Of the session that runs and of the one that waits; an appeal's state is added."""
    sid, waiting = restricted(house)
    (reason,) = told_why(house, waiting)
    assert (reason["code"], reason["rule"], reason["unit"], reason["threshold"]) == ("Restricted", "use.train", "h", 1)
    assert 0.9 < reason["value"] < 1
    assert "the rule train restricted ann until" in reason["text"]
    assert "A title. Words." in reason["text"]
    assert reason["change"] == "appeal"
    first = told_why(house, sid)[0]
    assert (first["code"], first["rule"]) == ("AcceptableUse", "use.train")
    house.ask(FileAppeal(session=waiting, text="it is my thesis"))
    assert "Appeal a-1 of" in told_why(house, waiting)[0]["text"]
    assert "waits for an answer" in told_why(house, sid)[0]["text"]
    house.ask(AnswerAppeal(op="deny", appeal="a-1", text="it is mining"))
    assert told_why(house, waiting)[0]["text"].endswith("it is mining")


def test_what_is_over_is_not_told_any_more(house: House) -> None:
    sid = house.submit("ann")
    house.seconds(1)
    see(house, sid, "train")
    assert told_why(house, sid)[0]["code"] == "AcceptableUse"
    see(house, sid, "train", over=True)
    assert told_why(house, sid)[0]["code"] != "AcceptableUse"


def test_granting_pardons_and_the_rule_only_observes_from_then_on(house: House) -> None:
    """Also after a restart; the rule that is not named goes on."""
    _, waiting = restricted(house)
    house.ask(FileAppeal(user="ann", text="it is my thesis"))
    answer = house.ask(AnswerAppeal(op="grant", appeal="a-1", text="sorry", allow_for_s=3600, rule="train"))
    assert not answer.error
    assert house.user("ann")["restricted_until_ms"] is None
    house.seconds(2)
    assert house.row(waiting)["state"] == "running"
    house.restart()
    see(house, waiting, "train")
    see(house, waiting, "mine")
    house.seconds(100)
    done = [row for row in house.store.decisions(session=waiting) if row["rule"].startswith("use.")]
    assert [(row["rule"], row["action"]) for row in done] == [("use.train", "observe"), ("use.mine", "notice")]
    row = house.store.appeals()[0]
    assert (row["state"], row["rule"], row["answer"], row["answered_by"]) == ("granted", "train", "sorry", "tests")
    assert row["allowed_until_ms"] - row["answered_ms"] == 3_600_000


def test_denying_changes_nothing_but_the_record(house: House) -> None:
    restricted(house)
    until_ms = house.user("ann")["restricted_until_ms"]
    house.ask(FileAppeal(user="ann", text="no"))
    house.ask(AnswerAppeal(op="deny", appeal="a-1", text="yes"))
    assert house.user("ann")["restricted_until_ms"] == until_ms
    acts = [json.loads(row["body"]) for row in house.store.decisions(user="ann") if row["rule"].startswith("admin.")]
    assert [(act["rule"], act["text"], act["appeal"]) for act in acts] == [
        ("admin.appeal", "no", "a-1"),
        ("admin.deny", "yes", "a-1"),
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_an_appeal_is_answered_once(house: House, restart: bool) -> None:
    house.ask(FileAppeal(user="ann", text="no"))
    house.ask(AnswerAppeal(op="deny", appeal="a-1", text="yes"))
    if restart:
        house.restart()
    again = house.ask(AnswerAppeal(op="grant", appeal="a-1", text="well"))
    assert again.error == "refused"
    assert "was denied at" in again.message
    assert house.store.appeals()[0]["state"] == "denied"
    assert house.ask(FileAppeal(user="ann", text="once more")).body["appeal"]["appeal"] == "a-2"


def test_two_answers_in_one_pass_are_one(house: House) -> None:
    """The second is refused although nothing is committed between them."""
    house.ask(FileAppeal(user="ann", text="no"))
    keys = [house.post(AnswerAppeal(op=op, appeal="a-1", text="x")) for op in ("deny", "grant")]
    house.turn()
    assert [house.answer(key).error for key in keys] == ["", "refused"]


def test_appeals_that_cannot_be(house: House) -> None:
    """About nobody, about nothing, with a rule that is none, and too many at once."""
    assert house.ask(FileAppeal(user="nobody", text="x")).error == "not-found"
    assert house.ask(FileAppeal(session="s-99", text="x")).error == "not-found"
    assert house.ask(AnswerAppeal(op="deny", appeal="a-9", text="x")).error == "not-found"
    for _ in range(3):
        assert not house.ask(FileAppeal(user="ann", text="x")).error
    assert house.ask(FileAppeal(user="ann", text="x")).error == "refused"
    assert not house.ask(FileAppeal(user="bob", text="x")).error
    wrong = house.ask(AnswerAppeal(op="grant", appeal="a-1", text="x", allow_for_s=9, rule="none"))
    assert wrong.error == "bad-input"
    assert "train, mine" in wrong.message
    assert house.store.appeals()[0]["state"] == "open"


@pytest.mark.parametrize(
    "values",
    [
        {"text": "x"},
        {"text": "x", "user": "ann", "session": "s-1"},
        {"text": "", "user": "ann"},
        {"text": "x" * 2001, "user": "ann"},
    ],
)
def test_appeals_that_are_not_well_formed(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        FileAppeal(**values)


def test_an_operators_restriction_is_not_a_rules(house: House) -> None:
    """A later word of an operator takes the rule's place in what is told; a pardon ends both."""
    _, waiting = restricted(house)
    house.ask(Restrict(user="ann", for_s=3600))
    assert told_why(house, waiting)[0]["rule"] == "limit.restricted"
    house.ask(Pardon(user="ann"))
    house.seconds(1)
    assert house.row(waiting)["state"] == "running"


def test_a_throttle_of_a_rule_is_renewed_on_its_host() -> None:
    """Without any warning of the ladder the lease of the throttle goes on, and ends when the rule does."""
    params = dataclasses.replace(QUICK, rules=(rule("curb", ("throttle", 0)),), tiers=Params().tiers)
    clock_house = House(Host("h1", 1), params=params)
    assert isinstance(clock_house.store, MemoryStore)
    sid = clock_house.submit("ann", fraction=0.8)
    clock_house.seconds(1)
    see(clock_house, sid, "curb")
    clock_house.seconds(30)
    assert clock_house.hosts["h1"].running[sid]["m"] == 200
    renewals = clock_house.service._dispatch._renewals
    assert renewals >= 3
    see(clock_house, sid, "curb", over=True)
    clock_house.seconds(10)
    assert clock_house.hosts["h1"].running[sid]["m"] == 800
    assert clock_house.service._dispatch._renewals <= renewals + 1


def test_outside_a_session_it_is_a_warning() -> None:
    """Mail and webhook tell what takes something away or will; a notice in a session of another rule they do not."""
    made = Decision(0, Action.NOTICE, "s", "ann", Reason("use.train"))
    assert level(made) == "warn"
    assert level(made._replace(reason=Reason("lifetime.warn"))) == "notice"
    assert level(made._replace(action=Action.RESTRICT)) == "restrict"


def test_no_appeal_no_words() -> None:
    assert appeal_words([]) == ""
