"""The commands on a live instance: the real service, API and transport; one host that the test speaks for.

The order of the tests matters where they share an instance: each one that changes something cleans up after itself.
"""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fairtier.cli import main
from tests.scheduler.api.live_site import LiveSite, live_site
from tests.scheduler.api.site import Api, Scheduler, Transport, short_directory, wait_until

SESSION_MEMBERS = [
    "session", "user", "group", "tier", "state", "outcome", "ladder", "submitted_at", "started_at", "ended_at",
    "host", "gpus", "load", "position", "reason",
]  # fmt: skip


@pytest.fixture(scope="module")
def site() -> Iterator[LiveSite]:
    with live_site() as found:
        yield found


def run(state: Path, *arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(main, arguments, env={"FAIRTIER_STATE": str(state)})


def ok(site: LiveSite, *arguments: str) -> str:
    """What a command that succeeds prints."""
    result = run(site.state, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(site: LiveSite, *arguments: str) -> Any:
    """The JSON of a command."""
    found = json.loads(ok(site, *arguments, "-o", "json"))
    assert found.pop("schema") == 1
    return found


@pytest.fixture
def submitted(site: LiveSite) -> Iterator[Any]:
    """Submits sessions that are gone after the test."""
    names: list[str] = []

    def submit(*options: str, user: str = "ann") -> str:
        found = json.loads(ok(site, "submit", "--user", user, *options, "-o", "json", "--", "sleep", "9"))
        names.append(str(found["session"]))
        return names[-1]

    yield submit
    for name in names:
        run(site.state, "cancel", name)
        if site.client.get(f"sessions/{name}")["state"] == "stopping":
            site.ended(name, "cancelled", 143)


def process(state: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fairtier", *arguments],
        env={**os.environ, "FAIRTIER_STATE": str(state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- a session's life


def test_a_session_from_submit_to_its_end(site: LiveSite, submitted: Any) -> None:
    """Started, seen running, its output read, ended; every command tells the same story."""
    name = submitted()
    site.runs(name, busy_ms=500, granted_ms=1000)
    [listed] = document(site, "sessions", "--user", "ann")["sessions"]
    assert list(listed) == SESSION_MEMBERS
    assert (listed["session"], listed["state"], listed["host"], listed["position"]) == (name, "running", "gpu-01", None)
    assert listed["gpus"] == [{"gpu": 0, "fraction": 1.0}]
    assert document(site, "why", name)["reasons"]
    assert f"{name} is running" in ok(site, "why", name)
    assert [host["free_gpus"] for host in document(site, "host", "list")["hosts"]] == [1]
    assert document(site, "host", "show", "gpu-01")["devices"][0]["sessions"] == [name]

    folder = site.state / "sessions" / name
    folder.mkdir(parents=True)
    (folder / "log").write_bytes(b"epoch 1\nepoch 2\n")
    follow = process(site.state, "session", name, "--log", "-f")
    assert follow.stdout is not None
    assert follow.stdout.readline() == "epoch 1\n"
    with (folder / "log").open("ab") as log:
        log.write(b"the end\n")
    site.ended(name, "failed", 3)
    assert follow.stdout.read() == "epoch 2\nthe end\n"
    _, errors = follow.communicate(timeout=10)
    assert (follow.returncode, errors) == (0, "")

    found = document(site, "session", name)
    assert (found["state"], found["outcome"], found["exit_code"], found["argv"]) == (
        "ended",
        "failed",
        3,
        ["sleep", "9"],
    )
    assert ok(site, "session", name, "--log") == "epoch 1\nepoch 2\nthe end\n"
    assert document(site, "sessions", "--user", "ann")["sessions"] == []
    assert name in ok(site, "sessions", "--all")
    assert [row["action"] for row in document(site, "history", "--session", name)["decisions"]] == ["start"]
    [used] = document(site, "usage", "--user", "ann", "--since", "1d")["users"]
    assert used["allocated_gpu_h"] == pytest.approx(1.0, abs=1e-3)
    assert used["busy_gpu_h"] == pytest.approx(0.5, abs=1e-3)


def test_the_queue_has_places_and_reasons(site: LiveSite, submitted: Any) -> None:
    submitted("--gpus", "2")
    second, third = submitted("--gpus", "2"), submitted(user="bob")
    waiting = document(site, "queue")["sessions"]
    assert sorted(entry["session"] for entry in waiting) == sorted([second, third])
    assert [entry["position"] for entry in waiting] == [1, 2]
    assert {entry["reason"] for entry in waiting} == {"NoFreeGpu"}
    told = ok(site, "submit", "--user", "bob", "--gpus", "2", "--", "true").split()
    assert told[1:4] == ["queued", "at", "position"]
    assert ok(site, "hold", second, told[0], "--reason", "maintenance") == f"{second} held\n{told[0]} held\n"
    assert [entry["reason"] for entry in document(site, "queue")["sessions"]] == ["NoFreeGpu", "Held", "Held"]
    assert "maintenance" in ok(site, "why", second)
    assert ok(site, "unhold", second) == f"{second} queued\n"
    assert ok(site, "cancel", told[0]) == f"{told[0]} ended (cancelled)\n"
    rows = list(csv.DictReader(io.StringIO(ok(site, "queue", "-o", "csv"))))
    assert list(rows[0]) == SESSION_MEMBERS
    lines = ok(site, "queue", "-o", "jsonl").splitlines()
    assert [json.loads(line)["position"] for line in lines] == [1, 2]


def test_an_eviction_stands_in_the_record_with_who_and_why(site: LiveSite, submitted: Any) -> None:
    name = submitted()
    site.runs(name)
    assert ok(site, "evict", name, "--reason", "line one\nline two\x1b[2J") == f"{name} stopping\n"
    site.ended(name, "evicted", 143)
    told = document(site, "history", "--session", name)["decisions"][-1]
    assert (told["rule"], told["text"]) == ("admin.evict", "line one\nline two\x1b[2J")
    for command in (("history",), ("why", name)):
        assert "\x1b" not in ok(site, *command)


def test_wait_ends_with_the_session_and_as_it_did(site: LiveSite, submitted: Any) -> None:
    del submitted
    for outcome, exit_code, expected in (("completed", 0, 0), ("failed", 4, 1)):
        waiting = process(site.state, "submit", "--user", "ann", "--wait", "-o", "json", "--", "true")
        wait_until(lambda: site.client.get("sessions", user="ann")["sessions"])
        [live] = site.client.get("sessions", user="ann")["sessions"]
        site.runs(live["session"])
        site.ended(live["session"], outcome, exit_code)
        printed, errors = waiting.communicate(timeout=10)
        assert waiting.returncode == expected, errors
        assert json.loads(printed)["outcome"] == outcome
        assert ("exit code 4" in errors) == (expected == 1)


def test_wait_for_a_notebook_ends_with_its_address(site: LiveSite) -> None:
    waiting = process(site.state, "submit", "--user", "ann", "--notebook", "--wait")
    wait_until(lambda: site.client.get("sessions", user="ann")["sessions"])
    [live] = site.client.get("sessions", user="ann")["sessions"]
    site.runs(live["session"])
    runtime = site.state / "sessions" / live["session"] / "runtime"
    runtime.mkdir(parents=True)
    (runtime / "jpserver-1.json").write_text(json.dumps({"url": "http://localhost:1/", "token": "t"}))
    printed, _ = waiting.communicate(timeout=10)
    assert (waiting.returncode, printed) == (0, f"{live['session']} http://localhost:1/?token=t\n")
    ok(site, "cancel", live["session"])
    site.ended(live["session"], "cancelled", 143)


# ---- users, hosts, the instance


def test_users_are_made_and_changed(site: LiveSite) -> None:
    assert document(site, "user", "set", "cid", "--tier", "staff", "--shares", "3")["tier"] == "staff"
    assert document(site, "user", "set", "cid", "--mail", "cid@example.org")["shares"] == 3
    users = {row["user"]: row for row in document(site, "user", "list")["users"]}
    assert users["cid"]["mail"] == "cid@example.org"
    assert users["bob"]["shares"] == 2


def test_a_tier_for_a_time_is_listed_and_explained(site: LiveSite) -> None:
    """Until when, and what then; a session's `why` says so too."""
    found = document(site, "user", "set", "dan", "--tier", "staff", "--until", "2100-01-01T01:00+01:00")
    assert (found["tier"], found["tier_until"], found["then_tier"]) == ("staff", "2100-01-01T00:00:00Z", "free")
    [listed] = [row for row in document(site, "user", "list")["users"] if row["user"] == "dan"]
    assert (listed["tier_until"], listed["then_tier"]) == ("2100-01-01T00:00:00Z", "free")
    assert "2100-01-01 00:00:00Z" in ok(site, "user", "list")
    ok(site, "user", "restrict", "dan")
    name = document(site, "submit", "--user", "dan", "--notebook")["session"]
    reason = document(site, "why", name)["reasons"][-1]
    assert (reason["code"], reason["until"]) == ("TierEnds", "2100-01-01T00:00:00Z")
    assert "and of tier free from then on" in reason["text"]
    ok(site, "cancel", name)
    assert document(site, "user", "set", "dan", "--tier", "staff")["tier_until"] is None


def test_a_restricted_user_waits_is_listed_and_is_pardoned(site: LiveSite) -> None:
    """Every command tells the same story; help names what can be given."""

    def listed() -> Any:
        return {row["user"]: row["restricted_until"] for row in document(site, "user", "list")["users"]}["bob"]

    said = ok(site, "user", "restrict", "bob", "--until", "2100-01-01T02:00+02:00", "--reason", "mining")
    assert said.startswith("bob restricted until 2100-01-01 00:00:00Z: nothing new of it starts")
    assert listed() == "2100-01-01T00:00:00.000Z"
    assert "2100-01-01 00:00:00Z" in ok(site, "user", "list")
    waiting = document(site, "submit", "--user", "bob", "--notebook")["session"]
    [reason] = document(site, "why", waiting)["reasons"]
    assert (reason["code"], reason["until"]) == ("Restricted", "2100-01-01T00:00:00Z")
    assert reason["text"].count("An operator ends it") == 1
    assert [row["reason"] for row in document(site, "queue")["sessions"]] == ["Restricted"]
    ok(site, "user", "restrict", "bob", "--for", "7d")
    assert "until it is pardoned" in ok(site, "user", "restrict", "bob")
    assert listed() == "pardon"
    assert document(site, "user", "set", "bob")["restricted_until"] == "pardon"
    ok(site, "cancel", waiting)
    assert ok(site, "user", "pardon", "bob") == "bob pardoned: neither restricted nor cooling down any more\n"
    assert ok(site, "user", "pardon", "bob") == "bob is neither restricted nor cooling down: nothing to pardon\n"
    assert listed() is None
    acts = [row for row in document(site, "history", "--user", "bob")["decisions"] if row["session"] is None]
    assert [(row["action"], row["text"]) for row in acts] == [
        ("restrict", "mining"), ("restrict", ""), ("restrict", ""), ("pardon", ""),
    ]  # fmt: skip
    assert [row["until"] for row in acts][::2] == ["2100-01-01T00:00:00.000Z", None]
    assert "--until" in ok(site, "user", "restrict", "--help")


def test_an_appeal_is_filed_listed_and_answered_once(site: LiveSite) -> None:
    """The whole way through the API; whoever answers it a second time is told by whom it was answered."""
    ok(site, "user", "restrict", "bob", "--for", "7d")
    filed = document(site, "appeal", "file", "--user", "bob", "--text", "it is my thesis")
    name = filed["appeal"]
    assert (filed["user"], filed["state"], filed["session"]) == ("bob", "open", None)
    listed = document(site, "appeal", "list", "--open", "--user", "bob")
    assert [row["appeal"] for row in listed["appeals"]] == [name]
    assert "it is my thesis" in ok(site, "appeal", "list")
    said = ok(site, "appeal", "answer", name, "--grant", "--text", "sorry", "--allow-for", "30d")
    assert said.startswith(f"{name} of bob granted; every rule only observes bob until ")
    assert run(site.state, "appeal", "answer", name, "--deny", "--text", "no").exit_code == 5
    answered = next(row for row in document(site, "appeal", "list")["appeals"] if row["appeal"] == name)
    assert (answered["state"], answered["answer"]) == ("granted", "sorry")
    assert answered["allowed_until"] is not None
    assert {row["user"]: row["restricted_until"] for row in document(site, "user", "list")["users"]}["bob"] is None
    assert document(site, "appeal", "list", "--open", "--user", "bob")["appeals"] == []


def test_shares_have_every_member_and_the_best_first(site: LiveSite) -> None:
    rows = document(site, "shares")["users"]
    assert list(rows[0]) == [
        "user", "path", "shares", "usage_gpu_h", "committed_gpu_h", "standing_gpu_h", "credit_gpu_h", "level_fs",
        "rank", "factor",
    ]  # fmt: skip
    assert [row["rank"] for row in rows] == sorted((row["rank"] for row in rows), reverse=True)
    assert {row["user"]: row["path"] for row in rows}["ann"] == "default/ann"
    assert rows[-1]["user"] == "ann", "the only one who has used anything"


def test_a_drained_host_says_so(site: LiveSite) -> None:
    ok(site, "host", "drain", "gpu-01")
    assert document(site, "host", "show", "gpu-01")["state"] == "drained"
    ok(site, "host", "resume", "gpu-01")
    assert document(site, "host", "show", "gpu-01")["state"] == "up"


def test_status_is_one_page(site: LiveSite) -> None:
    found = document(site, "status")
    assert (found["scheduler"], found["policy"], found["gpus"]) == ("ok", "test", {"total": 2.0, "free": 2.0})
    assert found["hosts"] == {"up": 1, "maintenance": 0, "drained": 0, "stale": 0, "lost": 0}
    assert found["http"].startswith("http://127.0.0.1:")


def test_metrics_tell_what_the_commands_tell(site: LiveSite, submitted: Any) -> None:
    submitted("--gpus", "2")
    submitted()
    lines = dict(line.rsplit(" ", 1) for line in site.client.metrics().splitlines() if not line.startswith("#"))
    assert lines['fairtier_queue_sessions{reason="NoFreeGpu"}'] == "1.0"
    assert lines['fairtier_gpus{state="granted"}'] == "2.0"
    assert float(lines["fairtier_queue_wait_seconds_count"]) >= 1
    assert float(lines['fairtier_policy_actions_total{action="start",rule="order.in-credit"}']) >= 1
    assert 'fairtier_worker_last_report_age_seconds{host="gpu-01"}' in lines
    assert not any("user=" in line for line in lines)


def test_background_work_is_refused_where_there_is_none(site: LiveSite) -> None:
    assert run(site.state, "task", "run", "usage-report", "since_ms=0").exit_code == 5
    assert document(site, "task", "list") == {"tasks": []}
    assert run(site.state, "task", "show", "t-1").exit_code == 3
    assert run(site.state, "task", "run", "x", "no-value").exit_code == 2


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["submit", "--user", "nobody", "--", "true"], 3),
        (["submit", "--user", "NOBODY", "--", "true"], 2),
        (["submit", "--user", "ann"], 2),
        (["submit", "--user", "ann", "--notebook", "--", "true"], 2),
        (["submit", "--user", "ann", "--gpus", "0", "--", "true"], 2),
        (["submit", "--user", "ann", "--gpus", "3", "--", "true"], 5),
        (["submit", "--user", "ann", "--memory", "8 apples", "--", "true"], 2),
        (["submit", "--user", "ann", "--tier", "staff", "--", "true"], 5),
        (["submit", "--user", "ann", "--grace-signal", "KILL", "--", "true"], 2),
        (["session", "s-999"], 3),
        (["session", "NOPE"], 3),
        (["session", "../../etc/passwd", "--log"], 3),
        (["session", ""], 3),
        (["why", "s-999"], 3),
        (["cancel", "s-999"], 3),
        (["evict", "a/b"], 3),
        (["host", "show", "gpu-99"], 3),
        (["host", "drain", "gpu-99"], 3),
        (["usage", "--user", "nobody"], 3),
        (["usage", "--since", "yesterday"], 2),
        (["user", "set", "UPPER"], 2),
        (["user", "set", "a/b"], 2),
        (["user", "set", "dan", "--shares", "-1"], 2),
        (["user", "set", "dan", "--shares", "nan"], 2),
        (["user", "set", "ann", "--group", "other"], 5),
        (["appeal", "file", "--text", "x"], 2),
        (["appeal", "file", "s-1", "--user", "ann", "--text", "x"], 2),
        (["appeal", "file", "--user", "ann"], 2),
        (["appeal", "file", "--user", "ann", "--text", ""], 2),
        (["appeal", "file", "--user", "nobody", "--text", "x"], 3),
        (["appeal", "file", "s-999", "--text", "x"], 3),
        (["appeal", "answer", "a-999", "--deny", "--text", "x"], 3),
        (["appeal", "answer", "b-1", "--deny", "--text", "x"], 2),
        (["appeal", "answer", "a-1", "--text", "x"], 2),
        (["appeal", "answer", "a-1", "--deny", "--text", "x", "--allow-for", "1d"], 2),
        (["appeal", "answer", "a-1", "--grant", "--text", "x", "--rule", "mining"], 2),
        (["user", "set", "ann", "--until", "+7d"], 2),
        (["user", "set", "ann", "--tier", "pro", "--until", "2020-01-01T00:00Z"], 2),
        (["user", "set", "ann", "--tier", "pro", "--until", "2100-01-01T00:00"], 2),
        (["user", "restrict", "nobody"], 3),
        (["user", "restrict", "UPPER"], 3),
        (["user", "restrict", "ann", "--until", "2020-01-01T00:00Z"], 2),
        (["user", "restrict", "ann", "--until", "0001-01-01T00:00+23:59"], 2),
        (["user", "restrict", "ann", "--until", "9999-12-31T23:59-23:59"], 2),
        (["user", "restrict", "ann", "--until", "2100-01-01"], 2),
        (["user", "restrict", "ann", "--until", "tomorrow"], 2),
        (["user", "restrict", "ann", "--for", "0"], 2),
        (["user", "restrict", "ann", "--for", "a week"], 2),
        (["user", "restrict", "ann", "--for", "7d", "--until", "2100-01-01T00:00Z"], 2),
        (["user", "pardon", "nobody"], 3),
        (["queue", "--watch", "0"], 2),
        (["queue", "--url", "http://x"], 2),
        (["queue", "--state", ""], 2),
        (["queue", "--state", "/tmp/" + "x" * 100], 2),
    ],
)
def test_mistakes_end_with_their_exit_code_and_no_traceback(site: LiveSite, arguments: list[str], code: int) -> None:
    result = run(site.state, *arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "rror" in result.stderr


def test_one_that_fails_does_not_keep_the_others_from_being_done(site: LiveSite, submitted: Any) -> None:
    submitted("--gpus", "2")
    waiting = submitted()
    result = run(site.state, "cancel", "s-998", waiting, "s-999")
    assert result.exit_code == 3
    assert result.stdout == f"{waiting} ended (cancelled)\n"
    assert "s-998" in result.stderr
    assert "s-999" in result.stderr


def test_what_a_user_wrote_cannot_move_the_cursor(site: LiveSite, submitted: Any) -> None:
    submitted("--gpus", "2")
    ok(site, "submit", "--user", "bob", "--", "x\x1b[2J", "y")
    [waiting] = [row for row in document(site, "queue")["sessions"] if row["user"] == "bob"]
    assert "\x1b" not in ok(site, "session", waiting["session"])
    assert document(site, "session", waiting["session"])["argv"] == ["x\x1b[2J", "y"]
    ok(site, "cancel", waiting["session"])


# ---- watching, and nobody there


def test_watch_repeats_until_it_is_interrupted_and_ends_well(site: LiveSite) -> None:
    watching = process(site.state, "status", "--watch", "0.2", "-o", "json")
    assert watching.stdout is not None
    wait_until(lambda: watching.stdout.readline().startswith("}"))  # type: ignore[union-attr]
    wait_until(lambda: watching.stdout.readline().startswith("}"))  # type: ignore[union-attr]
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=5)
    assert (watching.returncode, errors) == (0, "")


def test_without_an_instance_every_command_says_how_to_start_one_at_once() -> None:
    with short_directory() as state:
        for arguments in (["queue"], ["submit", "--user", "ann", "--", "true"], ["status"]):
            began = time.monotonic()
            result = run(state, *arguments)
            assert (result.exit_code, result.stdout) == (4, "")
            assert f"hint: fairtier up --emulate 2x2 --state {state}" in result.stderr
            assert time.monotonic() - began < 1


@pytest.mark.slow
def test_a_dead_scheduler_or_transport_ends_a_whole_command_in_three_seconds() -> None:
    """Scheduler deaf, then the transport gone, then the API stopped in its tracks."""
    with short_directory() as state:
        transport = Transport(state)
        transport.start()
        try:
            with Scheduler(transport.url, lambda request: None), Api(state) as api:
                assert _four(state)
                transport.stop()
                assert _four(state)
                api.process.send_signal(signal.SIGSTOP)
                assert _four(state)
                api.process.send_signal(signal.SIGCONT)
        finally:
            transport.stop()


def _four(state: Path) -> bool:
    began = time.monotonic()
    asked = process(state, "submit", "--user", "ann", "--", "true")
    printed, errors = asked.communicate(timeout=10)
    assert (asked.returncode, printed) == (4, ""), errors
    return time.monotonic() - began < 3


def test_an_api_that_answers_nonsense_is_a_failure_and_no_traceback() -> None:
    """Something else listens on the socket."""

    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *arguments: object) -> None:
            pass

        def address_string(self) -> str:
            return ""

    def handle_two() -> None:
        """The knock, and the question."""
        server.handle_request()
        server.handle_request()

    with short_directory() as state, socketserver.UnixStreamServer(str(state / "api.sock"), Nonsense) as server:
        thread = threading.Thread(target=handle_two)
        thread.start()
        result = run(state, "queue")
        thread.join()
    assert result.exit_code == 1
    assert "not ours" in result.stderr
