"""One pass of the service: an instant, what happens at it, and the batch that will put it on record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.journal import cycle_line, event_line
from scheduler.ports import Batch
from scheduler.requests import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scheduler.activation import Change
    from scheduler.core import Core, Step
    from scheduler.errors import FairTierError
    from scheduler.events import Event
    from scheduler.ports import HostCommand
    from scheduler.requests import Request


class Moment:
    """See the module's docstring.

    Attributes:
        now_ms: the instant of everything in it.
        batch: what will be written.
        asked: requests taken in, each with a function that gives its answer's body after the cycle.
        keys: of all requests taken in; again: requests with one of these keys, which get the first one's answer.
        answered: (reply_to, answer) pairs that are ready.
        by: who asked for what is being done now.
        key: of the request that is being done now.
        change: the policy that is to be in force after this pass; changing: key of the request that asked for it.
        commands: (host, command) pairs to send after the commit, without a row in the outbox.
    """

    def __init__(self, core: Core, now_ms: int) -> None:
        self.core = core
        self.now_ms = now_ms
        self.batch = Batch(now_ms)
        self.asked: list[tuple[Request, Callable[[], dict[str, Any]]]] = []
        self.keys: set[str] = set()
        self.again: list[Request] = []
        self.answered: list[tuple[str, Answer]] = []
        self.by = ""
        self.key = ""
        self.change: Change | None = None
        self.changing = ""
        self.commands: list[tuple[str, HostCommand]] = []

    def apply(self, event: Event) -> None:
        """Have the core take note of an event, and the journal."""
        self.core.apply(event)
        self.batch.lines.append(event_line(event))

    def cycle(self) -> Step:
        """Have the core decide."""
        step = self.core.cycle(self.now_ms)
        self.batch.lines.append(cycle_line(step, self.now_ms))
        return step

    def refuse(self, request: Request, error: FairTierError, sort: str) -> None:
        """A request came to nothing; on record, so that a repetition hears the same."""
        answer = Answer.model_validate(
            {"key": request.key, "error": sort, "message": error.message, "hint": error.hint}
        )
        self.batch.answers.append(answer)
        self.answered.append((request.reply_to, answer))

    def give_up(self, error: FairTierError) -> None:
        """Another policy cannot take over: its request is refused, the rest of the pass stands."""
        self.change = None
        for request in [request for request, _ in self.asked if request.key == self.changing]:
            self.refuse(request, error, "refused")
        self.asked = [entry for entry in self.asked if entry[0].key != self.changing]

    def settle(self) -> None:
        """After the cycle: the answers to everything that was done."""
        for request, body in self.asked:
            answer = Answer(key=request.key, body=body())
            self.batch.answers.append(answer)
            self.answered.append((request.reply_to, answer))
        for request in self.again:
            self.answered += [(request.reply_to, first) for first in self.batch.answers if first.key == request.key]
