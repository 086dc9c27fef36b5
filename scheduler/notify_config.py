"""Where notices go: `STATE/notify.toml`.

    levels = ["warn", "grace", "evict", "reject"]    # default: these, "throttle" and "restrict"
    per_user_hour = 20                               # notices a user gets within an hour, 1 .. 1000

    [webhook]
    url = "https://chat.example.org/hooks/..."       # http or https; redirects are not followed
    secret_file = "webhook.secret"                   # signs each message; relative to this file

    [mail]
    host = "mail.example.org"
    port = 587
    starttls = true
    user = "fairtier"                                # with password_file
    password_file = "mail.password"
    from = "fairtier@example.org"

A file that holds a secret (a webhook's address often is one) must be readable by its owner alone.
"""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scheduler.errors import BadInput
from scheduler.tasks import Mail as Address

FILE = "notify.toml"
LARGEST_FILE = 64 * 1024
LONGEST_SECRET = 4096

Level = Literal["warn", "throttle", "grace", "evict", "reject", "restrict"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Webhook(_Section):
    """A URL that is told by POST; `secret_file` holds the key of the signature, None = unsigned."""

    url: Annotated[str, Field(max_length=2000)]
    secret_file: Annotated[Path, Field(strict=False)] | None = None

    @field_validator("url")
    @classmethod
    def _usable(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError("must be an http or https address")
        return url

    @property
    def shown(self) -> str:
        """The host alone: the rest of the address may be a secret."""
        return urlsplit(self.url).hostname or "?"


class MailServer(_Section):
    """A mail server; without `starttls` a password is sent to this machine only."""

    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    starttls: bool = True
    user: Annotated[str, Field(max_length=254)] | None = None
    password_file: Annotated[Path, Field(strict=False)] | None = None
    sender: Annotated[Address, Field(alias="from")]

    @model_validator(mode="after")
    def _fits_together(self) -> MailServer:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if self.user is not None and not self.starttls and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("a password is not sent unencrypted to another machine: set starttls = true")
        return self


class NotifyConfig(_Section):
    """What is told, how often, and where to.

    Attributes:
        levels: what is told at all.  per_user_hour: most notices about a user's sessions within an hour.
    """

    levels: Annotated[tuple[Level, ...], Field(strict=False)] = get_args(Level)
    per_user_hour: Annotated[int, Field(ge=1, le=1000)] = 20
    webhook: Webhook | None = None
    mail: MailServer | None = None


def load_config(path: Path) -> NotifyConfig | None:
    """The configuration, with paths of secrets made absolute; None = there is no such file.

    Raises:
        BadInput: every mistake in it, or a secret that others could read; no message holds a secret.
    """
    try:
        raw = _read(path)
    except FileNotFoundError:
        return None
    try:
        values = tomllib.loads(raw.decode())
        config = NotifyConfig.model_validate(values)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: no TOML: {error}") from None
    except ValidationError as error:
        raise BadInput("; ".join(f"{path}: {mistake}" for mistake in _mistakes(error))) from None
    if config.webhook is not None:
        _check_private(path, "an address that may be a secret")
    return config.model_copy(update=_with_secrets(config, path.parent))


def read_secret(path: Path) -> str:
    """The first line of a file that only its owner may read; `BadInput` otherwise."""
    try:
        _check_private(path, "a secret")
        with path.open("rb") as file:
            lines = file.read(LONGEST_SECRET).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not lines or not lines[0]:
        raise BadInput(f"{path} is empty: its first line is the secret")
    return lines[0]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST_FILE:
        raise BadInput(f"{path} is larger than {LARGEST_FILE} bytes")
    return raw


def _check_private(path: Path, what: str) -> None:
    """Refuse a file that another user could read, or could have written."""
    about = path.stat()
    if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(about.st_mode)
        raise BadInput(f"{path} holds {what} and has the mode {mode:04o}: others may use it", f"chmod 600 {path}")
    if about.st_uid not in (0, os.geteuid()):
        raise BadInput(f"{path} holds {what} and belongs to user {about.st_uid}", f"chown it to user {os.geteuid()}")


def _with_secrets(config: NotifyConfig, place: Path) -> dict[str, Any]:
    """Sections whose paths are absolute; the secrets are there and private."""
    changed: dict[str, Any] = {}
    for section, name in ((config.webhook, "secret_file"), (config.mail, "password_file")):
        path = getattr(section, name, None)
        if section is not None and path is not None:
            read_secret(place / path)
            changed["webhook" if section is config.webhook else "mail"] = section.model_copy(
                update={name: place / path}
            )
    return changed


def _mistakes(error: ValidationError) -> list[str]:
    """Key and what is wrong with it, never the value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg'].removeprefix('Value error, ')}" for e in found]
