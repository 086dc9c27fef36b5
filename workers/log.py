"""The worker's log: one JSON object a line on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class _Patient:
    """Standard error that may be full or gone: a line that cannot be written is lost, the process is not."""

    def write(self, text: str) -> None:
        """Write, or not."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush, or not."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure() -> None:
    """Log JSON lines with level and UTC time."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Patient())),
        cache_logger_on_first_use=True,
    )
