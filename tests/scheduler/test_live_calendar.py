"""`fairtier calendar` on a live instance: the real service, API and transport; one host that the test speaks for.

Each test takes out again what it has put in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scheduler.api.live_site import LiveSite, live_site
from tests.scheduler.test_live_cli import document, ok, run

ENTRY_MEMBERS = ["entry", "kind", "state", "from", "until", "gpus", "group", "hosts", "drain_s", "text"]
FILE = """\
[[reservation]]
name = "course-x"
group = "default"
gpus = 2
from = 2100-01-01T10:00:00Z
until = "+2h"
text = "Lecture"

[[maintenance]]
name = "disks"
hosts = ["gpu-01"]
from = "2100-01-02T23:00+01:00"
until = 2100-01-03T02:00:00Z
drain = "2h"
"""


@pytest.fixture(scope="module")
def site() -> Iterator[LiveSite]:
    with live_site() as found:
        yield found


@pytest.fixture(autouse=True)
def emptied(site: LiveSite) -> Iterator[None]:
    yield
    for entry in listed(site):
        ok(site, "calendar", "remove", entry["entry"])


def listed(site: LiveSite, *more: str) -> list[dict[str, Any]]:
    """What `calendar list` shows."""
    found: list[dict[str, Any]] = document(site, "calendar", "list", *more)["entries"]
    return found


def course(name: str = "course-x", *more: str) -> list[str]:
    """A command that reserves one GPU for two hours of the year 2100."""
    times = ["--from", "2100-01-01T10:00Z", "--until", "+2h"]
    return ["calendar", "add", "reservation", name, "--group", "default", "--gpus", "1", *times, *more]


def test_a_reservation_is_agreed_listed_and_removed(site: LiveSite) -> None:
    """Every command tells the same story; afterwards it stands in the history, and its name is free again."""
    said = ok(site, *course("course-x", "--text", "Lecture"))
    assert said == (
        "reservation course-x: 1 GPU for group default from 2100-01-01T10:00:00Z until 2100-01-01T12:00:00Z (planned)\n"
    )
    [entry] = listed(site)
    assert list(entry) == ENTRY_MEMBERS
    assert entry["from"] == "2100-01-01T10:00:00Z"
    assert (entry["gpus"], entry["group"], entry["hosts"], entry["text"]) == (1.0, "default", None, "Lecture")
    table = ok(site, "calendar", "list").splitlines()
    assert table[0].split() == ["entry", "kind", "state", "from", "until", "gpus", "for", "text"]
    assert len(table) == 2
    assert len(ok(site, "calendar", "list", "-o", "csv").splitlines()) == 2
    assert json.loads(ok(site, "calendar", "list", "-o", "jsonl"))["entry"] == "course-x"
    assert ok(site, "calendar", "remove", "course-x", "--reason", "moved") == "reservation course-x removed\n"
    assert listed(site) == []
    assert [(e["entry"], e["state"]) for e in listed(site, "--all")] == [("course-x", "removed")]
    acts = [row for row in document(site, "history")["decisions"] if row["rule"] in ("admin.plan", "admin.unplan")]
    assert [(row["action"], row["text"]) for row in acts[-2:]] == [
        ("plan", "reservation course-x"),
        ("unplan", "moved"),
    ]
    ok(site, *course())


def test_what_is_in_the_way_is_named(site: LiveSite) -> None:
    """Refused, exit code 5: the same group twice, more than there is, a host twice, a name twice."""
    ok(site, "user", "set", "yves", "--group", "y")
    ok(site, *course())
    ok(
        site,
        "calendar",
        "add",
        "maintenance",
        "disks",
        "--host",
        "gpu-01",
        "--from",
        "2100-02-01T00:00Z",
        "--until",
        "+1h",
    )
    for arguments, words in (
        (course("other"), "course-x reserves GPUs for group default at that time already"),
        (course("course-x"), "there is one of that name"),
        ([*course("many"), "--gpus", "3", "--from", "2100-03-01T00:00Z"], "3 GPUs are more than the 2 there are"),
        ([*course("sum"), "--group", "y", "--gpus", "2"], "with what is reserved by course-x, 3 in all, are more than"),
        (["calendar", "add", "maintenance", "all", "--from", "2100-02-01T00:30Z", "--until", "+1h"], "disks is"),
    ):
        result = run(site.state, *arguments)
        assert (result.exit_code, result.stdout) == (5, ""), result.output
        assert words in result.stderr
    assert [entry["entry"] for entry in listed(site)] == ["course-x", "disks"]


def test_a_file_is_agreed_whole_or_not_at_all(site: LiveSite, tmp_path: Path) -> None:
    """Checked, added, and refused the second time, when nothing of it is added."""
    file = tmp_path / "course.toml"
    file.write_text(FILE)
    assert "ok, 2 entries; the instance would agree" in ok(site, "calendar", "check", str(file))
    assert listed(site) == []
    assert len(ok(site, "calendar", "add", "--file", str(file)).splitlines()) == 2
    assert [(e["entry"], e["until"]) for e in listed(site)] == [
        ("course-x", "2100-01-01T12:00:00Z"),
        ("disks", "2100-01-03T02:00:00Z"),
    ]
    assert listed(site)[1]["drain_s"] == 7200
    file.write_text(FILE.replace('"course-x"', '"first"').replace("2100-01-01", "2101-01-01"))
    result = run(site.state, "calendar", "add", "--file", str(file))
    assert (result.exit_code, result.stdout) == (5, "")
    assert "maintenance disks: there is one of that name" in result.stderr
    assert run(site.state, "calendar", "check", str(file)).exit_code == 5
    assert "the file alone" in ok(site, "calendar", "check", str(file), "--offline")
    assert [entry["entry"] for entry in listed(site)] == ["course-x", "disks"]


def test_one_key_is_one_entry(site: LiveSite) -> None:
    """A request told twice is answered twice alike, and done once."""
    import httpx  # noqa: PLC0415

    asked = {"entries": [{"entry": "once", "kind": "maintenance", "from_s": 3600, "until_s": 60}]}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(site.state / "api.sock")), base_url="http://x") as http:
        told = [
            http.post("/v1/calendar", json=asked, headers={"Idempotency-Key": "the-same-key"}).json() for _ in range(2)
        ]
    assert told[0] == told[1]
    assert told[0]["entries"][0]["entry"] == "once"
    assert len(listed(site)) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add"], 2, "give one of"),
        (["add", "reservation", "x", "--gpus", "1", "--until", "+1h"], 2, "--group"),
        (["add", "reservation", "x", "--group", "default", "--gpus", "0", "--until", "+1h"], 2, "--gpus"),
        (["add", "reservation", "X Y", "--group", "default", "--gpus", "1", "--until", "+1h"], 2, "entry"),
        (["add", "reservation", "x", "--group", "nobody", "--gpus", "1", "--until", "+1h"], 3, "nobody is of group"),
        (["add", "maintenance", "x", "--host", "gpu-99", "--until", "+1h"], 3, "host gpu-99 is not known"),
        (["add", "maintenance", "x", "--until", "2100-01-01T10:00"], 2, "give its offset from UTC"),
        (["add", "maintenance", "x", "--until", "tomorrow"], 2, "is no time with its offset"),
        (["add", "maintenance", "x", "--until", "+soon"], 2, "is no length of time"),
        (["add", "maintenance", "x", "--until", "2020-01-01T10:00Z"], 2, "not after it begins"),
        (["add", "maintenance", "x", "--from", "2019-01-01T00:00Z", "--until", "+1h"], 2, "give a time to come"),
        (["add", "maintenance", "x", "--until", "+1h", "--text", "a\nb"], 2, "one line"),
        (["add", "--file", "/nowhere.toml"], 3, "no file"),
        (["add", "--file", "x.toml", "maintenance", "x", "--until", "+1h"], 2, "give one of"),
        (["remove", "nothing"], 3, "does not exist"),
        (["remove", "a/b"], 3, "names nothing"),
        (["check", "/nowhere.toml"], 3, "no file"),
    ],
)
def test_mistakes_end_with_their_exit_code(site: LiveSite, arguments: list[str], code: int, words: str) -> None:
    """What is wrong is said on standard error, and nothing is agreed."""
    result = run(site.state, "calendar", *arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert words in result.stderr
    assert listed(site) == []


def test_people_see_what_is_on(site: LiveSite) -> None:
    """A host in maintenance is shown so, the status announces what is on, and a waiting session is told why."""
    ok(site, "calendar", "add", "maintenance", "disks", "--until", "+1h", "--text", "new disks")
    assert document(site, "host", "show", "gpu-01")["state"] == "maintenance"
    [host] = document(site, "host", "list")["hosts"]
    assert host["maintenance_until"].startswith(listed(site)[0]["until"].removesuffix("Z"))
    assert "maintenance until 20" in ok(site, "host", "list")
    status = document(site, "status")
    assert status["hosts"]["maintenance"] == 1
    assert [(told["entry"], told["text"]) for told in status["announcements"]] == [
        ("disks", "maintenance of all hosts: new disks")
    ]
    assert "announcement" in ok(site, "status")
    name = document(site, "submit", "--user", "ann", "--notebook")["session"]
    [reason, _] = document(site, "why", name)["reasons"]
    assert (reason["code"], reason["until"]) == ("Draining", listed(site)[0]["until"])
    assert "for maintenance disks: new disks." in reason["text"]
    ok(site, "cancel", name)
    ok(site, "calendar", "remove", "disks")
    assert document(site, "host", "show", "gpu-01")["state"] == "up"
    assert document(site, "status")["announcements"] == []


def test_a_reservation_that_is_on_is_kept_from_others(site: LiveSite) -> None:
    """Both GPUs are kept for another group: who waits is told for whom, until when and why."""
    ok(site, "user", "set", "eve", "--group", "x")
    ok(
        site,
        "calendar",
        "add",
        "reservation",
        "course-x",
        "--group",
        "x",
        "--gpus",
        "2",
        "--until",
        "+1h",
        "--text",
        "Lecture",
    )
    [entry] = listed(site)
    assert entry["state"] == "on"
    name = document(site, "submit", "--user", "ann", "--notebook")["session"]
    [reason, _] = document(site, "why", name)["reasons"]
    assert f"2 of 2 free GPUs are kept for course-x (group x) until {entry['until']}: Lecture." in reason["text"]
    own = json.loads(ok(site, "submit", "--user", "eve", "-o", "json", "--", "sleep", "9"))["session"]
    site.runs(own)
    assert document(site, "history", "--session", own)["decisions"][-1]["rule"] == "order.right"
    for session in (name, own):
        ok(site, "cancel", session)
    site.ended(own, "cancelled", 143)
