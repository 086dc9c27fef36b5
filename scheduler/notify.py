"""Which decisions are told to people outside their sessions, and in which words.

Told is what takes something away, or will: warn, throttle, grace, evict, and reject. A notice in the session itself is
the host's work; this is the webhook of the site and a mail to the session's user. Each channel is a task of its own,
so that a mail server that is down does not repeat what the webhook has heard.
"""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from policies.explain import CHANGES, sentence
from policies.model import Action
from scheduler.tasks import Notify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policies.model import Decision
    from scheduler.notify_config import NotifyConfig
    from scheduler.ports import Row

HOUR_MS = 3_600_000
LONGEST_TEXT = 4000


def utc(at_ms: int) -> str:
    """A time as people and programs read it: ISO-8601, UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def notices(
    decisions: Iterable[Decision],
    users: Mapping[str, Row],
    config: NotifyConfig | None,
    flood: Flood | None = None,
    hosts: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """(kind, arguments) of the tasks that tell people of these decisions.

    Args:
        users: rows by name; without a mail address there, no mail is sent.
        config: None = nothing is told.
        flood: what has been told lately; None = no limit.
        hosts: host by session, where known.
    """
    if config is None or (config.webhook is None and config.mail is None):
        return []
    tasks: list[tuple[str, dict[str, Any]]] = []
    for decision in decisions:
        if level(decision) not in config.levels:
            continue
        left = flood.take(decision.user, decision.at_ms) if flood is not None else None
        if left == 0:
            continue
        told = _told(decision, (hosts or {}).get(decision.session), last=left == 1)
        mail = users.get(decision.user, {}).get("mail")
        if config.webhook is not None:
            tasks.append(("notify", {"channel": "webhook", **told}))
        if config.mail is not None and mail:
            tasks.append(("notify", {"channel": "mail", "mail": mail, **told}))
    return tasks


def level(decision: Decision) -> str:
    """The kind of notice; what a rule of acceptable use tells in a session is a warning outside of it."""
    told = decision.action is Action.NOTICE and decision.reason.rule.startswith("use.")
    return Action.WARN.value if told else decision.action.value


class Flood:
    """How many notices each user has had within the last hour: at most `per_user_hour`."""

    def __init__(self, per_user_hour: int) -> None:
        self._most = per_user_hour
        self._times: dict[str, deque[int]] = {}

    def take(self, user: str, at_ms: int) -> int:
        """How many notices were left before this one, which takes one of them; 0 = none, it must not be sent."""
        times = self._times.setdefault(user, deque())
        while times and times[0] <= at_ms - HOUR_MS:
            times.popleft()
        left = self._most - len(times)
        if left > 0:
            times.append(at_ms)
        return max(0, left)

    def forget(self, now_ms: int) -> None:
        """Drop users whose last notice is older than an hour."""
        old = [user for user, times in self._times.items() if not times or times[-1] <= now_ms - HOUR_MS]
        for user in old:
            del self._times[user]


def _told(decision: Decision, host: str | None, *, last: bool) -> dict[str, Any]:
    """The arguments of `scheduler.tasks.Notify` but for channel and address."""
    reason = decision.reason
    text = sentence(decision, utc)
    if last:
        text += " Further notices to this user within the hour are not sent."
    return {
        "session": decision.session,
        "user": decision.user,
        "host": host,
        "level": level(decision),
        "text": text[:LONGEST_TEXT],
        "rule": reason.rule,
        "value": reason.value,
        "threshold": reason.threshold,
        "unit": reason.unit,
        "until_ms": reason.until_ms,
        "change": CHANGES.get(reason.change, reason.change),
        "at_ms": decision.at_ms,
    }


def payload(notice: Notify, delivery: str) -> bytes:
    """What the webhook is sent: one JSON object; `delivery` is the same when it is sent once more."""
    times = {"at": utc(notice.at_ms), "until": utc(notice.until_ms) if notice.until_ms is not None else None}
    told = notice.model_dump(exclude={"channel", "mail", "at_ms", "until_ms"})
    return json.dumps({"schema": 1, "delivery": delivery, **times, **told}, allow_nan=False).encode()


def subject(notice: Notify) -> str:
    """The subject of a mail."""
    until = f", {utc(notice.until_ms)}" if notice.until_ms is not None else ""
    return f"[FairTier] {notice.session}: {notice.level}{until}"


def body(notice: Notify) -> str:
    """The text of a mail: what happens, and the figures it follows from."""
    lines = [notice.text, ""]
    figures = (
        ("session", notice.session),
        ("host", notice.host),
        ("rule", notice.rule),
        ("measured", _figure(notice.value, notice.unit)),
        ("limit", _figure(notice.threshold, notice.unit)),
        ("until", utc(notice.until_ms) if notice.until_ms is not None else None),
    )
    lines += [f"{name:<10}{value}" for name, value in figures if value is not None]
    lines += ["", f"The whole story: fairtier why {notice.session}", ""]
    return "\n".join(lines)


def _figure(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.6g} {unit}".rstrip()
