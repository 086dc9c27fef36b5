"""The policy in force and the figures it counts with now, from the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.decide import WEEK_MS
from policies.demand import MOST_LEAD_MS, Demand
from policies.headroom import lead_time_ms, shortage, stock_m
from policies.model import WHOLE_M
from policies.order import FairQueue, FairSnapshot
from scheduler.api.accounts import credit_cap
from scheduler.api.rows import Json, utc, version_json

if TYPE_CHECKING:
    from policies.model import User
    from scheduler.core import Core
    from scheduler.ports import Row

_DIGITS = 4


def policy_json(core: Core, row: Row | None) -> Json:
    """What is in force: version, tiers, headroom; a plain order has no tiers and no headroom.

    Args:
        core: only read.
        row: of the version; None = the scheduler has not written any yet.
    """
    params = core.params
    version: Json = {} if row is None else version_json(row)
    fair = isinstance(core.queue, FairQueue)
    return version | {
        "name": params.name or params.policy,
        "summary": params.summary or None,
        "policy": params.policy,
        "at": utc(core.now_ms),
        "tiers": _tiers(core) if fair else [],
        "headroom": _headroom(core) if fair else None,
        "values": params.as_dict(),
    }


def _tiers(core: Core) -> list[Json]:
    """Each tier that is listed or has users: what its users are entitled to now."""
    params, memory, users = core.params, core.view.memory, core.ledger.users.values()
    found = []
    for name in sorted({*params.tiers, *(user.tier for user in users)}):
        given = params.tier(name).baseline_gpus
        of_tier = [user for user in users if user.tier == name]
        found.append(
            {
                "tier": name,
                "baseline_gpus": memory.baselines.get(name) if given is None else given,
                "auto": given is None,
                "users": len(of_tier),
                "users_counted": sum(_counted(core, user) for user in of_tier),
                "credit_cap_gpu_h": round(credit_cap(core, name), _DIGITS),
                "moves_at": utc(memory.baseline_due_ms) if given is None and memory.baseline_due_ms >= 0 else None,
            }
        )
    return found


def _counted(core: Core, user: User) -> bool:
    """Whether an automatic baseline counts a user: seen within the week; in the first week of all, ever."""
    first_ms, now_ms = core.view.memory.first_ms, core.now_ms
    young = first_ms is None or now_ms - first_ms < WEEK_MS
    return young or bool(user.held or user.cells) or now_ms - user.active_ms <= WEEK_MS


def _headroom(core: Core) -> Json:
    """The stock and what it follows from, in GPUs; learned figures are those of this moment."""
    view: FairSnapshot = core.view  # type: ignore[assignment]
    params, memory, now_ms = core.params.headroom, view.memory, core.now_ms
    # A copy: asking for the profile closes an hour, and the core is another's.
    demand = Demand.restore(view.queue.demand.dump(), params.prior_per_h, params.prior_dispersion)
    lead_ms = min(lead_time_ms(core.params, view.queue.saves), MOST_LEAD_MS)
    rates, inverse_shape = demand.profile(now_ms)
    mean, _, departures = demand.lead(now_ms, lead_ms, max(0, view.cluster.total_m - view.cluster.free_m))
    rate = rates[now_ms // 3_600_000 % 24]
    short = shortage(view, core.params)
    by_goal = memory.stock_m is not None
    return {
        "by": "goal" if by_goal else "fixed",
        "stock_gpus": stock_m(view, core.params) / WHOLE_M,
        "wanted_gpus": params.fixed_gpus if memory.stock_m is None else memory.stock_m / WHOLE_M,
        "most_gpus": int(view.cluster.total_m * params.max_fraction) // WHOLE_M,
        "max_fraction": params.max_fraction,
        "confidence": params.confidence,
        "lead_time_s": lead_ms / 1000,
        "expected_gpus": round(mean, _DIGITS),
        "departures_gpus": round(departures, _DIGITS),
        "rate_per_h": round(rate, _DIGITS),
        "dispersion": round(1.0 + rate * inverse_shape, _DIGITS),
        "prior_per_h": params.prior_per_h,
        "prior_dispersion": params.prior_dispersion,
        "total_gpus": view.cluster.total_m / WHOLE_M,
        "free_gpus": view.cluster.free_m / WHOLE_M,
        "coming_gpus": short.coming_m / WHOLE_M,
        "asked_gpus": short.asked_m / WHOLE_M,
        "deficit_gpus": max(0, short.deficit_m) / WHOLE_M,
        "next_at": utc(memory.stock_due_ms) if by_goal else None,
        "hours": [{"hour": hour, "per_h": round(value, _DIGITS)} for hour, value in enumerate(rates)],
    }
