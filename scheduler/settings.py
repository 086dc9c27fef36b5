"""Settings of the control plane's processes: from arguments, then the environment (`FAIRTIER_...`), then defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler import state_dir
from scheduler.errors import BadInput

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """What the API (and what else serves an instance) needs to know.

    Attributes:
        state: the state directory.
        redis_url: of the transport; None = the instance's own, `STATE/redis.sock`.
        http_port: TCP port on 127.0.0.1 for status and metrics; 0 = a free one; None = none.
        per_user_metrics: whether the metrics have series by user (their number grows with the users').
    """

    model_config = SettingsConfigDict(env_prefix="FAIRTIER_", frozen=True, extra="ignore")

    state: Path = state_dir.DEFAULT_STATE
    redis_url: Annotated[str, Field(pattern=r"^(redis|rediss|unix)://")] | None = None
    http_port: Port | None = None
    per_user_metrics: bool = False

    @property
    def transport(self) -> str:
        """URL of the transport."""
        return self.redis_url or f"unix://{state_dir.redis_socket(self.state)}"


def read_settings(**given: Any) -> Settings:
    """The settings; arguments that are None count as not given. `BadInput` names every mistake, without its value."""
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors(include_input=False)]
        raise BadInput(f"settings: {'; '.join(parts)}", "options and FAIRTIER_... variables") from None
    settings = settings.model_copy(update={"state": settings.state.expanduser().absolute()})
    state_dir.api_socket(settings.state)
    if settings.redis_url is None:
        state_dir.redis_socket(settings.state)
    return settings
