"""Reading the rules of acceptable use in a policy file: every mistake at once, and the rules' own examples as tests."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from policies.acceptable_use import (
    ACTIONS,
    CONFIRMS,
    SIGNALS,
    Allowed,
    Match,
    Rule,
    RuleStep,
    compiled,
    matches,
)
from policies.param_keys import IDENTIFIER, LONGEST_S, to_ms

Path = tuple[str, ...]
Wrong = Callable[[Path, object, str], None]
"""Notes a mistake: where, what stands there, what is allowed."""
Unknown = Callable[[Path, Mapping[str, Any], tuple[str, ...]], None]
"""Refuses the keys of a table that mean nothing there."""

MOST_RULES, MOST_EXAMPLES, MOST_STEPS, LONGEST_TEXT = 200, 200, 8, 500

RULE_KEYS: Mapping[str, str] = {
    "id": f"a text of the form {IDENTIFIER.pattern}",
    "title": "one line of text",
    "category": f"a text of the form {IDENTIFIER.pattern}",
    "tiers": "a list of names of tiers, with at least one; absent: all",
    "match": "a table with at least one of programs, paths, any_flags, all_flags, begins, argument_paths",
    "signal": "one of " + ", ".join(f'"{signal}"' for signal in SIGNALS),
    "steps": f'a list of 1 to {MOST_STEPS} steps like {{action = "warn", after_s = 0}}',
    "shadow": "true or false",
    "message": f"a text of at most {LONGEST_TEXT} characters",
    "positive": "a list of command lines that it matches, with at least one",
    "negative": "a list of command lines that it does not match, with at least one",
    "allow": 'a list like [{user = "u-1", until = "2027-06-01"}]; absent: nobody',
}
"""Every key of a rule, and what it must be."""
MATCH_LISTS = ("programs", "paths", "words", "any_flags", "all_flags", "begins", "argument_paths")
MATCH_KEYS = (*MATCH_LISTS, "min_flags")
STEP_KEYS = ("action", "after_s", "for_s", "confirm")
ALLOW_KEYS = ("user", "group", "everyone", "until")
REQUIRED = ("id", "title", "category", "match", "signal", "steps", "message", "positive", "negative")
_ON_ITS_OWN = ("programs", "paths", "any_flags", "all_flags", "begins", "argument_paths")


def read_rules(value: object, wrong: Wrong, unknown: Unknown) -> tuple[Rule, ...]:
    """The rules of `[[rule]]`; those with mistakes are left out, each mistake is noted."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        wrong(("rule",), value, "tables [[rule]]")
        return ()
    if len(value) > MOST_RULES:
        wrong(("rule",), f"{len(value)} rules", f"at most {MOST_RULES} rules")
        return ()
    found: list[Rule] = []
    ids: set[str] = set()
    for index, entry in enumerate(value):
        reader = _RuleReader(("rule", str(index)), wrong, unknown)
        rule = reader.rule(entry)
        name = entry.get("id")
        if isinstance(name, str) and name in ids:
            wrong(("rule", str(index), "id"), name, "another name than a rule above has")
        elif isinstance(name, str):
            ids.add(name)
        if rule is not None:
            found.append(rule)
    return tuple(found)


def rule_dict(rule: Rule) -> dict[str, Any]:
    """A rule as the policy file has it; what is absent is None or left out."""
    match: dict[str, Any] = {name: list(getattr(rule.match, name)) for name in MATCH_LISTS if getattr(rule.match, name)}
    if rule.match.any_flags and rule.match.min_flags != 1:
        match["min_flags"] = rule.match.min_flags
    return {
        "id": rule.id,
        "title": rule.title,
        "category": rule.category,
        "tiers": None if rule.tiers is None else list(rule.tiers),
        "signal": rule.signal,
        "shadow": rule.shadow,
        "message": rule.message,
        "match": match,
        "steps": [step_dict(step) for step in rule.steps],
        "allow": [_allow_dict(entry) for entry in rule.allow],
        "positive": list(rule.positive),
        "negative": list(rule.negative),
    }


def step_dict(step: RuleStep) -> dict[str, Any]:
    """A step as the policy file has it."""
    entry: dict[str, Any] = {"action": step.action, "after_s": _seconds(step.after_ms)}
    if step.for_ms is not None:
        entry["for_s"] = _seconds(step.for_ms)
    if step.confirm:
        entry["confirm"] = step.confirm
    return entry


def _allow_dict(entry: Allowed) -> dict[str, Any]:
    found = {"user": entry.user, "group": entry.group, "everyone": entry.everyone or None, "until": entry.until}
    return {name: value for name, value in found.items() if value is not None}


def _seconds(ms: int) -> float | int:
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


class _RuleReader:
    """Collects the mistakes of one rule."""

    def __init__(self, path: Path, wrong: Wrong, unknown: Unknown) -> None:
        self.path = path
        self._wrong = wrong
        self.unknown = unknown
        self.bad = False

    def wrong(self, where: Path, value: object, allowed: str) -> None:
        """Note one mistake of this rule."""
        self.bad = True
        self._wrong((*self.path, *where), value, allowed)

    def rule(self, entry: Mapping[str, Any]) -> Rule | None:
        """The rule, or None when something in it is wrong."""
        known = tuple(RULE_KEYS)
        self.bad |= any(name not in known for name in entry)
        self.unknown(self.path, entry, known)
        for name in REQUIRED:
            if name not in entry:
                self.wrong((name,), "absent", RULE_KEYS[name])
        texts = {name: self.text(entry, name) for name in ("id", "title", "category", "signal", "message")}
        tiers = self.names(("tiers",), entry["tiers"], RULE_KEYS["tiers"]) if "tiers" in entry else None
        shadow = entry.get("shadow", False)
        if not isinstance(shadow, bool):
            self.wrong(("shadow",), shadow, RULE_KEYS["shadow"])
        match = self.match(entry["match"]) if "match" in entry else None
        steps = self.steps(entry["steps"]) if "steps" in entry else ()
        allow = self.allow(entry.get("allow", []))
        examples = {name: self.examples(entry, name, match) for name in ("positive", "negative")}
        if self.bad or match is None:
            return None
        found: dict[str, Any] = {**texts, **examples}
        return Rule(**found, tiers=tiers, shadow=shadow is True, match=match, steps=steps, allow=allow)

    def text(self, entry: Mapping[str, Any], name: str) -> str:
        """One text, as its key allows."""
        value = entry.get(name, "")
        if name not in entry:
            return ""
        good = isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()
        if good and name in ("id", "category"):
            good = IDENTIFIER.fullmatch(value) is not None
        if good and name == "signal":
            good = value in SIGNALS
        if not good:
            self.wrong((name,), value, RULE_KEYS[name])
        return value if good else ""

    def names(self, where: Path, value: object, allowed: str) -> tuple[str, ...]:
        """A list of texts with at least one."""
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            self.wrong(where, value, allowed)
            return ()
        return tuple(dict.fromkeys(value))

    # -- match ---------------------------------------------------------------------------------------------------

    def match(self, value: object) -> Match | None:
        """What a command line must be like."""
        if not isinstance(value, dict):
            self.wrong(("match",), value, RULE_KEYS["match"])
            return None
        before, self.bad = self.bad, any(name not in MATCH_KEYS for name in value)
        self.unknown((*self.path, "match"), value, MATCH_KEYS)
        lists = {
            name: self.names(("match", name), value[name], "a list of texts, with at least one")
            for name in MATCH_LISTS
            if name in value
        }
        for name in ("paths", "argument_paths"):
            for pattern in lists.get(name, ()):
                self.pattern(name, pattern)
        for name in ("any_flags", "all_flags"):
            for flag in lists.get(name, ()):
                if not flag.startswith("-") or "=" in flag:
                    self.wrong(("match", name), flag, "options as they are given, like --model-dir")
        least, most = value.get("min_flags", 1), len(lists.get("any_flags", ()))
        if "min_flags" in value and (type(least) is not int or not 1 <= least <= max(1, most)):
            self.wrong(("match", "min_flags"), least, f"a whole number from 1 to the number of any_flags, {most}")
        if not any(name in value for name in _ON_ITS_OWN):
            self.wrong(("match",), "words alone" if "words" in value else value, RULE_KEYS["match"])
        wrong, self.bad = self.bad, self.bad or before
        return None if wrong else Match(**lists, min_flags=least)

    def pattern(self, name: str, pattern: str) -> None:
        """A pattern of names of a path."""
        try:
            compiled(pattern)
        except ValueError as error:
            self.wrong(("match", name), pattern, str(error))

    # -- steps ---------------------------------------------------------------------------------------------------

    def steps(self, value: object) -> tuple[RuleStep, ...]:
        """Steps by time, each no milder than the one before."""
        good = isinstance(value, list) and 1 <= len(value) <= MOST_STEPS and all(isinstance(s, dict) for s in value)
        if not isinstance(value, list) or not good:
            self.wrong(("steps",), value, RULE_KEYS["steps"])
            return ()
        found: list[RuleStep] = []
        for index, entry in enumerate(value):
            step = self.step(("steps", str(index)), entry)
            if step is None:
                continue
            if found:
                self.in_order(("steps", str(index)), found[-1], step)
            found.append(step)
        return tuple(found)

    def step(self, where: Path, entry: Mapping[str, Any]) -> RuleStep | None:
        """One step, or None when something in it is wrong."""
        before, self.bad = self.bad, any(name not in STEP_KEYS for name in entry)
        self.unknown((*self.path, *where), entry, STEP_KEYS)
        action, confirm = entry.get("action"), entry.get("confirm", "")
        if action not in ACTIONS:
            one_of = ", ".join(f'"{name}"' for name in ACTIONS)
            self.wrong((*where, "action"), "absent" if action is None else action, f"one of {one_of}")
        after_ms = self.ms((*where, "after_s"), entry.get("after_s", 0), least_ms=0)
        for_ms = None
        if "for_s" in entry and action != "restrict":
            self.wrong((*where, "for_s"), entry["for_s"], 'absent: it is the length of a "restrict"')
        elif action == "restrict" and "for_s" not in entry:
            self.wrong((*where, "for_s"), "absent", "the length of the restriction in seconds")
        elif action == "restrict":
            for_ms = self.ms((*where, "for_s"), entry["for_s"], least_ms=1)
        if action == "evict" and confirm not in CONFIRMS:
            needs = 'confirm = "second-signal" or confirm = "person": one match alone ends no session'
            self.wrong((*where, "confirm"), "absent" if "confirm" not in entry else confirm, needs)
        elif action != "evict" and "confirm" in entry:
            self.wrong((*where, "confirm"), confirm, 'absent: it belongs to "evict"')
        wrong, self.bad = self.bad, self.bad or before
        return None if wrong else RuleStep(action=str(action), after_ms=after_ms, for_ms=for_ms, confirm=confirm)

    def ms(self, where: Path, value: Any, *, least_ms: int) -> int:
        """Seconds as milliseconds."""
        sort = "a number > 0" if least_ms else "a number >= 0"
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_S
        if not good or to_ms(value) < least_ms:
            self.wrong(where, value, f"{sort} and at most {LONGEST_S}")
            return 0
        return to_ms(value)

    def in_order(self, where: Path, before: RuleStep, step: RuleStep) -> None:
        """Later steps come later, and are no milder."""
        if step.after_ms < before.after_ms:
            self.wrong((*where, "after_s"), step.after_ms / 1000, f"at least {before.after_ms / 1000:g}, as before it")
        if ACTIONS.index(step.action) < ACTIONS.index(before.action):
            later = ", ".join(f'"{name}"' for name in ACTIONS[ACTIONS.index(before.action) :])
            self.wrong((*where, "action"), step.action, f'one of {later}: no milder than "{before.action}" before it')

    # -- allow, and the examples ---------------------------------------------------------------------------------

    def allow(self, value: object) -> tuple[Allowed, ...]:
        """Who is only observed."""
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.wrong(("allow",), value, RULE_KEYS["allow"])
            return ()
        return tuple(self.allowed(("allow", str(index)), entry) for index, entry in enumerate(value))

    def allowed(self, where: Path, entry: Mapping[str, Any]) -> Allowed:
        """One entry: exactly one of user, group and everyone."""
        self.bad |= any(name not in ALLOW_KEYS for name in entry)
        self.unknown((*self.path, *where), entry, ALLOW_KEYS)
        user, group, everyone = entry.get("user"), entry.get("group"), entry.get("everyone", False)
        named = [one for one in (user, group) if isinstance(one, str) and one]
        if len(named) + (everyone is True) != 1 or sum(name in entry for name in ("user", "group", "everyone")) != 1:
            self.wrong(where, entry, 'with exactly one of user = "NAME", group = "NAME", everyone = true')
        until = entry.get("until")
        day = _day(until)
        if until is not None and day is None:
            self.wrong((*where, "until"), until, 'a day like "2027-06-01"; its beginning in UTC ends it')
        at_ms = None if day is None else round((day - dt.date(1970, 1, 1)).total_seconds() * 1000)
        return Allowed(
            user=user,
            group=group,
            everyone=everyone is True,
            until=None if day is None else day.isoformat(),
            until_ms=at_ms,
        )

    def examples(self, entry: Mapping[str, Any], name: str, match: Match | None) -> tuple[str, ...]:
        """The rule's own tests: command lines, each held against what it must be like."""
        if name not in entry:
            return ()
        lines = self.names((name,), entry[name], RULE_KEYS[name])
        if len(lines) > MOST_EXAMPLES:
            self.wrong((name,), f"{len(lines)} command lines", f"at most {MOST_EXAMPLES}")
            return ()
        wanted = name == "positive"
        for line in lines:
            at = (name, str(entry[name].index(line)))
            try:
                shlex.split(line)
            except ValueError as error:
                self.wrong(at, line, f"a command line ({error})")
                continue
            if match is not None and matches(match, line) is not wanted:
                self.wrong(at, line, f"a command line that the rule {'matches' if wanted else 'does not match'}")
        return lines


def _day(value: object) -> dt.date | None:
    """A day of a file, as TOML's own or as a text."""
    if isinstance(value, dt.datetime):
        return None
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
