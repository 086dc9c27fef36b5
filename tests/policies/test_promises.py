"""What a policy promises is held against what there is."""

from __future__ import annotations

from policies.params import Params, TierParams
from policies.promises import doubts


def params_of(**tiers: TierParams) -> Params:
    return Params(tiers={"free": TierParams(), **tiers})


def test_what_adds_up_is_no_doubt() -> None:
    """Guarantees and the credit of all users together may be exactly what there is."""
    params = params_of(pro=TierParams(baseline_gpus=2, guaranteed_gpus=10), lab=TierParams(guaranteed_gpus=6))
    assert doubts(params, 16, {"pro": 8}) == []


def test_guarantees_above_what_there_is_are_broken() -> None:
    """One GPU too many; the tier that weighs most is named first."""
    params = params_of(pro=TierParams(guaranteed_gpus=6), lab=TierParams(guaranteed_gpus=11))
    (found,) = doubts(params, 16, {})
    assert (found.broken, found.promised, found.gpus) == (True, 17, 16)
    assert found.keys == ("tiers.lab.guaranteed_gpus", "tiers.pro.guaranteed_gpus")
    assert "17 GPUs are guaranteed in all, and there are 16" in str(found)


def test_more_credit_than_gpus_is_doubtful() -> None:
    """Users times baseline; automatic baselines always add up, and tiers that are not listed are the free one."""
    params = params_of(pro=TierParams(baseline_gpus=1.5))
    (found,) = doubts(params, 16, {"pro": 11, "free": 1000})
    assert (found.broken, found.promised, found.users, found.keys) == (False, 16.5, 11, ("tiers.pro.baseline_gpus",))
    assert doubts(params, 17, {"pro": 11, "free": 1000}) == []
    plain = Params(tiers={"free": TierParams(baseline_gpus=1)})
    assert [doubt.users for doubt in doubts(plain, 3, {"guest": 4})] == [4]
