"""Throttles with their leases: the enforcer ends one by itself, and here the grant follows at the same moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from workers.clock import boot_ns, wall_ms
from workers.enforcer_link import EnforcerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.enforcer_link import EnforcerLink
    from workers.session import Session

log = structlog.get_logger()


class Throttles:
    """Who is throttled and until when; `news` is called with a session's name when its grant has changed."""

    def __init__(self, link: EnforcerLink, news: Callable[[str], None]) -> None:
        self._link, self._news = link, news
        self._lapses: dict[str, asyncio.TimerHandle] = {}
        self._lifting: set[asyncio.Task[None]] = set()

    async def apply(self, session: Session, granted_m: int, lease_ms: int) -> None:
        """Let a session use so much of its GPUs for so long; all that it was started with lifts the throttle."""
        if granted_m >= session.fraction_m:
            await self.lift(session)
            return
        await self._link.duty(session.name, granted_m, lease_ms)
        session.grant(granted_m, boot_ns())
        session.until_ms = wall_ms() + lease_ms
        self._lapse_in(session, lease_ms)
        self._news(session.name)

    async def lift(self, session: Session) -> None:
        """Give back the full fraction."""
        self.drop(session.name)
        session.grant(session.fraction_m, boot_ns())
        session.until_ms = None
        self._news(session.name)
        await self._link.lift(session.name)

    async def resume(self, session: Session) -> None:
        """After a restart of the worker: the rest of the lease, if there is one."""
        left_ms = (session.until_ms or 0) - wall_ms()
        await self.apply(session, session.granted_m if left_ms > 0 else session.fraction_m, left_ms)

    def drop(self, name: str) -> None:
        """Watch no lease of this session any more."""
        lapse = self._lapses.pop(name, None)
        if lapse is not None:
            lapse.cancel()

    def close(self) -> None:
        """Watch nothing any more."""
        for name in list(self._lapses):
            self.drop(name)
        for task in self._lifting:
            task.cancel()

    def _lapse_in(self, session: Session, lease_ms: int) -> None:
        self.drop(session.name)
        self._lapses[session.name] = asyncio.get_running_loop().call_later(lease_ms / 1000, self._lapse, session)

    def _lapse(self, session: Session) -> None:
        task = asyncio.get_running_loop().create_task(self._lapsed(session))
        self._lifting.add(task)
        task.add_done_callback(self._lifting.discard)

    async def _lapsed(self, session: Session) -> None:
        log.info("throttle lapsed", session=session.name)
        try:
            await self.lift(session)
        except EnforcerError as error:
            log.warning("enforcer did not lift", session=session.name, error=str(error))
