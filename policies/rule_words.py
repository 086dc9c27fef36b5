"""Rules of acceptable use in words: what `fairtier policy show` and `policy diff` say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies.acceptable_use import Allowed, Match, Rule, RuleStep

_DONE = {
    "observe": "record it",
    "warn": "warn",
    "throttle": "throttle on a shared GPU",
    "evict": "end the session",
    "restrict": "let nothing new of the user start",
}
_CONFIRM = {"second-signal": " given a second, independent signal", "person": " once a person says so"}
_MATCH = {
    "programs": "runs {}",
    "paths": "runs from a path like {}",
    "words": "with the word {}",
    "all_flags": "with every option of {}",
    "begins": "with an argument that begins {}",
    "argument_paths": "with a path like {}",
}


def rule_parts(rule: Rule) -> dict[str, tuple[str, str]]:
    """Part of a rule, "" for what it does, to (value in words, what that means)."""
    return {
        "": (steps_words(rule.steps), f"{rule.title} ({rule.category})."),
        "tiers": ("all" if rule.tiers is None else ", ".join(rule.tiers), "Tiers whose sessions it applies to."),
        "match": (match_words(rule.match), "The command lines of programs on a GPU that it is about."),
        "signal": (rule.signal, "What it goes by; two rules that go by different ones are independent signals."),
        "shadow": ("yes" if rule.shadow else "no", "Whether it only records what it would have done."),
        "message": (rule.message, "What the user reads."),
        "allow": (", ".join(map(_allowed, rule.allow)) or "nobody", "Who is only observed."),
    }


def steps_words(steps: tuple[RuleStep, ...]) -> str:
    """'warn at once; after 10 min let nothing new of the user start for 24 h'."""
    return "; ".join(map(_step, steps))


def _step(step: RuleStep) -> str:
    length = "" if step.for_ms is None else f" for {length_words(step.for_ms)}"
    what = f"{_DONE[step.action]}{length}{_CONFIRM.get(step.confirm, '')}"
    return f"after {length_words(step.after_ms)} {what}" if step.after_ms else f"{what} at once"


def match_words(match: Match) -> str:
    """'runs main.py, with the word train'."""
    parts = [
        text.format(" or ".join(getattr(match, name)) if name != "all_flags" else " ".join(match.all_flags))
        for name, text in _MATCH.items()
        if getattr(match, name)
    ]
    if match.any_flags:
        parts.append(f"with at least {match.min_flags} of the options {' '.join(match.any_flags)}")
    return ", ".join(parts)


def _allowed(entry: Allowed) -> str:
    who = "everyone" if entry.everyone else f"user {entry.user}" if entry.user else f"group {entry.group}"
    return who if entry.until is None else f"{who} until {entry.until}"


def length_words(ms: int) -> str:
    """A length of time: '45 s', '10 min', '1 h 30 min', '7 d'."""
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:g} s"
    minutes = round(seconds / 60)
    if minutes >= 2880 and minutes % 1440 == 0:
        return f"{minutes // 1440} d"
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if rest else f"{hours} h"
