"""Whether what a policy promises adds up to what there is: guarantees, and the credit of all users together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.params import Params


class Doubt(NamedTuple):
    """A promise that is larger than the pool.

    Attributes:
        keys: of the policy file, the tables first that weigh most.
        promised, gpus: GPUs.
        broken: it cannot be kept at all; otherwise only not to everybody at once.
        users: how many the promise is made to; 0 = it is not made to single users.
    """

    keys: tuple[str, ...]
    promised: float
    gpus: float
    broken: bool
    users: int = 0

    def __str__(self) -> str:
        keys = ", ".join(self.keys)
        if self.broken:
            return f"{keys}: {self.promised:g} GPUs are guaranteed in all, and there are {self.gpus:g}"
        return (
            f"{keys}: {self.users} users may use {self.promised:g} GPUs and stay in credit, and there are "
            f"{self.gpus:g}: in credit they will wait for each other"
        )


def doubts(params: Params, gpus: float, users: Mapping[str, int]) -> list[Doubt]:
    """Promises of a policy that a pool cannot keep.

    Args:
        gpus: in the pool, >= 0.
        users: number of each tier, those of tiers with an automatic baseline included (they always add up).
    """
    tiers = {name: params.tier(name) for name in {**params.tiers, **users}}
    found = []
    guaranteed = {name: tier.guaranteed_gpus for name, tier in params.tiers.items() if tier.guaranteed_gpus}
    if sum(guaranteed.values()) > gpus:
        keys = _heaviest(guaranteed, "guaranteed_gpus")
        found.append(Doubt(keys, sum(guaranteed.values()), gpus, broken=True))
    credit = {name: (tiers[name].baseline_gpus or 0) * count for name, count in users.items()}
    credit = {name: amount for name, amount in credit.items() if amount}
    if sum(credit.values()) > gpus:
        count = sum(users[name] for name in credit)
        keys = _heaviest(credit, "baseline_gpus")
        found.append(Doubt(keys, sum(credit.values()), gpus, broken=False, users=count))
    return found


def _heaviest(amounts: Mapping[str, float], key: str) -> tuple[str, ...]:
    return tuple(f"tiers.{name}.{key}" for name in sorted(amounts, key=lambda name: (-amounts[name], name)))
