"""One request to the API's unix socket with the standard library: the supervisor stays small that way."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


def knock(path: Path, method: str, target: str, timeout_s: float = 3.0) -> dict[str, Any] | None:
    """The JSON object that the API answers with; None when it does not answer, or not with success."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request(method, target, headers={"Content-Type": "application/json"}, body="{}")
        response = connection.getresponse()
        document = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if response.status < 300 and isinstance(document, dict) else None


def listens(path: Path) -> bool:
    """Whether somebody takes connections at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
