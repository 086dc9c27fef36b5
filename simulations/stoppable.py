"""Commands that clean up when they are stopped, whatever signal stops them."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import click

AGAIN_S = 1.0
"""A signal that follows another within this time is the same wish to stop."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: leave, and leave nothing behind."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stoppable(click.Group):
    """A group whose commands clean up on Ctrl-C, SIGTERM and SIGHUP alike, and exit with 128 + the signal's number."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command while the signals raise exceptions; ignored ones (nohup) stay ignored."""
        if threading.current_thread() is not threading.main_thread():
            return super().invoke(ctx)
        latest = float("-inf")

        def stop(number: int, _frame: object) -> None:
            nonlocal latest
            now, before = time.monotonic(), latest
            latest = now
            if now - before > AGAIN_S:
                raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

        kept = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                kept[number] = signal.signal(number, stop)
        try:
            return super().invoke(ctx)
        except Terminated as error:
            click.echo("terminated" if error.number == signal.SIGTERM else "hung up", err=True)
            ctx.exit(128 + error.number)
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
