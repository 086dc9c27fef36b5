"""The API's process: both applications in one loop, from start to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from scheduler import state_dir
from scheduler.adapters.clock import SystemClock
from scheduler.adapters.redis_gateway import Gateway
from scheduler.api.app import full_app, open_app
from scheduler.api.listeners import LOOPBACK, tcp_listener, unix_listener
from scheduler.api.metrics import Metrics
from scheduler.api.views import Views
from scheduler.errors import Unreachable

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from scheduler.ports import Reader
    from scheduler.settings import Settings

DRAIN_S = 1
"""Time that answers under way have when the process is told to stop."""
MOST_ON_TCP = 64

Ready = Callable[[str | None], None]
"""Called once when both listen, with the URL on TCP if there is one."""


class _Server(uvicorn.Server):
    """Waits for one event of ours: uvicorn's own loop wakes up ten times a second, and takes the signals."""

    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield

    async def main_loop(self) -> None:
        """Until told."""
        await self._stop.wait()


def serve(settings: Settings, ready: Ready, open_reader: Callable[[], Reader] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: see there.
        ready: called when requests are taken.
        open_reader: opens the truth; None = the state directory's database.

    Raises:
        Refused: the port or the socket is taken; nothing was started then.
    """
    with contextlib.ExitStack() as stack:
        tcp = None if settings.http_port is None else stack.enter_context(tcp_listener(settings.http_port))
        unix = stack.enter_context(unix_listener(state_dir.api_socket(settings.state)))
        asyncio.run(_serve(settings, ready, open_reader or _opener(settings), unix, tcp))


def _opener(settings: Settings) -> Callable[[], Reader]:
    def open_truth() -> Reader:
        from scheduler.adapters.sql_reader import SqlReader  # noqa: PLC0415 - half of the start's time

        path = state_dir.database(settings.state)
        if not path.exists():
            raise Unreachable(f"there is no database {path} yet", "fairtier up")
        return SqlReader(path)

    return open_truth


async def _serve(
    settings: Settings,
    ready: Ready,
    open_reader: Callable[[], Reader],
    unix: socket.socket,
    tcp: socket.socket | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    url = None if tcp is None else f"http://{LOOPBACK}:{tcp.getsockname()[1]}"
    gateway = Gateway(settings.transport)
    views = Views(open_reader, settings.state, SystemClock().now_ms)
    metrics = Metrics(views, per_user=settings.per_user_metrics)
    status: dict[str, Any] = {"http": url}
    servers = [(_server(full_app(gateway, views, metrics, lambda: status), stop), unix)]
    if tcp is not None:
        servers.append((_server(open_app(views, metrics), stop, MOST_ON_TCP), tcp))
    await gateway.start()
    try:
        async with asyncio.TaskGroup() as group:
            for server, listener in servers:
                group.create_task(server.serve(sockets=[listener]))
            while not all(server.started for server, _ in servers):
                await asyncio.sleep(0.001)
            ready(url)
    finally:
        await gateway.close()
        views.close()


def _server(app: FastAPI, stop: asyncio.Event, most: int | None = None) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_config=None,
        date_header=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        limit_concurrency=most,
    )
    return _Server(config, stop)
