"""`fairtier api`: the API's process."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.live_cli import state_option


@click.command(short_help="Serve the HTTP API of an instance.")
@state_option
@click.option("--redis", metavar="URL", help="Transport.  [default: the instance's own]")
@click.option("--http", type=click.IntRange(0, 65535), metavar="PORT", help="Also status and metrics on 127.0.0.1.")
def api(state: Path, redis: str | None, http: int | None) -> None:
    """Serve the HTTP API on STATE/api.sock until SIGTERM or Ctrl-C; prints one line when requests are taken.

    \b
    Environment: FAIRTIER_REDIS_URL, FAIRTIER_HTTP_PORT, FAIRTIER_PER_USER_METRICS (series by user).
    """
    from scheduler.api.server import serve  # noqa: PLC0415 - the web framework is not needed to show help
    from scheduler.settings import read_settings  # noqa: PLC0415

    settings = read_settings(state=state, redis_url=redis, http_port=http)
    serve(settings, ready=lambda url: click.echo(f"api {url or '-'} {settings.state}"))
