"""From a policy's parameters to the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.baselines.arrival import Line
from policies.decide import FairShare

if TYPE_CHECKING:
    from collections.abc import Callable

    from policies.params import Params
    from policies.snapshot import Policy

_MAKERS: dict[str, Callable[[Params], Policy]] = {
    "fair-share": FairShare,
    "fifo": Line,
    "fifo-skip": lambda params: Line(params, skip=True),
    "sjf": lambda params: Line(params, by_time=True),
}


def make_policy(params: Params) -> Policy:
    """The policy that `params.policy` names."""
    return _MAKERS[params.policy](params)
