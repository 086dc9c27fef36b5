"""Acceptable use: rules as data, and whether a command line is what a rule describes.

`seen` is the one matcher: workers ask it about processes that use a GPU, `fairtier policy check` about a rule's own
examples, the simulator about what its people run. It looks at the command line alone: no environment, no files, no
notebook text. Names can be changed by whoever wants to; a rule makes a message specific, the ledger is what protects.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ACTIONS = ("observe", "warn", "throttle", "evict", "restrict")
"""What a step can do, mildest first."""
SIGNALS = ("name", "structure", "address")
"""What a rule goes by: what a program is called, how its command line is built, whom it talks to.

Two rules that go by different ones are independent of each other; two that go by the same one are not.
"""
CONFIRMS = ("second-signal", "person")

MOST_ARGUMENTS, LONGEST_ARGUMENT = 256, 4096
"""Of a command line, arguments looked at and characters of each."""
LONGEST_PATTERN, MOST_REPEATS = 120, 2
"""Characters of a pattern, and `*` or `+` in the pattern of one name: what keeps matching fast on any command line."""

# fmt: off
NEVER_RUN = frozenset((
    "git", "mkdir", "rmdir", "grep", "egrep", "fgrep", "rg", "ack", "find", "locate", "ls", "cat", "tail",
    "head", "less", "more", "cp", "mv", "rm", "ln", "touch", "chmod", "chown", "tar", "zip", "unzip", "gzip",
    "wget", "curl", "rsync", "scp", "echo", "printf", "cd", "pushd", "pip", "pip3", "conda", "mamba", "apt",
    "apt-get", "vi", "vim", "nano", "emacs", "ps", "pgrep", "pkill", "kill", "killall", "man", "which",
    "whereis", "du", "df", "diff", "sed", "awk", "sort", "uniq", "wc", "tee", "make",
))
# fmt: on
"""Programs that handle files, names or processes: whatever their arguments say, they do not run it."""

_INTERPRETER = re.compile(r"(?:python|pypy|ipython)[0-9.]*|bash|sh|dash|zsh|node|perl|ruby|java|mono|wine(?:64)?")
_WITH_VALUE = frozenset({"-X", "-W", "-cp", "-classpath", "--check-hash-based-pycs"})
"""Options of interpreters that take the argument after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a command line must be like; everything that is given must hold, an empty member holds always.

    Attributes:
        programs: what runs is called one of these (the script where an interpreter runs one); small or large letters.
        paths: patterns, one of which fits consecutive whole names of the path of what runs.
        words: one of these is an argument, or the value of an option; small or large letters.
        any_flags: at least `min_flags` of these options are there; all_flags: each of these is.
        begins: an argument, or the value of an option, begins with one of these; small letters.
        argument_paths: patterns as in `paths`, for arguments and values of options that are paths.
    """

    programs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    any_flags: tuple[str, ...] = ()
    min_flags: int = 1
    all_flags: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    argument_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleStep:
    """One thing that a rule does.

    Attributes:
        action: one of `ACTIONS`.
        after_ms: after the rule was first seen in the session, >= 0.
        for_ms: length of a restriction; None for everything else.
        confirm: what an eviction needs, one of `CONFIRMS`; "" for everything else.
    """

    action: str
    after_ms: int = 0
    for_ms: int | None = None
    confirm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Who a rule only observes: one user, one group, or everyone; until an instant, None = for good."""

    user: str | None = None
    group: str | None = None
    everyone: bool = False
    until: str | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        category: a word for reports.
        tiers: whose sessions it applies to; None = all.
        signal: one of `SIGNALS`.
        steps: by time, each no milder than the one before.
        shadow: it only records what it would have done.
        message: what the user reads.
        positive, negative: command lines that it must match, and must not match: its own tests.
        allow: who is only observed.
    """

    id: str
    title: str
    category: str
    match: Match
    steps: tuple[RuleStep, ...]
    signal: str
    message: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    tiers: tuple[str, ...] | None = None
    shadow: bool = False
    allow: tuple[Allowed, ...] = ()

    def applies(self, tier: str) -> bool:
        """Whether it is a rule of this tier."""
        return self.tiers is None or tier in self.tiers

    def allowed_until_ms(self, user: str, group: str, now_ms: int) -> int | None:
        """Until when its list lets a user alone; `NEVER` = for good, None = it does not."""
        found = [
            NEVER_MS if entry.until_ms is None else entry.until_ms
            for entry in self.allow
            if entry.everyone or entry.user == user or (entry.group is not None and entry.group == group)
        ]
        until = max(found, default=0)
        return until if until > now_ms else None


NEVER_MS = 1 << 62
PREFIX = "use."
"""Decisions name their rule so: `use.ID`."""


def known_rule(rule: str) -> str:
    """The name under which a decision's rule is explained: those of acceptable use, which sites name, have one."""
    return "use.RULE" if rule.startswith(PREFIX) else rule


def seen(rules: Iterable[Rule], argv: Sequence[str]) -> list[str]:
    """Ids of the rules that a command line matches, in the order of the rules."""
    line = _Line(argv)
    return [rule.id for rule in rules if line.is_like(rule.match)]


def matches(match: Match, command: str) -> bool:
    """Whether a command line given as one text matches; ValueError where its quotes do not close."""
    return _Line(shlex.split(command)).is_like(match)


class _Line:
    """A command line taken apart, for any number of rules."""

    def __init__(self, argv: Sequence[str]) -> None:
        argv = [argument[:LONGEST_ARGUMENT] for argument in argv[:MOST_ARGUMENTS]]
        self.ran, rest = _what_runs(argv)
        self.names = {_base(path) for path in self.ran}
        self.flags: set[str] = set()
        self.values: list[str] = []
        for argument in rest:
            if argument.startswith("-"):
                flag, equals, value = argument.partition("=")
                self.flags.add(flag)
                if equals:
                    self.values.append(value)
            else:
                self.values.append(argument)
        self.words = {value.casefold() for value in self.values}

    def is_like(self, match: Match) -> bool:
        """Whether everything that is given holds."""
        if not self.names or not NEVER_RUN.isdisjoint(self.names):
            return False
        return (
            (not match.programs or any(name.casefold() in self.names for name in match.programs))
            and (not match.paths or _any_path(match.paths, self.ran))
            and (not match.words or any(word.casefold() in self.words for word in match.words))
            and (not match.any_flags or sum(flag in self.flags for flag in match.any_flags) >= match.min_flags)
            and all(flag in self.flags for flag in match.all_flags)
            and (not match.begins or self._begins(match.begins))
            and (not match.argument_paths or _any_path(match.argument_paths, self.values))
        )

    def _begins(self, starts: tuple[str, ...]) -> bool:
        wanted = tuple(start.casefold() for start in starts)
        return any(value.casefold().startswith(wanted) for value in self.values)


def _what_runs(argv: list[str]) -> tuple[list[str], list[str]]:
    """(paths of what runs, its arguments): the program, and the script or module where an interpreter runs one."""
    if not argv or not argv[0]:
        return [], []
    program, rest = argv[0], argv[1:]
    if not _INTERPRETER.fullmatch(_base(program)):
        return [program], rest
    while rest and rest[0].startswith("-"):
        option, rest = rest[0], rest[1:]
        if option == "-m" and rest:
            return [program, rest[0].replace(".", "/")], rest[1:]
        if option == "-c":
            return [program], []
        if option in _WITH_VALUE:
            rest = rest[1:]
    return ([program, rest[0]], rest[1:]) if rest else ([program], [])


def _base(path: str) -> str:
    """The last name of a path, in small letters, without what only Windows adds."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold().removesuffix(".exe")


def _any_path(patterns: tuple[str, ...], paths: Iterable[str]) -> bool:
    names = [[part for part in path.replace("\\", "/").split("/") if part] for path in paths]
    return any(_fits(compiled(pattern), parts) for pattern in patterns for parts in names)


def _fits(pattern: tuple[re.Pattern[str], ...], parts: list[str]) -> bool:
    """Whether a pattern fits consecutive whole names of a path."""
    width = len(pattern)
    return any(
        all(piece.fullmatch(part[:255]) for piece, part in zip(pattern, parts[at : at + width], strict=True))
        for at in range(len(parts) - width + 1)
    )


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    """A pattern as one expression for each name of a path, each for the whole name, small or large letters.

    Only what is matched quickly on any text is allowed: literals, `.`, classes, `?`, alternatives in groups, and at
    most two `*` or `+` a name, none of them after a group.

    Raises:
        ValueError: what is wrong with it.
    """
    if not pattern or len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"1 to {LONGEST_PATTERN} characters")
    pieces = []
    for piece in pattern.split("/"):
        bare = re.sub(r"\[[^\]]*\]", "x", re.sub(r"\\[^A-Za-z0-9]", "x", piece))
        if not bare:
            raise ValueError("a name, or names with / between them: it always fits whole names of a path")
        if re.search(r"\\|\(\?|\)[*+{]|\{|[*+?][*+]|\^|\$", bare):
            raise ValueError("made of letters, ., [classes], ?, (this|that), and * or + after a single character")
        if len(re.findall(r"[*+]", bare)) > MOST_REPEATS:
            raise ValueError(f"of at most {MOST_REPEATS} * or + in one name")
        try:
            pieces.append(re.compile(piece, re.IGNORECASE))
        except re.error as error:
            raise ValueError(f"a regular expression for each name ({error})") from None
    return tuple(pieces)
