"""The table of a session's life is whole, and the core follows it: every event in every state moves as it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.catalogue import make_policy
from policies.model import Action, State
from policies.params import Params, TierParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core, CoreError
from scheduler.lifecycle import TABLE, IllegalMove, Trigger, after, mermaid

# -- the table itself ----------------------------------------------------------------------------------------------

EXPECTED = """
none submit queued
queued hold held
queued start starting
queued reject ended
queued abandon ended
queued cancel ended
held unhold queued
held reject ended
held abandon ended
held cancel ended
starting started running
starting cancel stopping
starting evict stopping
starting lose ended
starting end ended
running cancel stopping
running evict stopping
running lose ended
running end ended
stopping started stopping
stopping lose ended
stopping end ended
"""
MOVES = {(state, trigger): to for state, trigger, to in (line.split() for line in EXPECTED.split("\n") if line)}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", [None, *State])
def test_every_pair_of_state_and_trigger_moves_as_written_down_or_is_refused(
    state: State | None, trigger: Trigger
) -> None:
    """The table has exactly the moves listed here; any other names session, state and trigger."""
    wanted = MOVES.get((state or "none", trigger))
    if wanted is not None:
        assert after("s-1", state, trigger) is State(wanted)
        return
    with pytest.raises(IllegalMove) as caught:
        after("s-1", state, trigger)
    assert (caught.value.session, caught.value.state, caught.value.trigger) == ("s-1", state, trigger)
    assert "s-1" in str(caught.value)
    assert str(trigger) in str(caught.value)
    assert str(state or "unknown") in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    """From nothing every state is reachable, and the table speaks of no other."""
    assert set(TABLE) == {None, *State}
    reached: set[State | None] = {None}
    while True:
        more = reached | {to for state in reached for to in TABLE[state].values()}
        if more == reached:
            break
        reached = more
    assert reached == {None, *State}


def test_ended_is_final_and_can_be_reached_from_everywhere() -> None:
    """Nothing leaves `ended`, and no session is caught in a state that cannot end."""
    assert TABLE[State.ENDED] == {}
    for state in (State.QUEUED, State.HELD, State.STARTING, State.RUNNING, State.STOPPING):
        assert State.ENDED in TABLE[state].values()


def test_every_trigger_is_used() -> None:
    """No trigger is without effect everywhere."""
    assert {trigger for moves in TABLE.values() for trigger in moves} == set(Trigger)


def test_the_diagram_has_every_move_between_two_states() -> None:
    """What the documentation shows is the table."""
    lines = [line.strip() for line in mermaid().split("\n")]
    assert lines[0] == "stateDiagram-v2"
    shown = {line for line in lines[1:] if not line.endswith("[*]")}
    wanted = {f"{'[*]' if s == 'none' else s} --> {to}: {trigger}" for (s, trigger), to in MOVES.items() if s != to}
    assert shown == wanted
    assert "ended --> [*]" in lines


# -- the core follows it -------------------------------------------------------------------------------------------

POLICIES = {
    "fair-share": Params(tiers={"free": TierParams(baseline_gpus=0.5)}),
    "fifo": Params(policy="fifo"),
    "fifo-skip": Params(policy="fifo-skip"),
    "sjf": Params(policy="sjf"),
}
SID = "s"


def fresh(policy: str) -> Core:
    """A core with one GPU, which somebody else holds, so that `s` waits; a host that reports stands by, drained."""
    core = Core(make_policy(POLICIES[policy]))
    core.apply(ev.HostJoined(0, "h", 1))
    core.apply(ev.SessionSubmitted(0, "other", "olga"))
    assert [d.action for d in core.cycle(0).decisions] == [Action.START]
    core.apply(ev.SessionStarted(0, "other"))
    return core


def queued(core: Core) -> None:
    core.apply(ev.SessionSubmitted(1000, SID, "ann"))
    core.cycle(1000)


def held(core: Core) -> None:
    queued(core)
    core.apply(ev.SessionHeld(1000, SID))


def starting(core: Core) -> None:
    queued(core)
    core.apply(ev.SessionEnded(1000, "other"))
    assert [d.session for d in core.cycle(1000).decisions] == [SID]


def running(core: Core) -> None:
    starting(core)
    core.apply(ev.SessionStarted(1000, SID))


def stopping(core: Core) -> None:
    running(core)
    core.apply(ev.SessionCancelled(1000, SID))


def ended(core: Core) -> None:
    running(core)
    core.apply(ev.SessionEnded(1000, SID))


BRING: dict[State | None, Callable[[Core], None]] = {
    None: lambda core: None,
    State.QUEUED: queued,
    State.HELD: held,
    State.STARTING: starting,
    State.RUNNING: running,
    State.STOPPING: stopping,
    State.ENDED: ended,
}
TRIGGERS: dict[type[Any], Trigger] = {
    ev.SessionSubmitted: Trigger.SUBMIT,
    ev.SessionHeld: Trigger.HOLD,
    ev.SessionUnheld: Trigger.UNHOLD,
    ev.SessionAbandoned: Trigger.ABANDON,
    ev.SessionCancelled: Trigger.CANCEL,
    ev.SessionStarted: Trigger.STARTED,
    ev.SessionEnded: Trigger.END,
}


def event(kind: type[Any], at_ms: int) -> ev.Event:
    made: ev.Event = kind(at_ms, SID, "ann") if kind is ev.SessionSubmitted else kind(at_ms, SID)
    return made


def state_of(core: Core) -> State | None:
    session = core.sessions.get(SID)
    return None if session is None else session.state


@pytest.mark.parametrize("kind", TRIGGERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", [None, *State], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_core_moves_sessions_as_the_table_says(policy: str, state: State | None, kind: type[Any]) -> None:
    """A known move leads where the table says; any other is refused and leaves everything as it was.

    The core forgets sessions that have ended, so for it `ended` is the same as never heard of.
    """
    core = fresh(policy)
    BRING[state](core)
    now = core.now_ms
    known = None if state is State.ENDED else state
    assert state_of(core) == known
    before = checkpoint.dump(core)
    wanted = TABLE[known].get(TRIGGERS[kind])
    if wanted is None:
        with pytest.raises((CoreError, IllegalMove)) as caught:
            core.apply(event(kind, now))
        assert SID in str(caught.value)
        assert checkpoint.dump(core) == before
    else:
        core.apply(event(kind, now))
        assert state_of(core) == (None if wanted is State.ENDED else wanted)
        assert core.revision == before["revision"] + 1
    core.validate()
    core.cycle(now)
    core.validate()


@pytest.mark.parametrize("state", [None, *State], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_reports_of_load_and_of_saved_work_never_change_the_state(policy: str, state: State | None) -> None:
    """A load is taken of sessions with GPUs and refused for others; saving is no move either."""
    core = fresh(policy)
    BRING[state](core)
    now = core.now_ms
    known, before = state_of(core), checkpoint.dump(core)
    if state in (State.STARTING, State.RUNNING, State.STOPPING):
        core.apply(ev.LoadReported(now, SID, 0.5))
        assert core.sessions[SID].load == 0.5
    else:
        with pytest.raises(CoreError):
            core.apply(ev.LoadReported(now, SID, 0.5))
        assert checkpoint.dump(core) == before
    if known is None:
        with pytest.raises(CoreError):
            core.apply(ev.SessionSaved(now, SID))
        assert checkpoint.dump(core) == before
    else:
        core.apply(ev.SessionSaved(now, SID, acknowledged=True))
    assert state_of(core) == known
    core.validate()


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (State.QUEUED, Action.START),
        (State.QUEUED, Action.REJECT),
        (State.STARTING, Action.EVICT),
        (State.RUNNING, Action.EVICT),
        (State.STARTING, Action.LOSE),
        (State.RUNNING, Action.LOSE),
        (State.STOPPING, Action.LOSE),
    ],
    ids=str,
)
def test_decisions_move_sessions_as_the_table_says(state: State, action: Action) -> None:
    """`start reject evict lose` come out of real cycles and lead to the state of the table."""
    core = DECIDED[state, action]()
    wanted = TABLE[state][Trigger(action.value)]
    assert state_of(core) == (None if wanted is State.ENDED else wanted)
    core.validate()


def _ladder_core(*, heartbeat: bool = False) -> Core:
    tiers = {"free": TierParams(baseline_gpus=0.01)}
    core = Core(make_policy(Params(tiers=tiers)))
    core.apply(ev.HostJoined(0, "h", 1, heartbeat=heartbeat))
    core.apply(ev.UserSet(0, "ann"))
    core.apply(ev.UsageSet(0, "ann", 20.0))
    core.apply(ev.SessionSubmitted(0, SID, "ann"))
    return core


def _started() -> Core:
    core = _ladder_core()
    core.cycle(0)
    return core


def _rejected() -> Core:
    core = Core(make_policy(POLICIES["fair-share"]))
    core.apply(ev.HostJoined(0, "h", 1))
    core.apply(ev.SessionSubmitted(0, SID, "ann", gpus=2))
    assert state_of(core) is State.QUEUED
    assert [d.action for d in core.cycle(0).decisions] == [Action.REJECT]
    return core


def _evicted(*, started: bool) -> Core:
    core = _started()
    if started:
        core.apply(ev.SessionStarted(0, SID))
    core.apply(ev.SessionSubmitted(1000, "waiter", "bob"))
    deadline: int | None = 1000
    while deadline is not None:
        assert state_of(core) is (State.RUNNING if started else State.STARTING)
        step = core.cycle(deadline)
        if any(d.action is Action.EVICT for d in step.decisions):
            return core
        deadline = step.next_deadline_ms
    raise AssertionError("nobody was evicted")


def _lost(state: State) -> Core:
    core = _ladder_core(heartbeat=True)
    core.cycle(0)
    if state is not State.STARTING:
        core.apply(ev.SessionStarted(0, SID))
    if state is State.STOPPING:
        core.apply(ev.SessionCancelled(0, SID))
    assert state_of(core) is state
    assert [d.action for d in core.cycle(3_600_000).decisions] == [Action.LOSE]
    return core


DECIDED: dict[tuple[State, Action], Callable[[], Core]] = {
    (State.QUEUED, Action.START): _started,
    (State.QUEUED, Action.REJECT): _rejected,
    (State.STARTING, Action.EVICT): lambda: _evicted(started=False),
    (State.RUNNING, Action.EVICT): lambda: _evicted(started=True),
    (State.STARTING, Action.LOSE): lambda: _lost(State.STARTING),
    (State.RUNNING, Action.LOSE): lambda: _lost(State.RUNNING),
    (State.STOPPING, Action.LOSE): lambda: _lost(State.STOPPING),
}
