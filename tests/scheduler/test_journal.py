"""A journal says exactly what happened: it replays without a difference, and whatever is wrong with it is found."""

from __future__ import annotations

import dataclasses
import io
import json
import string
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.params import HeadroomParams, LadderParams, Params, TierParams
from scheduler import events as ev
from scheduler.core import Core, Step
from scheduler.journal import (
    EVENTS,
    Difference,
    JournalError,
    cycle_line,
    event_line,
    head_line,
    read_event,
    replay,
)
from simulations.loop import Simulation
from simulations.streams import Stream
from simulations.traces.row import Row
from simulations.workloads.workload import TraceWorkload

MINUTE_MS = 60_000
FAIR = Params(
    tiers={"free": TierParams(baseline_gpus=0.1)},
    headroom=HeadroomParams(fixed_gpus=1),
    ladder=LadderParams(min_run_ms=10 * MINUTE_MS),
)
POLICIES = {
    "fair-share": FAIR,
    "auto": dataclasses.replace(FAIR, tiers={"free": TierParams()}),
    "fifo": Params(policy="fifo"),
    "fifo-skip": Params(policy="fifo-skip"),
    "sjf": Params(policy="sjf"),
}

# -- the codec -----------------------------------------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63),
    "int | None": st.none() | st.integers(-(2**63), 2**63),
    "float": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-100, 100),
    "float | None": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "str": st.text(),
    "str | None": st.none() | st.text(),
    "bool": st.booleans(),
}


def made_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Events of one class with any values that their members may have."""
    texts = {name: getattr(wanted, "__forward_arg__", wanted) for name, wanted in kind.__annotations__.items()}
    return st.builds(kind, **{name: VALUES[str(text)] for name, text in texts.items()})


def test_every_event_class_has_a_codec() -> None:
    """The journal knows each class of `scheduler.events`, under its name."""
    classes = {name: kind for name, kind in vars(ev).items() if isinstance(kind, type) and issubclass(kind, tuple)}
    assert {name: kind for name, kind in classes.items() if name != "NamedTuple"} == EVENTS


@pytest.mark.parametrize("name", EVENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_event_comes_back_as_it_was_written(name: str, data: st.DataObject) -> None:
    """Any values, through one line of JSON and back; the line holds no newline."""
    event = data.draw(made_of(EVENTS[name]))
    line = event_line(event)
    assert "\n" not in line
    again = read_event(json.loads(line))
    assert again == event
    assert type(again) is type(event)
    assert event_line(again) == line


@pytest.mark.parametrize("name", EVENTS)
def test_members_with_a_default_may_be_left_out_and_others_not(name: str) -> None:
    """A line with only what is required reads as the defaults; without any one of that it is refused."""
    kind = EVENTS[name]
    required = [member for member in kind._fields if member not in kind._field_defaults]
    sample = {"int": 5, "float": 0.5, "str": "x", "float | None": 0.5}
    entry = {
        member: sample[str(getattr(kind.__annotations__[member], "__forward_arg__", "str"))] for member in required
    }
    assert read_event({"event": name, **entry}) == kind(**entry)
    for member in required:
        with pytest.raises(ValueError, match=member):
            read_event({"event": name} | {key: value for key, value in entry.items() if key != member})


# -- journals of simulations ---------------------------------------------------------------------------------------


def rows(seed: int, number: int) -> list[Row]:
    """Sessions of eight users who ask for more than four GPUs can give."""
    draw = Stream(seed, "journal")
    at_ms, made = 0, []
    for index in range(number):
        at_ms += round(draw.exponential(8 * MINUTE_MS))
        wide, part = draw.integer(1, 6), draw.integer(0, 3) == 0
        made.append(
            Row(
                f"s{index}",
                f"u{draw.integer(0, 7)}",
                ("default", "lab")[draw.integer(0, 1)],
                "free",
                at_ms,
                max(1, round(draw.exponential(90 * MINUTE_MS))),
                gpus=1 if part or wide <= 4 else wide - 3,
                fraction=draw.integer(1, 9) / 10 if part else 1.0,
                load=None if draw.integer(0, 3) == 0 else draw.uniform(),
                patience_ms=None if draw.integer(0, 1) else draw.integer(1, 120) * MINUTE_MS,
                kind="researcher",
            )
        )
    users: dict[str, str] = {}
    return [row._replace(group=users.setdefault(row.user, row.group)) for row in made]


@lru_cache
def journal(policy: str = "fair-share", seed: int = 4, number: int = 60) -> tuple[str, ...]:
    """The lines of a journal, without newlines."""
    core = Core(make_policy(POLICIES[policy]))
    core.apply(ev.HostJoined(0, "a", 2))
    core.apply(ev.HostJoined(0, "b", 2))
    lines = [head_line(core)]

    def tap(happened: Any, at_ms: int) -> None:
        lines.append(cycle_line(happened, at_ms) if isinstance(happened, Step) else event_line(happened))

    for _ in Simulation(core, TraceWorkload("t", rows(seed, number)), tap).run():
        pass
    return tuple(lines)


def results(lines: Any, params: Params | None = None) -> list[Difference | int]:
    return list(replay([f"{line}\n" for line in lines], "j.jsonl", params))


def outcome(lines: Any) -> Difference | int | JournalError | None:
    """The last thing that a replay says, or how it was refused."""
    try:
        said = list(replay(lines, "j.jsonl"))
    except JournalError as error:
        return error
    return said[-1] if said else None


def cycles(lines: tuple[str, ...]) -> list[int]:
    return [number for number, line in enumerate(lines, start=1) if line.startswith('{"cycle"')]


SEEDS = (1, 4, 5, 11)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_journal_of_a_simulation_replays_without_a_difference(policy: str, seed: int) -> None:
    """Every cycle's line is reproduced byte for byte, under the policy that the journal itself carries."""
    lines = journal(policy, seed)
    assert results(lines) == cycles(lines)


def test_these_journals_are_worth_replaying() -> None:
    """The journals that the tests here change contain starts and every step of the ladder."""
    text = "\n".join(line for seed in SEEDS for line in journal("fair-share", seed))
    for rule in ("order.in-credit", "order.nominated", "ladder.notice", "ladder.warn", "ladder.throttle"):
        assert f'"rule":"{rule}"' in text
    assert '"rule":"ladder.evict' in text


def test_a_journal_that_begins_in_the_middle_replays_as_well() -> None:
    """The head is a checkpoint: a journal opened half-way through a run goes on from there."""
    lines = journal()
    core = Core(make_policy(FAIR))
    replayed: list[str] = []
    half = cycles(lines)[len(cycles(lines)) // 2]
    core.apply(ev.HostJoined(0, "a", 2))
    core.apply(ev.HostJoined(0, "b", 2))
    for line in lines[1:half]:
        entry = json.loads(line)
        if "event" in entry:
            core.apply(read_event(entry))
        else:
            core.cycle(entry["cycle"])
    replayed = [head_line(core), *lines[half:]]
    assert results(replayed) == [number - half + 1 for number in cycles(lines) if number > half]


def with_decisions(lines: tuple[str, ...]) -> list[int]:
    return [number for number in cycles(lines) if '"decisions":[]' not in lines[number - 1]]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_changed_character_of_a_decision_is_found_at_its_line(data: st.DataObject) -> None:
    """Any one character inside the decisions, replaced by another printable one: found at that very line."""
    lines = list(journal())
    number = data.draw(st.sampled_from(with_decisions(journal())))
    line = lines[number - 1]
    at = data.draw(st.integers(line.index("["), len(line) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits).filter(lambda char: char != line[at]))
    lines[number - 1] = line[:at] + other + line[at + 1 :]
    last = outcome(lines)
    if isinstance(last, JournalError):
        assert last.message.startswith(f"j.jsonl:{number}:")
    else:
        assert last == Difference(number, lines[number - 1], line)


def test_a_decision_left_out_or_added_is_found() -> None:
    """A cycle without its first decision, or with one twice, differs."""
    number = with_decisions(journal())[3]
    entry = json.loads(journal()[number - 1])
    for decisions in (entry["decisions"][1:], entry["decisions"] + entry["decisions"][:1]):
        lines = list(journal())
        lines[number - 1] = json.dumps(entry | {"decisions": decisions}, separators=(",", ":"))
        assert isinstance(results(lines)[-1], Difference)
        assert results(lines)[-1].line == number  # type: ignore[union-attr]


def test_an_event_left_out_is_noticed() -> None:
    """Without one of its submits the run is another: a difference, or an event that does not fit any more."""
    lines = [line for line in journal() if '"session":"s3"' not in line or '"SessionSubmitted"' not in line]
    assert len(lines) == len(journal()) - 1
    last = outcome(lines)
    assert isinstance(last, Difference) or (isinstance(last, JournalError) and "s3" in last.message)


@pytest.mark.parametrize("policy", ["fifo", "fifo-skip", "sjf"])
def test_another_policy_differs(policy: str) -> None:
    """The same events decided by another policy: the first cycle with another decision is the last thing said."""
    said = results(journal(), POLICIES[policy])
    assert isinstance(said[-1], Difference)
    assert all(isinstance(number, int) for number in said[:-1])
    assert '"rule":"order.in-credit"' in said[-1].recorded
    assert '"rule":"order.' in said[-1].replayed


# -- broken lines --------------------------------------------------------------------------------------------------

SUBMIT = next(number for number, line in enumerate(journal(), start=1) if '"SessionSubmitted"' in line)
EVENT = '{"event":"SessionSubmitted","at_ms":0,"session":"s","user":"u"'
BROKEN: dict[str, str] = {
    "cut off": journal()[SUBMIT - 1][:-9],
    "not JSON": "hello",
    "blank": "",
    "array": "[1,2]",
    "number": "5",
    "string": '"cycle"',
    "null": "null",
    "empty object": "{}",
    "two objects": "{}{}",
    "unknown event": '{"event":"HostExploded","at_ms":0}',
    "event that is no name": '{"event":5,"at_ms":0}',
    "event that is a list": '{"event":["SessionHeld"],"at_ms":0}',
    "text for a time": '{"event":"SessionHeld","at_ms":"0","session":"s"}',
    "float for a time": '{"event":"SessionHeld","at_ms":0.0,"session":"s"}',
    "number for text": '{"event":"SessionHeld","at_ms":0,"session":5}',
    "null for text": '{"event":"SessionHeld","at_ms":0,"session":null}',
    "bool for int": EVENT + ',"gpus":true}',
    "bool for float": '{"event":"UsageSet","at_ms":0,"user":"u0","usage_gpu_h":true}',
    "int for bool": '{"event":"HostJoined","at_ms":0,"host":"x","gpus":1,"heartbeat":1}',
    "NaN": '{"event":"UsageSet","at_ms":0,"user":"u0","usage_gpu_h":NaN}',
    "infinity": '{"event":"UsageSet","at_ms":0,"user":"u0","usage_gpu_h":1e999}',
    "missing member": '{"event":"SessionHeld","at_ms":0}',
    "extra member": EVENT + ',"colour":"red"}',
    "event and cycle": EVENT + ',"cycle":0}',
    "deeply nested": "[" * 100_000 + "]" * 100_000,
    "deeply nested value": EVENT + ',"gpus":' + "[" * 100_000 + "]" * 100_000 + "}",
    "cycle of text": '{"cycle":"0","decisions":[]}',
    "cycle of null": '{"cycle":null,"decisions":[]}',
    "cycle of bool": '{"cycle":false,"decisions":[]}',
    "cycle of float": '{"cycle":0.0,"decisions":[]}',
    "cycle in the past": '{"cycle":-5,"decisions":[]}',
    "cycle beyond numbers": '{"cycle":' + "9" * 400 + ',"decisions":[]}',
    "more digits than are read": '{"cycle":' + "9" * 5000 + ',"decisions":[]}',
    "time far away": '{"event":"SessionHeld","at_ms":' + "9" * 18 + ',"session":"s"}',
    "time beyond numbers": '{"event":"SessionHeld","at_ms":' + "9" * 400 + ',"session":"s"}',
    "time in the past": '{"event":"HostJoined","at_ms":-1,"host":"x","gpus":1}',
    "does not fit the state": '{"event":"SessionHeld","at_ms":0,"session":"never-heard-of"}',
    "host without GPUs": '{"event":"HostJoined","at_ms":0,"host":"x","gpus":0}',
    "no GPUs": EVENT + ',"gpus":0}',
    "parts of two GPUs": EVENT + ',"gpus":2,"fraction_m":500}',
    "another head of a newer version": journal()[0].replace('"journal":1', '"journal":2'),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named_with_file_and_line(text: str) -> None:
    """Put in the place of the first event, it ends the replay as `JournalError`, and the place is in the message."""
    lines = list(journal())
    lines[SUBMIT - 1] = text
    with pytest.raises(JournalError) as caught:
        results(lines)
    assert caught.value.message.startswith(f"j.jsonl:{SUBMIT}: ")
    assert len(caught.value.message) < 2000
    assert caught.value.exit_code == 2


HEAD = json.loads(journal()[0])
HEADS: dict[str, Any] = {
    "version 2": HEAD | {"journal": 2},
    "version of text": HEAD | {"journal": "1"},
    "version true": HEAD | {"journal": True},
    "version of float": HEAD | {"journal": 1.0},
    "no version": {key: value for key, value in HEAD.items() if key != "journal"},
    "no policy": {key: value for key, value in HEAD.items() if key != "policy"},
    "no checkpoint": {key: value for key, value in HEAD.items() if key != "checkpoint"},
    "policy that is none": HEAD | {"policy": "this is no TOML ["},
    "policy with a wrong value": HEAD | {"policy": 'policy = "fair-share"\n[usage]\nhalf_life_h = 0\n'},
    "unknown policy": HEAD | {"policy": 'policy = "best"'},
    "policy of number": HEAD | {"policy": 5},
    "policy of null": HEAD | {"policy": None},
    "checkpoint of null": HEAD | {"checkpoint": None},
    "checkpoint of list": HEAD | {"checkpoint": []},
    "empty checkpoint": HEAD | {"checkpoint": {}},
    "memory of number": HEAD | {"checkpoint": HEAD["checkpoint"] | {"memory": 5}},
    "memory of something": HEAD | {"checkpoint": HEAD["checkpoint"] | {"memory": {"x": 1}}},
    "host without GPUs": HEAD
    | {"checkpoint": HEAD["checkpoint"] | {"hosts": [HEAD["checkpoint"]["hosts"][0] | {"gpus": 0}]}},
    "an event": {"event": "HostJoined", "at_ms": 0, "host": "x", "gpus": 1},
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_broken_head_is_named_with_file_and_line(head: Any) -> None:
    """Another version, a policy or a checkpoint that cannot be: `JournalError` at line 1."""
    with pytest.raises(JournalError) as caught:
        results([json.dumps(head), *journal()[1:]])
    assert caught.value.message.startswith("j.jsonl:1: ")


@pytest.mark.parametrize(("far", "why"), [(10**15, "backwards"), (10**15 + 1, "beyond"), (10**18, "beyond")])
def test_times_in_the_far_future_do_no_harm(far: int, why: str) -> None:
    """31,700 years ahead is the last instant: up to it only what comes after is refused, past it the line itself."""
    number = SUBMIT + (why == "backwards")
    for text in (f'{{"cycle":{far},"decisions":[]}}', EVENT.replace('"at_ms":0', f'"at_ms":{far}') + "}"):
        with pytest.raises(JournalError, match=rf"^j\.jsonl:{number}: .*{why}"):
            results([*journal()[: SUBMIT - 1], text, *journal()[SUBMIT:]])
    head = HEAD | {"checkpoint": HEAD["checkpoint"] | {"now_ms": far}}
    with pytest.raises(JournalError, match=r"^j\.jsonl:[12]: "):
        results([json.dumps(head), *journal()[1:]])


def test_an_empty_file_is_refused() -> None:
    """No line at all is no journal; only the head is one, in which nothing happened."""
    with pytest.raises(JournalError, match=r"j\.jsonl"):
        results([])
    assert results(journal()[:1]) == []


def test_a_line_too_long_to_be_one_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit a line is refused by its length."""
    monkeypatch.setattr("scheduler.journal.LINE_LIMIT", 1000)
    with pytest.raises(JournalError, match=r"j\.jsonl:1: .* at most 1000"):
        results([json.dumps(HEAD | {"x": "x" * 1000})])


# -- fuzz ----------------------------------------------------------------------------------------------------------


def replayed_or_refused(raw: bytes) -> None:
    """As the command reads it: any bytes; nothing but `JournalError` may come of it."""
    text = io.StringIO(raw.decode("utf-8", errors="surrogateescape"), newline=None)
    last = outcome(text)
    assert not isinstance(last, JournalError) or last.message.startswith("j.jsonl:")


SMALL = journal("fair-share", 2, 12)
RAW = "".join(f"{line}\n" for line in SMALL).encode()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw: bytes) -> None:
    """Noise is no journal, nor after a good head."""
    replayed_or_refused(raw)
    replayed_or_refused(SMALL[0].encode() + b"\n" + raw)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 3), st.binary(min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_journals_are_refused_or_replayed(changes: list[tuple[int, int, bytes]]) -> None:
    """A few bytes put in, taken out, changed or cut off: `JournalError`, a difference, or nothing that matters."""
    raw = RAW
    for at, kind, new in changes:
        at %= len(raw) or 1
        raw = (
            raw[:at] + new + raw[at + len(new) :],
            raw[:at] + new + raw[at:],
            raw[:at] + raw[at + len(new) :],
            raw[: at + 1],
        )[kind]
    replayed_or_refused(raw)


VALUE = st.sampled_from([None, True, 0, -1, 10**18, 10**400, 0.5, 1e308, "", "x", "default", [], {}])


@settings(max_examples=250, deadline=None)
@given(number=st.integers(1, len(SMALL) - 1), which=st.integers(0, 20), value=VALUE)
def test_events_with_another_value_are_refused_or_replayed(number: int, which: int, value: Any) -> None:
    """One member of one event or cycle replaced by a value that JSON can hold: never anything but `JournalError`."""
    entry = json.loads(SMALL[number])
    names = list(entry)
    entry[names[which % len(names)]] = value
    lines = [*SMALL[:number], json.dumps(entry), *SMALL[number + 1 :]]
    replayed_or_refused("".join(f"{line}\n" for line in lines).encode())


def test_the_fuzzed_journal_is_a_good_one() -> None:
    """Unchanged bytes replay to the end: the fuzz tests start from something that works."""
    assert results(SMALL) == cycles(SMALL)
    replayed_or_refused(RAW)
