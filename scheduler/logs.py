"""Structured logs: one JSON object a line on standard error, for every process of the control plane."""

from __future__ import annotations

import sys
from typing import Any

import structlog


def configure(component: str) -> Any:
    """The logger of a process; each line has its name, the UTC time and the level."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(component=component)
