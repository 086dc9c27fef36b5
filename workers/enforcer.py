"""The one process that freezes, thaws, signals and kills, and only sessions that were registered with it.

It is apart from the worker for one reason: when the worker dies, even by SIGKILL, their socket closes, and everything
frozen is thawed. It keeps nothing, decides nothing and reads nothing but its socket and its sessions' containment.

Requests are datagrams of words, `NUMBER OPERATION SESSION [WORD...]`; the answer is `NUMBER ok` or `NUMBER no WHY`.

    add SESSION PID             register it, led by PID; thaws it
    drop SESSION                forget it
    duty SESSION M LEASE_MS     let it run M thousandths of the time, for so long
    lift SESSION                end the duty cycle and thaw
    signal SESSION SIG main|all SIG is a name (TERM, USR1 ...); main: the leader's children only
    kill SESSION                end every process

Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from workers.containment import NAME, Cgroups, Containment, ProcessGroups

LONGEST_REQUEST = 4096
LONGEST_LEASE_MS = 3_600_000
SIGNALS = ("HUP", "INT", "TERM", "USR1", "USR2")
_LEAST_SLICE_NS = 2_000_000
_MOST_DEBT = 10
"""Periods of running too long that are taken back; more is forgiven, so that nobody is frozen for many seconds."""


class BadRequest(ValueError):
    """A request that is not obeyed; says why."""


class Duty:
    """One session's duty cycle: the time that it ran is kept equal to its fraction of the time that passed.

    The account runs over all periods, so that a late wake-up in one is made good in the next and errors never add up.
    """

    __slots__ = ("began_ns", "end_ns", "frozen", "granted_m", "next_ns", "ran_ns", "since_ns", "until_ns")

    def __init__(self, granted_m: int, until_ns: int, now_ns: int) -> None:
        self.granted_m = granted_m
        self.until_ns = until_ns
        self.began_ns = self.since_ns = self.end_ns = self.next_ns = now_ns
        self.ran_ns = 0
        self.frozen = False

    def step(self, now_ns: int, period_ns: int) -> bool:
        """Whether it has to be frozen from now until `next_ns`."""
        if not self.frozen:
            self.ran_ns += now_ns - self.since_ns
        if now_ns >= self.end_ns:
            self.end_ns = now_ns + period_ns
        owed = self._owed(period_ns)
        run = owed >= _LEAST_SLICE_NS
        self.frozen, self.since_ns = not run, now_ns
        self.next_ns = min(self.end_ns, now_ns + owed) if run else self.end_ns
        return self.frozen

    def _owed(self, period_ns: int) -> int:
        """Time to run until the period's end; what a stopped or slept host piled up is forgiven."""
        target = self.granted_m * (self.end_ns - self.began_ns) // 1000
        owed = min(period_ns, max(-_MOST_DEBT * period_ns, target - self.ran_ns))
        self.ran_ns = target - owed
        return owed


class Enforcer:
    """Sessions registered, and their duty cycles."""

    def __init__(self, containment: Containment, period_ns: int) -> None:
        self.containment = containment
        self.period_ns = period_ns
        self.leaders: dict[str, int] = {}
        self.duties: dict[str, Duty] = {}

    def obey(self, operation: str, session: str, words: list[str], now_ns: int) -> None:
        """Carry out one request; `BadRequest` or OSError when that is impossible."""
        act = {"add": self._add, "duty": self._duty, "signal": self._signal}.get(operation)
        plain = {"drop": self._drop, "lift": self._lift, "kill": self._kill}.get(operation)
        if operation != "add" and session not in self.leaders:
            raise BadRequest(f"session {session[:64]!r} is not registered")
        if act is not None:
            act(session, words, now_ns)
        elif plain is not None and not words:
            plain(session)
        else:
            raise BadRequest(f"no such operation: {operation[:16]!r} with {len(words)} words")

    def turn(self, now_ns: int) -> None:
        """Freeze and thaw what is due. A lease that is over thaws."""
        for session, duty in list(self.duties.items()):
            if now_ns >= duty.until_ns:
                self._lift(session)
            elif now_ns >= duty.next_ns:
                self._apply(session, duty.step(now_ns, self.period_ns))

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until something is due; None = nothing is."""
        nearest = min((min(duty.next_ns, duty.until_ns) for duty in self.duties.values()), default=None)
        return None if nearest is None else max(0, nearest - now_ns) / 1e9

    def thaw_all(self) -> None:
        """Thaw every session that there is, registered or left by an enforcer before."""
        self.duties.clear()
        for session in {*self.containment.sessions(), *self.leaders}:
            with contextlib.suppress(OSError):
                self.containment.thaw(session)

    def _add(self, session: str, words: list[str], now_ns: int) -> None:
        del now_ns
        if not NAME.fullmatch(session):
            raise BadRequest("that is no session's name")
        pid = _number(words, 0, 2, 1 << 31)
        self.containment.attach(session, pid)
        self.leaders[session] = pid
        if session not in self.duties:
            self.containment.thaw(session)

    def _drop(self, session: str) -> None:
        del self.leaders[session]
        self._lift(session)
        self.containment.detach(session)

    def _duty(self, session: str, words: list[str], now_ns: int) -> None:
        granted_m = _number(words, 0, 1, 1000)
        until_ns = now_ns + _number(words, 1, 1, LONGEST_LEASE_MS) * 1_000_000
        duty = self.duties.get(session)
        if duty is None or duty.granted_m != granted_m:
            frozen = duty is not None and duty.frozen
            self.duties[session] = duty = Duty(granted_m, until_ns, now_ns)
            duty.frozen = frozen
        duty.until_ns = until_ns

    def _lift(self, session: str) -> None:
        self.duties.pop(session, None)
        self.containment.thaw(session)

    def _signal(self, session: str, words: list[str], now_ns: int) -> None:
        del now_ns
        if len(words) != 2 or words[0] not in SIGNALS or words[1] not in ("main", "all"):
            raise BadRequest(f"a signal is one of {' '.join(SIGNALS)}, to main or all")
        leader = self.leaders[session] if words[1] == "main" else None
        self.containment.send(session, signal.Signals["SIG" + words[0]], leader)

    def _kill(self, session: str) -> None:
        self.duties.pop(session, None)
        self.containment.kill(session)

    def _apply(self, session: str, frozen: bool) -> None:
        """A session that ended meanwhile has nothing to freeze; another failure shows again in the next period."""
        with contextlib.suppress(OSError):
            (self.containment.freeze if frozen else self.containment.thaw)(session)


def serve(peer: socket.socket, enforcer: Enforcer) -> None:
    """Obey until the worker is gone; sleeps while nothing is due."""
    while True:
        ready = select.select([peer], [], [], enforcer.wait_s(time.monotonic_ns()))[0]
        if ready:
            try:
                request = peer.recv(LONGEST_REQUEST)
            except OSError:
                return
            if not request:
                return
            # An answer that the worker does not fetch must not stop the thawing.
            with contextlib.suppress(OSError):
                peer.send(_answer(enforcer, request), socket.MSG_DONTWAIT)
        enforcer.turn(time.monotonic_ns())


def main(arguments: list[str] | None = None) -> int:
    """Serve the worker at the other end of an inherited socket; thaws everything at both ends of its life."""
    parser = argparse.ArgumentParser(prog="enforcer", description="Started by the worker; not for people.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--cgroups", type=Path)
    parser.add_argument("--period-ms", type=int, default=200)
    options = parser.parse_args(arguments)
    containment = Cgroups(options.cgroups) if options.cgroups else ProcessGroups()
    enforcer = Enforcer(containment, options.period_ms * 1_000_000)
    _hurry()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with socket.socket(fileno=options.fd) as peer:
        try:
            enforcer.thaw_all()
            serve(peer, enforcer)
        finally:
            enforcer.thaw_all()
    return 0


def _hurry() -> None:
    """Run before others where that is allowed: a thaw that comes late takes from a user what was granted."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def _answer(enforcer: Enforcer, request: bytes) -> bytes:
    number, *words = request.decode("ascii", "replace").split(" ")
    try:
        if len(words) < 2:
            raise BadRequest("a request has a number, an operation and a session")
        enforcer.obey(words[0], words[1], words[2:], time.monotonic_ns())
    except (BadRequest, OSError) as error:
        return f"{number[:20]} no {error}".encode("ascii", "replace")[:LONGEST_REQUEST]
    return f"{number[:20]} ok".encode("ascii", "replace")


def _number(words: list[str], place: int, least: int, most: int) -> int:
    text = words[place] if place < len(words) else ""
    if not (text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise BadRequest(f"word {place + 1} must be a whole number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
