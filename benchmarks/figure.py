"""One measured figure: the value, what it is held against, and whether it holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure.

    Attributes:
        value: measured, in `unit`.
        bound: the limit, None = for information; at_most: whether it is an upper one.
        yardstick: measured in the same run on the same machine, None = the bound is absolute.
    """

    figure: str
    value: float
    unit: str
    bound: float | None = None
    at_most: bool = False
    yardstick: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value / yardstick."""
        return self.value / self.yardstick if self.yardstick else None

    @property
    def ok(self) -> bool:
        """Whether the bound holds, for the ratio where there is a yardstick."""
        if self.bound is None:
            return True
        measured = self.value if self.ratio is None else self.ratio
        return measured <= self.bound if self.at_most else measured >= self.bound

    def as_dict(self) -> dict[str, Any]:
        """As the JSON output has it."""
        names = ("figure", "value", "unit", "bound", "yardstick", "ratio", "ok")
        return {name: getattr(self, name) for name in names}

    def line(self) -> str:
        """One line for people."""
        text = f"{'ok  ' if self.ok else 'MISS'}  {self.figure:<58} {self.value:>14,.4g} {self.unit}"
        if self.ratio is not None:
            text += f", {self.ratio:.4g} of the yardstick {self.yardstick:,.4g}"
        if self.bound is not None:
            text += f"  (at {'most' if self.at_most else 'least'} {self.bound:g})"
        return text


def shared() -> Path:
    """The folder with traces and reference results."""
    return Path(os.environ.get("FAIRTIER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
