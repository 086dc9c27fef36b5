"""What background work can be asked for: the arguments of each kind, checked when it is asked for and when it is run.

What lies in Redis is not trusted, so the worker checks again. Nothing here names a path, a module or a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scheduler.errors import BadInput
from scheduler.policy_files import DEFAULT_PRESET, preset_names
from scheduler.requests import mistakes
from scheduler.task_rows import KINDS
from workers.protocol import Milliseconds, Name, Text

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_DAYS = 366
Mail = Annotated[str, Field(max_length=254, pattern=r"^[^\s@<>,;:\"()\[\]\\]+@[^\s@<>,;:\"()\[\]\\]+$")]
Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class UsageReport(_Arguments):
    """Who used what from `since_ms` to before `until_ms`, as a file `report.csv` or `report.json`."""

    since_ms: Milliseconds
    until_ms: Milliseconds
    format: Literal["csv", "json"] = "csv"

    @model_validator(mode="after")
    def _ordered(self) -> UsageReport:
        if not self.since_ms < self.until_ms:
            raise ValueError("since_ms must be less than until_ms")
        return self


class Simulate(_Arguments):
    """A run of a shipped scenario under a shipped policy; the files of `simulate run --out`.

    Attributes:
        days: None = the scenario's.
    """

    scenario: Name
    policy: Name = DEFAULT_PRESET
    seed: Annotated[int, Field(ge=0, le=1 << 53)] = 1
    days: Annotated[float, Field(gt=0, le=LONGEST_DAYS, allow_inf_nan=False, strict=False)] | None = None

    @field_validator("policy")
    @classmethod
    def _shipped(cls, policy: str) -> str:
        if policy not in preset_names():
            raise ValueError(f"no policy {policy!r}; one of {', '.join(preset_names())}")
        return policy


class Notify(_Arguments):
    """One notice by one channel.

    Attributes:
        session, user, host: whom it is about; host None = it has none.
        level: what happens to the session.  text: for people.
        rule, value, threshold, unit, until_ms, change: the reason, as the decision has it.
        at_ms: when it was decided.  mail: where to; needed by the channel `mail`.
    """

    channel: Literal["webhook", "mail"]
    session: Name
    user: Name
    host: Name | None = None
    level: Literal["notice", "warn", "throttle", "grace", "evict", "reject", "restrict"]
    text: Text
    rule: Annotated[str, Field(max_length=128)]
    value: Figure | None = None
    threshold: Figure | None = None
    unit: Annotated[str, Field(max_length=32)] = ""
    until_ms: Milliseconds | None = None
    change: Annotated[str, Field(max_length=1000)] = ""
    at_ms: Milliseconds
    mail: Mail | None = None

    @model_validator(mode="after")
    def _addressed(self) -> Notify:
        if self.channel == "mail" and self.mail is None:
            raise ValueError("a notice by mail needs an address")
        return self


_MODELS: Mapping[str, type[_Arguments]] = {"notify": Notify, "simulate": Simulate, "usage-report": UsageReport}


def check_arguments(kind: str, arguments: Mapping[str, Any]) -> UsageReport | Simulate | Notify:
    """The arguments of a kind of background work, with their defaults.

    Raises:
        BadInput: there is no such kind, or every mistake in the arguments at once.
    """
    model = _MODELS.get(kind)
    if model is None:
        raise BadInput(f"no background work of the kind {kind!r}", f"the kinds are {', '.join(KINDS)}")
    try:
        return model.model_validate(dict(arguments))  # type: ignore[return-value]  # the table holds these three
    except ValidationError as error:
        raise BadInput(f"{kind}: {mistakes(error)}") from None
