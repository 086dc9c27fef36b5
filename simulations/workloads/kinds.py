"""The six archetypes by name. What each one does is in `by_day` and `round_the_clock`."""

from collections.abc import Mapping
from types import MappingProxyType

from simulations.workloads.by_day import Researcher, Student, Sweep
from simulations.workloads.people import Kind
from simulations.workloads.round_the_clock import Idle, Miner, Trainer

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "researcher": Researcher(),
        "student": Student(),
        "idle": Idle(),
        "trainer": Trainer(),
        "miner": Miner(),
        "sweep": Sweep(),
    }
)
