"""A demo: a whole instance with real processes, six users who ask, and at the end what happened, in numbers."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fairtier import demo_script, demo_truth
from fairtier.up import Instance, Plan
from fairtier.up_cli import emulated
from scheduler.adapters.sql_reader import SqlReader
from scheduler.client import Client
from scheduler.policy_files import read_policy
from scheduler.state_dir import database
from workers.leftovers import leftovers
from workers.settings import instance_of

POLICY = "demo"
PAUSE_S = 0.2
WORK = Path(__file__).with_name("demo_work.py")

Say = Callable[[str], None]
Json = dict[str, Any]


class Demo(NamedTuple):
    """What a demo showed; `fairtier demo -o json` prints it."""

    sessions: list[Json]
    events: list[Json]
    throttle: list[Json]
    ledger_error_s: float
    leftover: dict[str, int]
    journal: str
    policy: str


class Interrupted(Exception):
    """Ctrl-C, or SIGTERM: everything has been ended."""


def run(seconds: float, say: Say) -> Demo:
    """Run the script for so many seconds, end everything, and report.

    Args:
        seconds: from the first request to the end.
        say: told of each decision as it happens.
    """
    folder = Path(tempfile.mkdtemp(prefix="fairtier-demo-"))
    state = folder / "state"
    try:
        report_s = read_policy(POLICY).telemetry.report_ms / 1000
        hosts = emulated(f"{demo_script.HOSTS}x{demo_script.GPUS}")
        with Instance(Plan(state, hosts, POLICY, None, report_s), say) as instance, Client(state) as client:
            say(f"ready: {demo_script.HOSTS} emulated hosts of {demo_script.GPUS} GPUs, policy {POLICY}")
            stage = _Stage(instance, client, say)
            stage.play(seconds)
            seen = _look(state, client)
        journal = folder / "journal.jsonl"
        _export(state, journal)
        left = leftovers(instance_of(state), state)
        sockets = sum(1 for path in state.rglob("*") if path.is_socket())
        return seen._replace(leftover={**left, "sockets": sockets}, journal=str(journal))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(state, ignore_errors=True)


class _Stage:
    """Plays the script and tells what happens meanwhile."""

    def __init__(self, instance: Instance, client: Client, say: Say) -> None:
        self._instance = instance
        self._client = client
        self._say = say
        self._told = 0
        self._began_s = time.monotonic()

    def play(self, seconds: float) -> None:
        """Users, then each request at its time, until the time is over."""
        for user in demo_script.USERS:
            self._client.set_user(user)
        self._began_s = time.monotonic()
        todo = list(demo_script.SCRIPT)
        while (elapsed := time.monotonic() - self._began_s) < seconds:
            while todo and todo[0].at_s <= elapsed:
                self._ask(todo.pop(0))
            self._tell()
            if self._instance.wait(PAUSE_S):
                raise Interrupted
        self._tell()

    def _ask(self, ask: demo_script.Ask) -> None:
        argv = [sys.executable, "-I", "-S", str(WORK), str(ask.load), str(ask.run_s)]
        asked = self._client.submit(user=ask.user, fraction=ask.fraction, argv=argv)
        what = "a GPU" if ask.fraction == 1 else f"{ask.fraction:g} of a GPU"
        self._say(self._line(f"{asked['session']} of {ask.user}: asks for {what}, {ask.load:.0%} busy"))

    def _tell(self) -> None:
        """What was decided since the last look."""
        decisions = self._client.get("history", limit=1000)["decisions"]
        for decision in decisions[self._told :]:
            self._say(self._line(f"{decision['session']} of {decision['user']}: {decision['text']}"))
        self._told = len(decisions)

    def _line(self, text: str) -> str:
        return f"{time.monotonic() - self._began_s:5.1f} s  {text}"


def _look(state: Path, client: Client) -> Demo:
    """Everything that can be read while the instance still runs, in one moment."""
    params = read_policy(POLICY)
    reader = SqlReader(database(state))
    try:
        shares = {row["user"]: row["usage_gpu_h"] * 3600 for row in client.get("shares")["users"]}
        now_ms = time.time_ns() // 1_000_000
        shown = client.get("sessions", state="all", limit=1000)["sessions"]
        rows = {row["session"]: row for row in reader.sessions()}
        decisions = [json.loads(row["body"]) for row in reader.decisions()]
    finally:
        reader.close()
    due = dict.fromkeys(demo_script.USERS, 0.0)
    throttle: list[Json] = []
    for sid, row in rows.items():
        notes = demo_truth.read_notes(state / "sessions" / sid / "work" / "truth.csv")
        held = demo_truth.stretches(row, decisions, now_ms)
        due[row["user"]] += demo_truth.usage_gpu_s(
            notes, held, params.usage.idle_charge, params.usage.half_life_h, now_ms
        )
        throttle += _throttled(sid, row["fraction_m"], notes, held)
    error = max(abs(due[user] - shares.get(user, 0.0)) for user in due)
    return Demo(shown, _events(rows, decisions), throttle, round(error, 3), {}, "", POLICY)


def _throttled(sid: str, fraction_m: int, notes: list[demo_truth.Note], held: list[demo_truth.Stretch]) -> list[Json]:
    found = []
    for stretch in held:
        measured = demo_truth.measured_share(notes, stretch) if stretch.granted_m < fraction_m else None
        if measured is not None:
            found.append({"session": sid, "granted": stretch.granted_m / 1000, "measured": round(measured, 4)})
    return found


def _events(rows: dict[str, Json], decisions: list[Json]) -> list[Json]:
    """Every step of every session, in order: from which state or rung to which, by which rule."""
    at: dict[str, str] = {}
    events: list[Json] = []

    def step(at_ms: int, sid: str, to: str, rule: str) -> None:
        events.append({"at_ms": at_ms, "session": sid, "from": at.get(sid, "queued"), "to": to, "rule": rule})
        at[sid] = to

    ends = sorted((row["ended_ms"], sid) for sid, row in rows.items() if row["ended_ms"] is not None)
    for decision in decisions:
        while ends and ends[0][0] <= decision["at_ms"]:
            ended_ms, sid = ends.pop(0)
            step(ended_ms, sid, rows[sid]["outcome"], "host.ended")
        to = {"start": "running", "evict": "stopping"}.get(decision["action"], decision.get("ladder"))
        if to is not None:
            step(decision["at_ms"], decision["session"], str(to), decision["rule"])
    for ended_ms, sid in ends:
        step(ended_ms, sid, rows[sid]["outcome"], "host.ended")
    return events


def _export(state: Path, journal: Path) -> None:
    reader = SqlReader(database(state))
    try:
        with journal.open("w") as out:
            out.writelines(f"{line}\n" for line in reader.journal())
    finally:
        reader.close()
