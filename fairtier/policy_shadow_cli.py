"""`fairtier policy shadow`: what another policy would decide on a recorded past, or on what happens now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.duration import Duration
from scheduler.errors import BadInput, FairTierError, NotFound
from scheduler.live_cli import state_option
from scheduler.output import emit, emit_json, output_option
from scheduler.policy_files import read_policy
from scheduler.why_words import span, utc
from simulations.places import PLACE, printing
from simulations.progress import Progress
from simulations.replay_cli import file_lines

if TYPE_CHECKING:
    from scheduler.ports import Reader
    from scheduler.shadow import Departure, Shadow

DAY_S = 86_400
POLL_S = 1.0
"""Between two looks for what was recorded, with --follow."""
COLUMNS = ("at", "session", "user", "difference", "reason", "active")
WORDS = {
    "start": ("start", "started"),
    "reject": ("refuse", "refused"),
    "notice": ("tell", "told"),
    "warn": ("warn", "warned"),
    "throttle": ("throttle", "throttled"),
    "grace": ("give grace to", "given grace"),
    "evict": ("evict", "evicted"),
    "withdraw": ("spare", "spared"),
    "recover": ("ease", "eased"),
    "lose": ("close", "closed"),
}
"""Of each action: what it would do to a session, and what was, or was not, done to it."""


@click.command(short_help="Say what another policy would decide, without doing it.")
@click.argument("name", metavar="NAME|FILE")
@state_option
@click.option("--journal", type=PLACE, metavar="J.jsonl", help="A journal file instead of the instance's records.")
@click.option("--since", type=Duration(), metavar="TIME", help="The last 2h, 7d, ...  [default: 24h; of a file all]")
@click.option(
    "--every", type=Duration(), default="60s", show_default=True, metavar="TIME", help="One look; 0: each cycle."
)
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@output_option
def shadow(
    name: str, state: Path, journal: Path | None, since: int | None, every: int, follow: bool, output: str
) -> None:
    """Hold another policy against what was decided: had it been activated at this instant, what would it decide?

    Asked at cycles of the recorded past, at most one each --every, always with the recorded state. Nothing is done or
    written, and an instance may go on running. A difference is listed once for as long as it lasts. Exit code 0 also
    with differences, 2 when the policy has mistakes.
    """
    from scheduler.shadow import Shadow  # noqa: PLC0415

    params = read_policy(name)
    if journal is not None and (since is not None or follow):
        raise BadInput("--since and --follow are for an instance", "a journal file is looked at as a whole")
    if follow and output not in ("table", "jsonl"):
        raise BadInput(f"-o {output} has an end, --follow has none", "-o jsonl is a line for each difference")
    since_ms = 0 if journal is not None else max(0, _now_ms() - (DAY_S if since is None else since) * 1000)
    seen = Shadow(params, every * 1000, since_ms)
    with _lines(journal, state, since_ms, follow=follow) as (lines, place):
        _run(seen, lines, place, _printer(seen, output) if follow else lambda: None)
    with printing():
        _show(seen, params.name or params.policy, output)


def _run(seen: Shadow, lines: Iterator[str], place: str, told: Callable[[], None]) -> None:
    """Show the shadow every cycle; `told` is called after each."""
    from scheduler import journal as journals  # noqa: PLC0415

    cycles = 0
    with Progress("cycles", None) as progress:
        for result in journals.replay(lines, place, None, seen.look):
            if isinstance(result, journals.Difference):
                raise FairTierError(
                    f"{place}:{result.line}: this program decides otherwise than what is recorded there",
                    "the journal is of another version, or damaged; fairtier simulate replay shows where",
                )
            cycles += 1
            progress.tick(cycles)
            told()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def _lines(journal: Path | None, state: Path, since_ms: int, *, follow: bool) -> Iterator[tuple[Iterator[str], str]]:
    """(lines, what they are called) of a journal file, or of an instance's records from before an instant on."""
    if journal is not None:
        with file_lines(journal) as lines:
            yield lines, str(journal)
        return
    from scheduler.adapters.sql_reader import SqlReader  # noqa: PLC0415 - half a second that a file does not need
    from scheduler.state_dir import database  # noqa: PLC0415

    path = database(state)
    if not path.exists():
        raise NotFound(f"no instance has kept records in {path.parent}", "fairtier up --state DIR makes them")
    reader = SqlReader(path)
    try:
        yield _recorded(reader, since_ms, follow=follow), str(path.parent)
    finally:
        reader.close()


def _recorded(reader: Reader, since_ms: int, *, follow: bool) -> Iterator[str]:
    past = reader.recorded(since_ms)
    seq = past.seq
    while True:
        if past.head is not None:
            yield past.head
        for seq, line in past.lines:  # noqa: B007 - the last one read
            yield line
        if not follow:
            return
        time.sleep(POLL_S)
        past = reader.past(seq)
        seq = past.seq


def _printer(seen: Shadow, output: str) -> Callable[[], None]:
    """Prints differences as they are found."""
    printed = 0

    def tell() -> None:
        nonlocal printed
        for found in seen.departures[printed:]:
            row = _row(found, seen)
            if output == "jsonl":
                emit([row], COLUMNS, "jsonl")
            else:
                click.echo(f"{row['at']}  {row['session']} of {row['user']}: {row['difference']}. {row['reason']}")
        printed = len(seen.departures)

    return tell


def _show(seen: Shadow, name: str, output: str) -> None:
    rows = [_row(found, seen) for found in seen.departures]
    if output == "json":
        emit_json(
            {"policy": name, "active": seen.active, **_figures(seen), "counts": seen.counts(), "differences": rows}
        )
    elif output != "table":
        emit(rows, COLUMNS, output, "differences")
    else:
        _summary(seen, name)
        if rows:
            click.echo()
            emit(rows, COLUMNS, output)


def _figures(seen: Shadow) -> dict[str, Any]:
    return {
        "from": None if seen.first_ms is None else utc(seen.first_ms),
        "to": None if seen.last_ms is None else utc(seen.last_ms),
        "cycles": seen.cycles,
        "looked_at": seen.looks,
        "decisions": seen.decided,
        "compared": seen.compared,
    }


def _summary(seen: Shadow, name: str) -> None:
    if seen.first_ms is None or seen.last_ms is None:
        click.echo("no cycle was recorded in that time: nothing to compare")
        return
    click.echo(
        f"{name} held against {seen.active}, {utc(seen.first_ms)} to {utc(seen.last_ms)}"
        f" ({span(seen.last_ms - seen.first_ms)}): {seen.looks:,} of {seen.cycles:,} cycles looked at,"
        f" {seen.compared:,} of {seen.decided:,} recorded decisions compared"
    )
    if seen.compared < seen.decided:
        click.echo("(--every 0 looks at every cycle: what the other policy would not do shows only where it was done)")
    if not seen.departures:
        click.echo("it would decide the same")
    for count in seen.counts():
        click.echo(_count_text(count))


def _count_text(count: dict[str, Any]) -> str:
    """'would warn 12 sessions that were not warned then; 9 of them were later'."""
    number, action = count["sessions"], count["action"]
    sessions = f"{number:,} session{'' if number == 1 else 's'}"
    were, (would, done) = "was" if number == 1 else "were", WORDS[action]
    if not count["would"]:
        return f"would not {would} {sessions} that {were} {done}"
    later = count["later"]
    more = f"; {later:,} of them {'was' if later == 1 else 'were'} later" if later else ""
    return f"would {would} {sessions} that {were} not {done} then{more}"


def _row(found: Departure, seen: Shadow) -> dict[str, Any]:
    """One difference for people and programs."""
    key, reason = found.key, found.decision.reason
    return {
        "at": utc(found.at_ms),
        "session": key.session,
        "user": found.user,
        "action": key.action,
        "would": key.would,
        "difference": f"would {'' if key.would else 'not '}{key.action}",
        "rule": reason.rule,
        "value": reason.value,
        "threshold": reason.threshold,
        "unit": reason.unit or None,
        "reason": found.text if key.would else "no rule of it asks for that now",
        "active": _active(found, seen),
        "later_s": None if found.later_ms is None else (found.later_ms - found.at_ms) / 1000,
    }


def _active(found: Departure, seen: Shadow) -> str:
    """What the policy in force did."""
    if not found.key.would:
        return found.text
    then = ", ".join(found.instead) or "nothing"
    if found.later_ms is None:
        return f"{then}; not {WORDS[found.key.action][1]} by {utc(seen.last_ms or found.at_ms)}"
    return f"{then}; {WORDS[found.key.action][1]} {span(found.later_ms - found.at_ms)} later"
