"""A calendar file: what it means, every mistake at once with its line, and which entries are in each other's way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.calendar import MAINTENANCE, RESERVATION, Calendar, Entry
from policies.param_file import PolicyError
from scheduler import calendar_file
from scheduler.calendar_file import check_overlaps, parse_calendar, read_calendar
from scheduler.errors import NotFound, Refused
from scheduler.requests import Planned

GOOD = """\
# the winter term
[[reservation]]
name = "lab-1"
group = "course-y"
gpus = 8
from = 2026-12-01T14:00:00Z
until = "+2h"

[[maintenance]]
name = "disks"
from = "2026-12-01T23:00+01:00"
until = 2026-12-02T02:00:00+01:00
text = "new disks"

[[maintenance]]
name = "fans"
hosts = ["gpu-07"]
from = 2026-12-08T22:00:00Z
until = 2026-12-08T23:00:00Z
drain = "2h"
"""
DEC_1_MS = 1_796_133_600_000  # 2026-12-01T14:00Z


def wrong(text: str) -> list[tuple[int, str]]:
    """(line, key) of every mistake."""
    with pytest.raises(PolicyError) as caught:
        parse_calendar(text, "x.toml")
    return [(error.line, error.key) for error in caught.value.errors]


def test_a_good_file_says_what_the_command_would() -> None:
    """Times as instants, `+2h` after the begin, the usual drain where none is given; each is a request."""
    entries = parse_calendar(GOOD, "x.toml")
    assert [entry.line for entry in entries] == [2, 9, 15]
    lab, disks, fans = (entry.asked for entry in entries)
    assert lab == {
        "kind": "reservation", "entry": "lab-1", "group": "course-y", "gpus": 8, "from_ms": DEC_1_MS, "until_s": 7200,
    }  # fmt: skip
    assert disks["from_ms"] == DEC_1_MS + 8 * 3_600_000
    assert disks["until_ms"] == DEC_1_MS + 11 * 3_600_000
    assert (disks["drain_s"], fans["drain_s"]) == (3600, 7200)
    assert "hosts" not in disks
    for entry in entries:
        Planned.model_validate(entry.asked)
    check_overlaps(entries, "x.toml")


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    """One file with all of them; each has its line, its key, and what would be right."""
    text = """\
[[reservation]]
name = "Lab 1"
gpu = 8
group = 5
from = 2026-12-01T14:00:00
until = "soon"

[[maintenance]]
name = "disks"
hosts = ["a", "a"]
from = 2026-12-01
until = 2026-12-01T10:00:00Z
drain = "a while"
text = "two\\nlines"

[[maintenance]]
name = "disks"
from = 2026-12-02T00:00:00Z
until = 2026-12-01T10:00:00Z

[[holiday]]
name = "x"
"""
    assert wrong(text) == [
        (1, "reservation.0.gpus"),
        (2, "reservation.0.name"),
        (3, "reservation.0.gpu"),
        (4, "reservation.0.group"),
        (5, "reservation.0.from"),
        (6, "reservation.0.until"),
        (10, "maintenance.0.hosts"),
        (11, "maintenance.0.from"),
        (13, "maintenance.0.drain"),
        (14, "maintenance.0.text"),
        (17, "maintenance.1.name"),
        (19, "maintenance.1.until"),
        (21, "holiday"),
    ]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", (1, ""), "at least one"),
        ("x = ", (1, ""), "valid TOML"),
        ("[reservation]\nname = 'x'", (1, "reservation"), "two brackets"),
        ("maintenance = 5", (1, "maintenance"), "two brackets"),
        (GOOD.replace("gpus = 8", "gpus = true"), (5, "reservation.0.gpus"), "whole number"),
        (GOOD.replace("gpus = 8", "gpus = 0"), (5, "reservation.0.gpus"), "1 to"),
        (GOOD.replace('"+2h"', '"+0s"'), (7, "reservation.0.until"), "longer than 0 s"),
        (GOOD.replace("14:00:00Z", "14:00:00"), (6, "reservation.0.from"), "2026-12-01T14:00Z for UTC or"),
        (GOOD.replace("2026-12-01T14:00:00Z", '"+1h"'), (6, "reservation.0.from"), "offset from UTC"),
        (GOOD.replace("2026-12-01T14:00:00Z", "1969-12-31T23:00:00Z"), (6, "reservation.0.from"), "1970 to 9999"),
    ],
)
def test_single_mistakes(text: str, where: tuple[int, str], words: str) -> None:
    """Each is named where it stands, and it is said what would be right."""
    assert wrong(text) == [where]
    with pytest.raises(PolicyError, match=words):
        parse_calendar(text, "x.toml")


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """Missing, a directory, not UTF-8, too large."""
    with pytest.raises(NotFound):
        read_calendar(tmp_path / "no.toml")
    with pytest.raises(PolicyError, match="directory"):
        read_calendar(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="not UTF-8"):
        read_calendar(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_bytes(b"#" * (calendar_file.LARGEST_FILE + 1))
    with pytest.raises(PolicyError, match="at most"):
        read_calendar(tmp_path / "x.toml")


def test_entries_in_each_others_way_are_all_named() -> None:
    """The same group twice, and a host twice: both with file, line and the other one; touching is no overlap."""
    again = '\n[[reservation]]\nname = "lab-2"\ngroup = "course-y"\ngpus = 1\nfrom = {}\nuntil = "+1h"\n'
    fans = '\n[[maintenance]]\nname = "all"\nfrom = 2026-12-08T22:30:00Z\nuntil = "+1h"\n'
    with pytest.raises(Refused) as caught:
        check_overlaps(parse_calendar(GOOD + again.format("2026-12-01T15:59:00Z") + fans, "x.toml"), "x.toml")
    assert "x.toml:22: reservation lab-2: lab-1 reserves GPUs for group course-y" in caught.value.message
    assert "x.toml:29: maintenance all: fans is maintenance of the same hosts" in caught.value.message
    check_overlaps(parse_calendar(GOOD + again.format("2026-12-01T16:00:00Z"), "x.toml"), "x.toml")


# -- conflicts by definition -------------------------------------------------------------------------------------------

GROUPS, HOSTS, POOL = ("a", "b"), ("h", "i"), 4
SPAN = st.tuples(st.integers(0, 8), st.integers(1, 6))
RESERVED = st.builds(
    lambda span, gpus, group: Entry("", RESERVATION, span[0], sum(span), gpus * 1000, group),
    SPAN, st.integers(1, 4), st.sampled_from(GROUPS),
)  # fmt: skip
WORKED_ON = st.builds(
    lambda span, hosts: Entry("", MAINTENANCE, span[0], sum(span), hosts=hosts),
    SPAN, st.sampled_from([(), ("h",), ("i",), ("h", "i")]),
)  # fmt: skip


def possible(entries: list[Entry]) -> bool:
    """Asked of every instant: no group has two reservations, no host two windows, and the pool is large enough."""
    for at in range(16):
        on = [entry for entry in entries if entry.from_ms <= at < entry.until_ms]
        groups = [entry.group for entry in on if entry.kind == RESERVATION]
        worked_on = [host for entry in on for host in HOSTS if entry.closes(host)]
        if len(set(groups)) < len(groups) or len(set(worked_on)) < len(worked_on):
            return False
        if sum(entry.gpus_m for entry in on) > POOL * 1000:
            return False
    return True


def check_conflicts(asked: list[Entry]) -> None:
    """An entry is refused exactly where what is agreed would be impossible with it at some instant."""
    calendar = Calendar()
    for number, entry in enumerate(asked):
        named = entry._replace(id=f"e{number}")
        fits = possible([*calendar.entries.values(), named])
        assert (calendar.conflict(named, POOL * 1000) is None) == fits
        if fits:
            calendar.entries[named.id] = named


@given(asked=st.lists(RESERVED | WORKED_ON, max_size=8))
def test_what_is_refused_is_what_cannot_be(asked: list[Entry]) -> None:
    """Random reservations and windows, against the definition."""
    check_conflicts(asked)


def test_a_calendar_that_overlooks_the_pool_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: too much is reserved in all."""
    asked = [Entry("", RESERVATION, 0, 4, 3000, "a"), Entry("", RESERVATION, 2, 5, 2000, "b")]
    check_conflicts(asked)
    honest = Calendar.conflict
    monkeypatch.setattr(Calendar, "conflict", lambda self, new, pool_m: honest(self, new, 10**9))
    with pytest.raises(AssertionError):
        check_conflicts(asked)
