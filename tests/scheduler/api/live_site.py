"""A whole control plane: the real service in a thread, a real API process, and a host that a test speaks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from policies.params import HeadroomParams, Params, TelemetryParams, TierParams
from scheduler.adapters.clock import SystemClock
from scheduler.adapters.redis_bus import TELEMETRY, RedisBus
from scheduler.adapters.sql_store import SqlStore
from scheduler.client import Client
from scheduler.errors import Unreachable
from scheduler.service import Service
from scheduler.state_dir import database
from tests.scheduler.api.site import Api, Transport, short_directory, wait_until
from workers.protocol import Report, SessionReport, encode

HOST = "gpu-01"
PARAMS = Params(
    name="test",
    tiers={"free": TierParams(baseline_gpus=0.5)},
    headroom=HeadroomParams(fixed_gpus=0),
    telemetry=TelemetryParams(report_ms=60_000, stale_ms=3_600_000, lost_ms=7_200_000),
)
"""Everybody is in credit, and the host may be silent for as long as a test takes."""


class LiveSite:
    """See the module's docstring.

    Attributes:
        state: the state directory.
        client: of its API.
    """

    def __init__(self, state: Path, url: str) -> None:
        self.state = state
        self.client = Client(state)
        self._redis: Any = redis.Redis.from_url(url)
        self._seq = 0

    def report(self, *sessions: SessionReport) -> None:
        """The host says what it runs."""
        self._seq += 1
        report = Report(
            host=HOST, boot="b", epoch=1, seq=self._seq, sent_ms=0, full=True, gpus=2, model="T4", memory_mib=16384,
            sessions=sessions,
        )  # fmt: skip
        self._redis.xadd(TELEMETRY + HOST, {"m": encode(report)})

    def runs(self, session: str, busy_ms: int = 0, granted_ms: int = 0) -> None:
        """The host runs a session; returns when that is on record."""
        self.report(SessionReport(session=session, state="running", busy_ms=busy_ms, granted_ms=granted_ms, known=True))
        wait_until(lambda: self.client.get(f"sessions/{session}")["state"] == "running")

    def ended(self, session: str, outcome: Any, exit_code: int) -> None:
        """A session's processes are gone; returns when that is on record."""
        self.report(
            SessionReport(
                session=session, state="ended", outcome=outcome, exit_code=exit_code,
                busy_ms=1_800_000, granted_ms=3_600_000, known=True,
            )
        )  # fmt: skip
        wait_until(lambda: self.client.get(f"sessions/{session}")["state"] == "ended")


@contextmanager
def live_site() -> Iterator[LiveSite]:
    """A control plane with users ann (1 share) and bob (2) and one host of two GPUs."""
    with short_directory() as state:
        transport = Transport(state)
        transport.start()
        service = _Serving(state, transport.url)
        try:
            with service, Api(state, "--http", "0"):
                site = LiveSite(state, transport.url)
                site.report()
                wait_until(lambda: site.client.get("hosts")["hosts"], (Unreachable,))
                site.client.set_user("ann")
                site.client.set_user("bob", shares=2.0, mail="bob@example.org")
                yield site
                site.client.close()
        finally:
            transport.stop()


class _Serving:
    """The service, until told."""

    def __init__(self, state: Path, url: str) -> None:
        self._state, self._url = state, url
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._begun.wait(15)

    def __exit__(self, *error: object) -> None:
        self._service.stop()
        self._thread.join()

    def _run(self) -> None:
        clock = SystemClock()
        store = SqlStore(database(self._state), clock.now_ms)
        bus = RedisBus(self._url, [HOST])
        store.lead("test")
        self._service = Service(store, bus, clock, PARAMS, lambda *_, **__: None)
        self._begun.set()
        self._service.run()
        bus.close()
        store.close()
