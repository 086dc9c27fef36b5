"""The process: it listens where it should and for whom it should, refuses a taken place, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scheduler.api.listeners import unix_listener
from scheduler.errors import BadInput, Refused
from scheduler.settings import read_settings
from scheduler.state_dir import LONGEST_SOCKET, api_socket
from tests.scheduler.api.site import Api, short_directory


@pytest.fixture
def state() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_well_and_soon_and_takes_its_socket_along(state: Path, number: int) -> None:
    """Although the transport never was there, and a connection is open."""
    with Api(state) as api:
        assert api.http.get("/v1/nothing").status_code == 404
        assert (state / "api.sock").stat().st_mode & 0o777 == 0o600
        began = time.monotonic()
        code, told = api.stop(number)
        assert (code, told) == (0, "")
        assert time.monotonic() - began < 2
    assert not (state / "api.sock").exists()


def test_a_dead_process_socket_is_replaced_and_a_live_one_is_not(state: Path) -> None:
    api = Api(state)
    api.stop(signal.SIGKILL)
    assert (state / "api.sock").exists()
    with Api(state) as second:
        assert second.ready[0] == "api"
        with pytest.raises(Refused, match="listens on"), unix_listener(state / "api.sock"):
            pass
        assert second.http.get("/v1/nothing").status_code == 404


def test_somebody_else_on_the_socket_is_left_alone(state: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(state / "api.sock"))
        other.listen()
        with pytest.raises(Refused, match="listens on"), unix_listener(state / "api.sock"):
            pass
        assert (state / "api.sock").exists()


def test_a_busy_port_is_told_before_anything_is_started(state: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code = f"""
from fairtier.cli import LazyGroup
LazyGroup(lazy={{"api": ("scheduler.api_cli:api", "")}})(["api", "--http", "{port}"])
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FAIRTIER_STATE": str(state)},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert done.returncode == 5
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert list(state.iterdir()) == []


def test_on_tcp_there_are_status_and_metrics_only_and_for_loopback_names_only(state: Path) -> None:
    with Api(state, "--http", "0") as api:
        url = api.ready[1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v1/status").json()["error"] == "unreachable"
        assert httpx.get(f"{url}/metrics").status_code == 503
        for path in ("/v1/sessions", "/v1/users", "/v1/history"):
            assert httpx.get(url + path).status_code == 404
        assert httpx.post(f"{url}/v1/ping").status_code == 404
        assert httpx.get(f"{url}/v1/status", headers={"Host": "evil.example"}).status_code == 400


def test_a_path_too_long_for_a_socket_is_refused_with_its_length() -> None:
    long = Path("/tmp") / ("x" * (LONGEST_SOCKET - len("/tmp//api.sock")))
    assert len(str(api_socket(long))) == LONGEST_SOCKET
    with pytest.raises(BadInput, match=f"{LONGEST_SOCKET + 1} bytes, the kernel takes {LONGEST_SOCKET}"):
        api_socket(long.with_name(long.name + "x"))


def test_settings_come_from_arguments_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTIER_STATE", "/tmp/a")
    monkeypatch.setenv("FAIRTIER_HTTP_PORT", "8080")
    settings = read_settings(state=Path("/tmp/b"), http_port=None)
    assert (settings.state, settings.http_port) == (Path("/tmp/b"), 8080)
    assert settings.transport == "unix:///tmp/b/redis.sock"


def test_mistakes_in_settings_are_told_all_at_once_and_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL may hold a password."""
    monkeypatch.setenv("FAIRTIER_REDIS_URL", "secret@host")
    monkeypatch.setenv("FAIRTIER_HTTP_PORT", "99999")
    with pytest.raises(BadInput) as caught:
        read_settings()
    assert "redis_url" in caught.value.message
    assert "http_port" in caught.value.message
    assert "secret" not in caught.value.message
