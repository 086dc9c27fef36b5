"""Named scenarios: a cluster and its people in a TOML file, checked as a whole before anything is generated.

The keys, all required but `title` and `days`:

    title         one line for reports
    gpus          GPUs of the cluster, 1 .. 100000
    offered_load  GPU-hours asked for per GPU-hour of the cluster if everyone were served at once, > 0 .. 20
    days          length unless the caller says otherwise, > 0 .. 3660 (default 7); day 0 is a Monday
    cap_h         longest session allowed, hours, 0.1 .. 1000
    [population]  share of people of each kind, >= 0, together 1; a kind left out has none
    [people.NAME] more people (optional), whose shares count too: `kind` they behave as, `share`, and optionally `tier`
                  (default free) and `argv`, the command line of what they run on a GPU
"""

import math
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from simulations.workloads.generated import GeneratedWorkload, population
from simulations.workloads.kinds import KINDS
from simulations.workloads.people import Role, Setting
from simulations.workloads.rhythm import DAY_MS, HOUR_MS

_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"gpus": (1, 100_000), "offered_load": (0.001, 20), "days": (0.001, 3660), "cap_h": (0.1, 1000)}
)
_OPTIONAL: Mapping[str, object] = MappingProxyType({"title": "", "days": 7.0, "people": ()})
_KEYS = ("title", *_RANGES, "population", "people")
_ROLE_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "kind": f"one of {', '.join(KINDS)}",
        "share": "a number from 0 to 1",
        "tier": "a name like pro or pro-plus",
        "argv": "a command line",
    }
)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Mistake(NamedTuple):
    """One thing wrong in a scenario file."""

    file: str
    key: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key} = {self.value}: must be {self.allowed}"


class ScenarioError(ValueError):
    """A scenario cannot be used; `mistakes` holds everything wrong with it."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A cluster, how much is asked of it and by whom; the module says which values are allowed.

    Raises:
        ScenarioError: with every mistake, `file` being the scenario's name.
    """

    name: str
    title: str = ""
    gpus: int
    offered_load: float
    days: float = 7.0
    cap_h: float
    population: Mapping[str, float]
    people: tuple[Role, ...] = ()

    def __post_init__(self) -> None:
        values = {key: getattr(self, key) for key in _KEYS}
        values["people"] = {role.name: {key: getattr(role, key) for key in _ROLE_KEYS} for role in self.people}
        if mistakes := _mistakes(self.name, values):
            raise ScenarioError(mistakes)

    def workload(self, *, seed: int, days: float | None = None, scale: float = 1.0) -> GeneratedWorkload:
        """The people of one run.

        Args:
            seed: >= 0; the same seed gives the same rows, and a longer run only adds to a shorter one.
            days: > 0 .. 3660; None = the scenario's.
            scale: 1e-6 .. 10000, multiplies GPUs and people alike; at least 1 GPU.
        """
        days = self.days if days is None else days
        _check_run(self.name, seed, days, scale)
        gpus = max(1, round(self.gpus * scale))
        setting = Setting(
            seed=seed, scenario=self.name, cap_ms=round(self.cap_h * HOUR_MS), end_ms=max(1, round(days * DAY_MS))
        )
        people = population(setting, self.population, self.offered_load * gpus, self.people)
        return GeneratedWorkload(setting, people, gpus)


def load_scenario(
    name_or_path: str | Path, *, seed: int, days: float | None = None, scale: float = 1.0
) -> GeneratedWorkload:
    """The workload of a shipped scenario, by name, or of a file, by a path that ends in `.toml`.

    Raises:
        ScenarioError: no such scenario, or mistakes in it, or `seed`, `days` or `scale` out of range.
        OSError: the file cannot be read.
    """
    return read_scenario(name_or_path).workload(seed=seed, days=days, scale=scale)


def read_scenario(name_or_path: str | Path) -> Scenario:
    """As `load_scenario`, before people are made of it."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(name_or_path)
        return parse_scenario(path.read_text("utf-8"), name=path.stem, file=text)
    if text not in scenario_names():
        allowed = f"one of {', '.join(scenario_names())}, or a path that ends in .toml"
        raise ScenarioError([Mistake("scenario", "name", repr(text), allowed)])
    shipped = files("simulations").joinpath("scenarios", f"{text}.toml")
    return parse_scenario(shipped.read_text("utf-8"), name=text, file=f"{text}.toml")


def scenario_names() -> tuple[str, ...]:
    """Names of the shipped scenarios, in order."""
    folder = files("simulations").joinpath("scenarios")
    return tuple(sorted(item.name[: -len(".toml")] for item in folder.iterdir() if item.name.endswith(".toml")))


def parse_scenario(text: str, *, name: str, file: str) -> Scenario:
    """A scenario from the text of its file; `file` is how mistakes call it."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError([Mistake(file, "(file)", str(error), "TOML")]) from error
    if mistakes := _mistakes(file, values):
        raise ScenarioError(mistakes)
    roles = tuple(Role(name=role, **given) for role, given in values.get("people", {}).items())
    shares = {kind: float(values["population"].get(kind, 0.0)) for kind in KINDS}
    return Scenario(name=name, **{**values, "population": MappingProxyType(shares), "people": roles})


def _mistakes(file: str, values: Mapping[str, object]) -> list[Mistake]:
    found = [
        Mistake(file, key, repr(values[key]), f"absent; the keys are {', '.join(_KEYS)}")
        for key in values
        if key not in _KEYS
    ]
    for key in _KEYS:
        if key not in values:
            if key not in _OPTIONAL:
                found.append(Mistake(file, key, "(missing)", _allowed(key)))
        elif key == "population":
            found += _population_mistakes(file, values[key], values.get("people", {}))
        elif key == "people":
            found += _people_mistakes(file, values[key])
        elif not _good(key, values[key]):
            found.append(Mistake(file, key, repr(values[key]), _allowed(key)))
    return found


def _people_mistakes(file: str, people: object) -> list[Mistake]:
    if not isinstance(people, Mapping) or not all(isinstance(role, Mapping) for role in people.values()):
        return [Mistake(file, "people", repr(people), "tables [people.NAME]")]
    found = []
    for name, role in people.items():
        if not _NAME.fullmatch(name) or name in KINDS:
            found.append(
                Mistake(file, f"people.{name}", repr(name), f"a name of the form {_NAME.pattern}, and no kind")
            )
        for key in (*(key for key in role if key not in _ROLE_KEYS), *_ROLE_KEYS):
            if key not in _ROLE_KEYS:
                known = f"absent; the keys are {', '.join(_ROLE_KEYS)}"
                found.append(Mistake(file, f"people.{name}.{key}", repr(role[key]), known))
            elif key not in role:
                if key in ("kind", "share"):
                    found.append(Mistake(file, f"people.{name}.{key}", "(missing)", _ROLE_KEYS[key]))
            elif not _good_in_role(key, role[key]):
                found.append(Mistake(file, f"people.{name}.{key}", repr(role[key]), _ROLE_KEYS[key]))
    return found


def _good_in_role(key: str, value: object) -> bool:
    if key == "share":
        return _number_in(value, 0, 1)
    if not isinstance(value, str):
        return False
    if key == "argv":
        try:
            return shlex.split(value) is not None
        except ValueError:
            return False
    return value in KINDS if key == "kind" else _NAME.fullmatch(value) is not None


def _population_mistakes(file: str, shares: object, people: object) -> list[Mistake]:
    if not isinstance(shares, Mapping):
        return [Mistake(file, "population", repr(shares), _allowed("population"))]
    found = [
        Mistake(file, f"population.{kind}", repr(share), f"absent; the kinds are {', '.join(KINDS)}")
        for kind, share in shares.items()
        if kind not in KINDS
    ]
    wrong = [kind for kind in shares if kind in KINDS and not _number_in(shares[kind], 0, 1)]
    found += [Mistake(file, f"population.{kind}", repr(shares[kind]), "a number from 0 to 1") for kind in wrong]
    if not found:
        roles = people.values() if isinstance(people, Mapping) else ()
        more = [role["share"] for role in roles if isinstance(role, Mapping) and _number_in(role.get("share"), 0, 1)]
        total = math.fsum([*shares.values(), *more])
        if not abs(total - 1) <= 1e-6:
            found.append(Mistake(file, "population", f"{total:g} in all", "shares that are 1 in all"))
    return found


def _good(key: str, value: object) -> bool:
    if key == "title":
        return isinstance(value, str) and "\n" not in value
    return _number_in(value, *_RANGES[key]) and (key != "gpus" or isinstance(value, int))


def _allowed(key: str) -> str:
    if key in _RANGES:
        lo, hi = _RANGES[key]
        return f"a {'whole number' if key == 'gpus' else 'number'} from {lo:g} to {hi:g}"
    return "one line of text" if key == "title" else "a table of shares of people by kind"


def _number_in(value: object, lo: float, hi: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and lo <= value <= hi


def _check_run(name: str, seed: int, days: float, scale: float) -> None:
    found = []
    if not seed >= 0:
        found.append(Mistake(name, "seed", repr(seed), "a whole number >= 0"))
    if not _good("days", days):
        found.append(Mistake(name, "days", repr(days), _allowed("days")))
    if not _number_in(scale, 1e-6, 1e4):
        found.append(Mistake(name, "scale", repr(scale), "a number from 1e-06 to 10000"))
    if found:
        raise ScenarioError(found)
