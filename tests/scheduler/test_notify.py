"""Who is told of which decisions, in which words and how often; where to is read from a file that keeps its secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from policies.model import Action, Decision, Reason
from scheduler.errors import BadInput
from scheduler.notify import Flood, body, notices, payload, subject, utc
from scheduler.notify_config import NotifyConfig, load_config, read_secret
from scheduler.tasks import Notify, check_arguments

AT_MS = 1_700_000_000_000
USERS: dict[str, dict[str, Any]] = {"ann": {"user": "ann", "mail": "ann@example.org"}, "bob": {"user": "bob"}}
WEBHOOK = {"url": "https://chat.example.org/hooks/T0/very-secret"}
MAIL = {"host": "localhost", "from": "fairtier@example.org"}


def config(**values: Any) -> NotifyConfig:
    return NotifyConfig.model_validate({"webhook": WEBHOOK, "mail": MAIL, **values})


def decision(action: Action, user: str = "ann", at_ms: int = AT_MS, **reason: Any) -> Decision:
    said = {
        "rule": f"ladder.{action.value}",
        "value": 11.9,
        "threshold": 8.7,
        "unit": "GPU-h",
        "until_ms": AT_MS + 1000,
    }
    return Decision(at_ms, action, "s-1", user, Reason(**{**said, "change": "resubmit", **reason}), other="s-2")


def test_what_takes_something_away_is_told_by_every_channel() -> None:
    told = [Action.WARN, Action.THROTTLE, Action.GRACE, Action.EVICT, Action.REJECT, Action.RESTRICT]
    tasks = notices([decision(action) for action in Action], USERS, config())
    assert [(arguments["level"], arguments["channel"]) for _, arguments in tasks] == [
        (action.value, channel) for action in Action if action in told for channel in ("webhook", "mail")
    ]
    for kind, arguments in tasks:
        assert kind == "notify"
        json.dumps(arguments, allow_nan=False)
        assert isinstance(check_arguments(kind, arguments), Notify)


def test_nobody_is_told_where_nothing_is_configured() -> None:
    assert notices([decision(Action.EVICT)], USERS, None) == []
    assert notices([decision(Action.EVICT)], USERS, config(webhook=None, mail=None)) == []
    assert notices([decision(Action.WARN)], USERS, config(levels=["evict"])) == []


def test_mail_goes_to_users_with_an_address() -> None:
    for user in ("bob", "unknown"):
        tasks = notices([decision(Action.EVICT, user)], USERS, config())
        assert [arguments["channel"] for _, arguments in tasks] == ["webhook"]


def test_a_notice_holds_the_reason() -> None:
    ((_, arguments),) = notices([decision(Action.EVICT)], USERS, config(mail=None), hosts={"s-1": "gpu-07"})
    notice = check_arguments("notify", arguments)
    assert isinstance(notice, Notify)
    sent = json.loads(payload(notice, "t-9"))
    text = sent.pop("text")
    assert sent == {
        "schema": 1,
        "delivery": "t-9",
        "at": "2023-11-14T22:13:20Z",
        "until": "2023-11-14T22:13:21Z",
        "session": "s-1",
        "user": "ann",
        "host": "gpu-07",
        "level": "evict",
        "rule": "ladder.evict",
        "value": 11.9,
        "threshold": 8.7,
        "unit": "GPU-h",
        "change": "Save and submit again: it waits for capacity above the headroom.",
    }
    assert text.startswith("2023-11-14T22:13:20Z  s-1 of ann: gives way for s-2: 11.90 GPU-h used, 3.20 past")
    assert subject(notice) == "[FairTier] s-1: evict, 2023-11-14T22:13:21Z"
    assert "measured  11.9 GPU-h" in body(notice)
    assert "fairtier why s-1" in body(notice)


def test_a_user_is_told_so_often_within_an_hour_and_then_no_more() -> None:
    flood = Flood(3)
    texts = []
    for n in range(6):
        made = notices([decision(Action.WARN, at_ms=AT_MS + n)], USERS, config(mail=None), flood)
        texts += [arguments["text"] for _, arguments in made]
    assert len(texts) == 3
    assert ["Further notices" in text for text in texts] == [False, False, True]
    assert len(notices([decision(Action.WARN, "bob")], USERS, config(mail=None), flood)) == 1, "others are told"
    later = AT_MS + 3_600_000
    assert len(notices([decision(Action.WARN, at_ms=later)], USERS, config(mail=None), flood)) == 1
    assert notices([decision(Action.WARN, at_ms=later)], USERS, config(mail=None), flood) == []
    flood.forget(later + 3_600_000)
    assert flood._times == {}


def test_times_are_utc() -> None:
    assert utc(0) == "1970-01-01T00:00:00Z"


# -- the file ----------------------------------------------------------------------------------------------------------

FULL = """
levels = ["evict"]
per_user_hour = 5
[webhook]
url = "https://chat.example.org/hooks/T0/very-secret"
secret_file = "webhook.secret"
[mail]
host = "mail.example.org"
user = "fairtier"
password_file = "mail.password"
from = "fairtier@example.org"
"""


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "notify.toml"
    path.write_text(text)
    path.chmod(mode)
    for name in ("webhook.secret", "mail.password"):
        (folder / name).write_text("hush\n")
        (folder / name).chmod(0o600)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    found = load_config(write(tmp_path, FULL))
    assert found is not None
    assert found.webhook is not None
    assert found.mail is not None
    assert found.levels == ("evict",)
    assert found.webhook.secret_file == tmp_path / "webhook.secret"
    assert read_secret(tmp_path / "mail.password") == "hush"
    assert (found.mail.port, found.mail.starttls, found.mail.sender) == (587, True, "fairtier@example.org")
    assert found.webhook.shown == "chat.example.org"


def test_no_file_is_no_notice(tmp_path: Path) -> None:
    assert load_config(tmp_path / "notify.toml") is None
    assert load_config(write(tmp_path, "")) == NotifyConfig()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_secrets_that_others_may_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BadInput, match=f"mode {mode:04o}") as caught:
        load_config(write(tmp_path, FULL, mode))
    assert caught.value.hint == f"chmod 600 {tmp_path / 'notify.toml'}"
    path = write(tmp_path, FULL)
    (tmp_path / "mail.password").chmod(mode)
    with pytest.raises(BadInput, match=r"mail\.password holds a secret"):
        load_config(path)
    mail_alone = '[mail]\nhost = "localhost"\nfrom = "a@b"\n'
    assert load_config(write(tmp_path, mail_alone, mode)) is not None, "nothing in it is secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; CI runs as root")
def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    os.chown(tmp_path / "webhook.secret", 12345, 12345)
    with pytest.raises(BadInput, match="belongs to user 12345"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[webhook", ["no TOML"]),
        ("colour = 1", ["colour"]),
        ('levels = ["shout"]', ["levels.0"]),
        ("per_user_hour = 0", ["per_user_hour"]),
        ("[webhook]\n", ["webhook.url"]),
        ('[webhook]\nurl = "file:///etc/very-secret"', ["webhook.url", "http or https"]),
        ('[webhook]\nurl = "https://very-secret\\r\\nHost: x/"', ["webhook.url"]),
        ('[webhook]\nurl = "https:///very-secret"', ["webhook.url"]),
        ('[mail]\nhost = "a b"\nfrom = "x"\nport = 0', ["mail.host", "mail.from", "mail.port"]),
        ('[mail]\nhost = "h"\nfrom = "a@b, c@d"', ["mail.from"]),
        ('[mail]\nhost = "h"\nfrom = "a@b\\nBcc: c@d"', ["mail.from"]),
        ('[mail]\nhost = "h"\nfrom = "a@b"\nuser = "x"', ["user and password_file go together"]),
        ('[mail]\nhost = "h"\nfrom = "a@b"\nuser = "x"\npassword_file = "p"\nstarttls = false', ["starttls = true"]),
        ('[mail]\nhost = "h"\nfrom = "a@b"\npassword = "very-secret"', ["mail.password"]),
        ('[webhook]\nurl = "http://h/"\nsecret_file = "none"', ["none cannot be read"]),
    ],
)
def test_mistakes_are_told_all_at_once_and_without_secrets(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(write(tmp_path, text))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "very-secret" not in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "notify.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="no TOML"):
        load_config(path)
    path.write_text("#" * 70_000)
    with pytest.raises(BadInput, match="larger"):
        load_config(path)
    with pytest.raises(BadInput, match="cannot be read"):
        load_config(tmp_path)
    empty = tmp_path / "empty"
    empty.touch(0o600)
    with pytest.raises(BadInput, match="is empty"):
        read_secret(empty)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel": "pager"},
        {"mail": "a@b\r\nBcc: c@d"},
        {"mail": "a@b, c@d"},
        {"mail": "<a@b> c@d"},
        {"mail": None},
        {"value": float("inf")},
        {"text": "x" * 5000},
        {"session": "../x"},
        {"level": "recover"},
        {"to": "/etc/passwd"},
    ],
)
def test_arguments_of_a_notice_are_checked_where_it_is_sent(changes: dict[str, Any]) -> None:
    (_, (_, arguments)) = notices([decision(Action.EVICT)], USERS, config())
    check_arguments("notify", arguments)
    with pytest.raises(BadInput):
        check_arguments("notify", {**arguments, **changes})
