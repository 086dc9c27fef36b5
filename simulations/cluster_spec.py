"""Clusters as the command line names them: `--gpus 768` or `--hosts 16x8:T4:16`."""

from __future__ import annotations

import re

from scheduler.errors import BadInput
from scheduler.events import HostJoined

POOL = "pool"
LARGEST = 100_000
_HOSTS = re.compile(r"(\d{1,6})x(\d{1,6})(?::([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?::(\d{1,6}(?:\.\d{1,3})?))?)?")


def pool(gpus: int) -> tuple[HostJoined, ...]:
    """One pool of `gpus` GPUs without host boundaries."""
    if not 1 <= gpus <= LARGEST:
        raise BadInput(f"--gpus {gpus} must be within 1..{LARGEST}")
    return (HostJoined(0, POOL, gpus),)


def hosts(text: str) -> tuple[HostJoined, ...]:
    """Hosts from `HxG[:MODEL[:GIB]]`, several such groups joined by commas; BadInput says what is wrong."""
    joined: list[HostJoined] = []
    total = 0
    for part in text.split(","):
        match = _HOSTS.fullmatch(part)
        if match is None:
            raise BadInput(
                f"--hosts {text!r}: {part!r} is not HOSTSxGPUS[:MODEL[:GIB]]", "for example 16x8 or 4x8:T4:16"
            )
        count, gpus = int(match[1]), int(match[2])
        total += count * gpus
        if not (count >= 1 and gpus >= 1 and total <= LARGEST):
            raise BadInput(f"--hosts {text!r}: {total} GPUs up to {part!r} must be within 1..{LARGEST}")
        memory_mib = round(float(match[4]) * 1024) if match[4] else None
        if memory_mib == 0:
            raise BadInput(f"--hosts {text!r}: memory of 0 GiB must be > 0")
        start = len(joined)
        joined += [HostJoined(0, f"h{start + i:03}", gpus, match[3], memory_mib) for i in range(count)]
    return tuple(joined)
