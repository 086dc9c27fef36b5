"""Whether the names we are imported by are ours: they are common words, which others may have taken too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass

NAMES = ("policies", "scheduler", "workers", "simulations", "fairtier")
"""What a program has to write to import us; common words, so that others may have taken them too."""


class ForeignName(NamedTuple):
    """A package of somebody else under one of `NAMES`: its file, and the distribution it came with ("" = unknown)."""

    name: str
    file: str
    owner: str

    def __str__(self) -> str:
        return f"{self.name} is {self.file}" + (f" of the distribution {self.owner}" if self.owner else "")


def foreign_names() -> list[ForeignName]:
    """Import names of ours that mean, or share a folder with, somebody else's package. Empty = all is well.

    It takes a millisecond, and where packages are installed as many as there are distributions beside ours.
    """
    home = Path(__file__).resolve().parents[1]
    elsewhere = [found for found in (_elsewhere(name, home) for name in NAMES) if found is not None]
    return elsewhere + [ForeignName(name, str(home / name), owner) for name, owner in _claims(home).items()]


def _elsewhere(name: str, home: Path) -> ForeignName | None:
    """What `import name` finds, when that is not the package beside this one."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ForeignName(name, "missing: the installation is not whole", "")
    if spec.origin is not None and Path(spec.origin).resolve() == home / name / "__init__.py":
        return None
    file = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    site = file.parent if file.stem == name else file.parent.parent
    return ForeignName(name, str(file), _claims(site).get(name, ""))


def _claims(site: Path) -> dict[str, str]:
    """Names of ours that other distributions than ours have installed into a folder, and which ones."""
    claims: dict[str, str] = {}
    for record in sorted(site.glob("*.dist-info/RECORD")):
        owner = record.parent.name.partition("-")[0]
        content = "\n" + record.read_text(encoding="utf-8", errors="replace")
        if owner != "fairtier":
            claims |= {name: owner for name in NAMES if f"\n{name}/" in content or f"\n{name}.py," in content}
    return claims
