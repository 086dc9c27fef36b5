"""Rights counted from scratch: who has a guarantee or a reservation, how much of it is in use, what is due by now.

A second account beside `policies.rights`, from policy, calendar and sessions alone: for the checkers of random runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policies.calendar import MAINTENANCE, RESERVATION, Entry
from policies.model import WHOLE_M

if TYPE_CHECKING:
    from tests.policies.checkers import Run, World


class Claimed(NamedTuple):
    """A right as it is now: thousandths of a GPU in all, and the part that may be taken back by now."""

    name: str
    amount_m: int
    due_m: int
    reserved: bool


class RightBook:
    """The rights of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calendar: dict[str, Entry] = {}

    # -- which there are ---------------------------------------------------------------------------------------------

    def closed(self, host: str) -> bool:
        """Maintenance keeps new sessions away from a host now."""
        now = self.world.now_ms
        windows = [e for e in self.calendar.values() if e.kind == MAINTENANCE and (not e.hosts or host in e.hosts)]
        return any(e.from_ms - e.drain_ms <= now < e.until_ms for e in windows)

    def every(self) -> list[Claimed]:
        """All rights in force or kept already."""
        tiers, ladder, now = self.world.params.tiers, self.world.params.ladder, self.world.now_ms
        sizes = {name: round(tier.guaranteed_gpus * WHOLE_M) for name, tier in tiers.items()}
        found = [Claimed(f"tier {name}", size, size, reserved=False) for name, size in sizes.items() if size]
        lead_ms = ladder.contention_ms + ladder.warn_ms + ladder.grace_ms
        ahead_ms = ladder.contention_ms + max(ladder.warn_ms, ladder.min_run_ms) + ladder.grace_ms
        groups: dict[str, list[tuple[int, int]]] = {}
        for e in self.calendar.values():
            if e.kind == RESERVATION and e.from_ms - ahead_ms <= now < e.until_ms:
                due_m = e.gpus_m if e.from_ms - lead_ms <= now else 0
                groups.setdefault(e.group, []).append((e.gpus_m, due_m))
        for group, live in groups.items():
            amount_m, due_m = (max(column) for column in zip(*live, strict=True))
            found.append(Claimed(f"group {group}", amount_m, due_m, reserved=True))
        return found

    def of(self, user: str) -> list[Claimed]:
        """Those of one user."""
        person = self.world.users[user]
        return [right for right in self.every() if right.name in (f"tier {person.tier}", f"group {person.group}")]

    # -- what is in use ----------------------------------------------------------------------------------------------

    def members(self, right: Claimed) -> list[Run]:
        """Sessions of those who have it."""
        return [run for run in self.world.runs.values() if right in self.of(run.user)]

    def held_m(self, right: Claimed) -> int:
        """Held or nominated for, at full size."""
        return sum(run.amount_m for run in self.members(right) if run.allocation is not None or run.nominated)

    def room(self, run: Run, *, due: bool = False) -> bool:
        """A waiting or nominated session is within a right; `due`: within what may be taken back by now."""
        own_m = 0 if run.nominated else run.amount_m
        return any(self.held_m(r) + own_m <= (r.due_m if due else r.amount_m) for r in self.of(run.user))

    def kept_m(self, user: str) -> int:
        """What this user has to leave free for others."""
        own = self.of(user)
        return sum(max(0, r.amount_m - self.held_m(r)) for r in self.every() if r.reserved and r not in own)

    def missing_m(self) -> int:
        """What is reserved, due and not in use."""
        return sum(max(0, right.due_m - self.held_m(right)) for right in self.every() if right.reserved)

    def asked_m(self) -> int:
        """Asked by those who wait with a right, or cool down with one."""
        return sum(run.amount_m for run in self.world.waiting() if self.room(run, due=True))

    def robbed(self, victim: Run, waiter: Run | None) -> list[str]:
        """Rights of a victim that would be left with less than they say by its going; `waiter`'s own do not count."""
        shared = [] if waiter is None else self.of(waiter.user)
        found = []
        for right in self.of(victim.user):
            stay = [run for run in self.members(right) if run.allocation is not None and run is not victim]
            left_m = sum(run.amount_m for run in stay if not run.leaving and run.amount_m <= right.amount_m)
            if right not in shared and victim.amount_m <= right.amount_m and left_m < right.amount_m:
                found.append(f"{right.name} has {left_m} of {right.amount_m} left")
        return found
