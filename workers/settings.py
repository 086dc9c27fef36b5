"""What a worker has to know, from arguments and from the environment (`FAIRTIER_` and the name in capitals)."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.protocol import Name

DEFAULT_STATE = Path("~/.local/state/fairtier")
_PASSED_ON = ("PATH", "HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LOGNAME", "SHELL", "TMPDIR", "TZ", "USER")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def host_name() -> str:
    """This machine's name as the protocol can carry it."""
    return socket.gethostname().split(".")[0].lower() or "localhost"


class Settings(BaseSettings):
    """Of one worker.

    Attributes:
        redis: where the transport is, `unix:///PATH` or `redis[s]://...`.
        host: this host's name in the cluster.
        gpus: GPUs of the host.  model, memory_mib: of each of them; None = not told.
        state: folder with `sessions/` (one folder a session) and `workers/HOST/journal.sqlite`.
        report_s: seconds between full reports.  sample_s: between measurements while sessions run.
        log_cap_bytes: a session's log is cut when it grows past this.
        duty_period_ms: of freezing and thawing a throttled session.
        instance: tells two FairTiers on one machine apart; "" = a hash of `state`.
    """

    model_config = SettingsConfigDict(env_prefix="FAIRTIER_", frozen=True, extra="ignore")

    redis: Annotated[str, Field(pattern=r"^(unix|rediss?)://.")]
    host: Name = Field(default_factory=host_name)
    gpus: Annotated[int, Field(ge=1, le=1024)] = 1
    model: Annotated[str, Field(max_length=64)] | None = None
    memory_mib: Annotated[int, Field(ge=1)] | None = None
    state: Path = DEFAULT_STATE
    report_s: Annotated[float, Field(gt=0.05, le=3600)] = 10.0
    sample_s: Annotated[float, Field(gt=0.05, le=60)] = 1.0
    log_cap_bytes: Annotated[int, Field(ge=4096)] = 8 * 1024 * 1024
    duty_period_ms: Annotated[int, Field(ge=50, le=10_000)] = 200
    instance: Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9]*$")] = ""

    @property
    def folder(self) -> Path:
        """`state`, absolute."""
        return self.state.expanduser().resolve()

    @property
    def sessions(self) -> Path:
        """Where sessions have their folders."""
        return self.folder / "sessions"

    @property
    def own(self) -> Path:
        """Where the worker keeps what is its own."""
        return self.folder / "workers" / self.host

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance or instance_of(self.folder)


def instance_of(state: Path) -> str:
    """The name of the instance that has this state folder: short, the same at every start."""
    return hashlib.sha256(os.fsencode(state.expanduser().resolve())).hexdigest()[:10]


def base_environment() -> dict[str, str]:
    """What a session gets of our own environment: who and where it is, and nothing that configures FairTier."""
    return {"PATH": _PATH} | {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}


def holds_password(url: str) -> bool:
    """Whether an address carries a password: such a one does not belong on a command line, which others can read."""
    return urlsplit(url).password is not None
