"""The life of a session as one table: which trigger moves it from which state to which.

Everything about states is here, and this file knows nothing else. The diagram in docs/architecture.md is generated from
`TABLE` (`python -m scheduler.lifecycle`), and a test covers every pair of state and trigger.
"""

from __future__ import annotations

from enum import StrEnum

from policies.model import State


class Trigger(StrEnum):
    """What can happen to a session. `start reject evict lose` are decisions, the others are events."""

    SUBMIT = "submit"
    HOLD = "hold"
    UNHOLD = "unhold"
    ABANDON = "abandon"
    CANCEL = "cancel"
    START = "start"
    REJECT = "reject"
    STARTED = "started"
    EVICT = "evict"
    LOSE = "lose"
    END = "end"


TABLE: dict[State | None, dict[Trigger, State]] = {
    None: {Trigger.SUBMIT: State.QUEUED},
    State.QUEUED: {
        Trigger.HOLD: State.HELD,
        Trigger.START: State.STARTING,
        Trigger.REJECT: State.ENDED,
        Trigger.ABANDON: State.ENDED,
        Trigger.CANCEL: State.ENDED,
    },
    State.HELD: {
        Trigger.UNHOLD: State.QUEUED,
        Trigger.REJECT: State.ENDED,
        Trigger.ABANDON: State.ENDED,
        Trigger.CANCEL: State.ENDED,
    },
    State.STARTING: {
        Trigger.STARTED: State.RUNNING,
        Trigger.CANCEL: State.STOPPING,
        Trigger.EVICT: State.STOPPING,
        Trigger.LOSE: State.ENDED,
        Trigger.END: State.ENDED,
    },
    State.RUNNING: {
        Trigger.CANCEL: State.STOPPING,
        Trigger.EVICT: State.STOPPING,
        Trigger.LOSE: State.ENDED,
        Trigger.END: State.ENDED,
    },
    State.STOPPING: {Trigger.STARTED: State.STOPPING, Trigger.LOSE: State.ENDED, Trigger.END: State.ENDED},
    State.ENDED: {},
}


class IllegalMove(ValueError):
    """A trigger that the session's state does not know."""

    def __init__(self, session: str, state: State | None, trigger: Trigger) -> None:
        known = ", ".join(TABLE[state]) or "nothing"
        super().__init__(f"session {session} is {state or 'unknown'}: {trigger} is not possible (possible: {known})")
        self.session = session
        self.state = state
        self.trigger = trigger


def after(session: str, state: State | None, trigger: Trigger) -> State:
    """The state that `trigger` leads to; raises `IllegalMove` when the table has none."""
    to = TABLE[state].get(trigger)
    if to is None:
        raise IllegalMove(session, state, trigger)
    return to


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for state, moves in TABLE.items():
        for trigger, to in moves.items():
            if to is not state:
                lines.append(f"    {state or '[*]'} --> {to}: {trigger}")
    lines.append(f"    {State.ENDED} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(mermaid())
