"""JSON of bounded size, the only form in which RQ carries anything of ours: data never becomes code."""

from __future__ import annotations

import json
import zlib
from typing import Any, NoReturn

LIMIT = 64 * 1024
"""Bytes of one job, as it is stored and unpacked."""


class Unreadable(ValueError):
    """Not JSON of the form and size that is read."""


class StrictJSON:
    """A serializer for RQ."""

    @staticmethod
    def dumps(value: Any, /) -> bytes:
        """As JSON; NaN and infinity are refused (ValueError)."""
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()

    @staticmethod
    def loads(raw: bytes, /) -> Any:
        """From JSON; `Unreadable` says why not."""
        if len(raw) > LIMIT:
            raise Unreadable(f"{len(raw)} bytes: at most {LIMIT} are read")
        try:
            return json.loads(raw.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"no JSON that is read here ({type(error).__name__})") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def inflate(raw: bytes) -> bytes:
    """What RQ compressed; what it did not is left as it is. `Unreadable` for more than `LIMIT` bytes."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(raw, LIMIT + 1)
    except zlib.error:
        return raw
    if len(data) > LIMIT:
        raise Unreadable(f"more than {LIMIT} bytes when unpacked")
    return data
