"""The interface to a host's GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Watched(NamedTuple):
    """A session that is measured.

    Attributes:
        gpus: numbers of the GPUs on this host that it may use.
        since_ns: when it began, on the clock of `sample`; None = it was running before we looked, so that the first
            sample can be a beginning only.
    """

    gpus: tuple[int, ...]
    since_ns: int | None


class Sample(NamedTuple):
    """What a session computed since the sample before.

    Attributes:
        busy_ns: GPU-nanoseconds, over all its GPUs.
        known: False = it could not be measured; `busy_ns` is then what is certain, mostly 0.
    """

    busy_ns: int
    known: bool


class GpuProbe(Protocol):
    """Measures what sessions compute.

    Attributes:
        gpus: of this host.  model, memory_mib: of each of them; None = unknown.
    """

    gpus: int
    model: str | None
    memory_mib: int | None

    def sample(self, now_ns: int, sessions: Mapping[str, Watched]) -> dict[str, Sample]:
        """What each of these sessions computed since it was last asked about."""

    def forget(self, session: str) -> None:
        """The session has ended."""
