"""The service's clock: forward with the wall clock, never back with it."""

from __future__ import annotations

from scheduler.adapters.clock import SystemClock

S = 1_000_000_000


class Clocks:
    """A wall clock and a steady one, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000 * S, 5 * S

    def made(self) -> SystemClock:
        return SystemClock(lambda: self.wall, lambda: self.steady)


def test_a_wall_clock_set_back_does_not_turn_time_back() -> None:
    """An hour back: time goes on from where it was."""
    clocks = Clocks()
    clock = clocks.made()
    clocks.wall, clocks.steady = clocks.wall - 3_600 * S, clocks.steady + 2 * S
    assert clock.now_ms() == 1_002_000


def test_a_machine_that_slept_wakes_up_at_the_wall_clocks_time() -> None:
    """The steady clock stood still meanwhile; afterwards both go on together."""
    clocks = Clocks()
    clock = clocks.made()
    clocks.wall += 600 * S
    assert clock.now_ms() == 1_600_000
    clocks.wall, clocks.steady = clocks.wall + S, clocks.steady + S
    assert clock.now_ms() == 1_601_000


def test_drift_is_not_followed() -> None:
    """Half a second is no step."""
    clocks = Clocks()
    clock = clocks.made()
    clocks.wall += S // 2
    assert clock.now_ms() == 1_000_000


def test_a_moment_ago_is_not_later_than_now() -> None:
    """With the real clocks."""
    clock = SystemClock()
    times = [clock.now_ms() for _ in range(1_000)]
    assert times == sorted(times)
