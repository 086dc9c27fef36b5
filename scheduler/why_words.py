"""What explanations are made of: the instant in UTC, amounts in words, and one reason as JSON."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from policies.explain import CHANGES, gpu_h
from policies.model import WHOLE_M

if TYPE_CHECKING:
    from policies.model import Shape
    from scheduler.ports import Row

GIB_MIB = 1024
LAST_S = 253_402_300_799
"""9999-12-31T23:59:59Z: what lies beyond has no calendar date here."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(at_ms: int) -> str:
    """An instant, milliseconds since 1970, as ISO-8601 in UTC, to the second, rounded down."""
    moment = _EPOCH + timedelta(seconds=max(0, min(at_ms // 1000, LAST_S)))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def reason(
    code: str,
    rule: str | None,
    text: str,
    *,
    value: float | None = None,
    threshold: float | None = None,
    unit: str | None = None,
    until_ms: int | None = None,
    change: str | None = None,
) -> Row:
    """One reason in the shape of `fairtier why -o json`.

    Args:
        code: for programs.  rule: of docs/policies.md, or an operator's act; None where no rule spoke.
        text: for people; the sentence of `change` is added where it is a code of `policies.explain.CHANGES`.
        value, threshold: what was measured and its limit, in `unit`; None = does not apply, or unknown.
        until_ms: when this ends or the next step may come.
        change: a code of `CHANGES`, or the options of `fairtier submit` that would start now (`--gpus 1`).
    """
    more = CHANGES.get(change or "", "")
    return {
        "code": code,
        "rule": rule,
        "value": value,
        "threshold": threshold,
        "unit": unit,
        "until": None if until_ms is None else utc(until_ms),
        "change": change,
        "text": f"{text} {more}" if more else text,
    }


def count(number: float, what: str) -> str:
    """'1 GPU', '2.5 GPUs'."""
    return f"{number:g} {what}" + ("" if number == 1 else "s")


def span(ms: int) -> str:
    """A length of time: '45 s', '12 min', '3 h 20 min'."""
    seconds = max(0, ms) // 1000
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = divmod(seconds // 60, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def memory(mib: int) -> str:
    """'8GiB', '500MiB': as `--memory` takes it."""
    return f"{mib // GIB_MIB}GiB" if mib % GIB_MIB == 0 else f"{mib}MiB"


def asked(shape: Shape) -> str:
    """'2 GPUs of model A100 with 40GiB each', '0.5 of a GPU'."""
    text = count(shape.gpus, "GPU") if shape.fraction_m == WHOLE_M else f"{shape.fraction_m / WHOLE_M:g} of a GPU"
    if shape.gpu_type is not None:
        text += f" of model {shape.gpu_type}"
    if shape.memory_mib is not None:
        text += f" with {memory(shape.memory_mib)}" + (" each" if shape.gpus > 1 else "")
    return text


def options(before: Shape, after: Shape) -> str:
    """The options of `fairtier submit` in which one request differs from another: '--gpus 1 --fraction 0.5'."""
    parts: list[str] = []
    if after.gpus != before.gpus:
        parts.append(f"--gpus {after.gpus}")
    if after.fraction_m != before.fraction_m:
        parts.append(f"--fraction {after.fraction_m / WHOLE_M:g}")
    if after.gpu_type != before.gpu_type and after.gpu_type is not None:
        parts.append(f"--gpu-type {shlex.quote(after.gpu_type)}")
    if after.memory_mib != before.memory_mib and after.memory_mib is not None:
        parts.append(f"--memory {memory(after.memory_mib)}")
    return " ".join(parts)


def use(usage_gpu_h: float, cap_gpu_h: float) -> str:
    """'11.90 GPU-h used, 3.24 past the credit cap of 8.66'."""
    gap = usage_gpu_h - cap_gpu_h
    side = f"{gpu_h(gap)} past" if gap > 0 else f"{gpu_h(-gap)} below"
    return f"{gpu_h(usage_gpu_h)} GPU-h used, {side} the credit cap of {gpu_h(cap_gpu_h)}"
