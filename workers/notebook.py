"""The notebook server that a session without a program of its own runs."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

SERVERS = ("jupyterlab", "jupyter_server")
"""Modules that serve notebooks, the first one installed is used."""
_OPTIONS = (
    "--no-browser",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port=0",
    "--ServerApp.port_retries=0",
    "--ServerApp.open_browser=False",
)
"""The server makes its own token and writes it, with the port it got, below JUPYTER_RUNTIME_DIR: not into arguments."""


class NoNotebook(Exception):
    """No notebook server is installed beside the worker."""


def command() -> tuple[str, ...]:
    """Program and arguments of a notebook server on a free port of this host; `NoNotebook` when none is installed."""
    server = next((name for name in SERVERS if find_spec(name) is not None), None)
    if server is None or find_spec("ipykernel") is None:
        raise NoNotebook("this host has no notebook server: pip install 'fairtier[notebook]' beside its worker")
    root = ("--ServerApp.allow_root=True",) if os.geteuid() == 0 else ()
    return (sys.executable, "-m", server, *_OPTIONS, *root)
