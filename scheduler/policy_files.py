"""Policies by name or by path: the presets that are shipped, and files of the operator."""

from __future__ import annotations

import dataclasses
import difflib
from importlib import resources
from pathlib import Path

from policies.param_keys import IDENTIFIER
from policies.params import ParamError, Params, PolicyError, load
from scheduler.errors import NotFound

DEFAULT_PRESET = "research-first"
LARGEST_FILE = 1024 * 1024
"""Bytes; a policy file is a page or two."""

_SUFFIX = ".toml"


class PolicyNotFound(NotFound):
    """No preset or file of this name; `known` are the presets there are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        super().__init__(
            f"no policy {name!r}", f"{meant}Give a preset ({', '.join(known)}) or the path of a {_SUFFIX} file."
        )
        self.name = name
        self.known = known


def preset_names() -> tuple[str, ...]:
    """The presets shipped, the default first, then by name."""
    files = (entry.name for entry in resources.files("policies").joinpath("presets").iterdir())
    names = sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))
    return tuple(sorted(names, key=lambda name: name != DEFAULT_PRESET))


def preset_text(name: str) -> str:
    """A preset as it is shipped, with its comments.

    Raises:
        PolicyNotFound: no such preset.
    """
    if name not in preset_names():
        raise PolicyNotFound(name, preset_names())
    return resources.files("policies").joinpath("presets", name + _SUFFIX).read_text(encoding="utf-8")


def policy_text(name_or_path: str) -> str:
    """The text of a preset, or of a file whose path ends in `.toml`.

    Raises:
        PolicyNotFound: no such preset or file.
        PolicyError: the file cannot be read: a directory, not UTF-8, larger than `LARGEST_FILE`, no permission.
    """
    if not name_or_path.endswith(_SUFFIX):
        return preset_text(name_or_path)
    try:
        with Path(name_or_path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise _unreadable(name_or_path, f"larger than {LARGEST_FILE} bytes")
        return content.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise PolicyNotFound(name_or_path, preset_names()) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _unreadable(name_or_path, f"not UTF-8 (byte {error.start})", line) from None
    except (OSError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise _unreadable(name_or_path, getattr(error, "strerror", None) or str(error)) from None


def read_policy(name_or_path: str) -> Params:
    """The parameters of a preset or of a file; a file that gives no `name` is named after itself.

    Raises:
        PolicyNotFound: no such preset or file.
        PolicyError: every mistake in it at once, or why it cannot be read.
    """
    params = load(policy_text(name_or_path), name_or_path)
    stem = Path(name_or_path).name.removesuffix(_SUFFIX)
    if not params.name and IDENTIFIER.fullmatch(stem):
        return dataclasses.replace(params, name=stem)
    return params


def _unreadable(file: str, why: str, line: int = 1) -> PolicyError:
    return PolicyError((ParamError(file, line, "", why, f"a readable policy file, at most {LARGEST_FILE} bytes"),))
