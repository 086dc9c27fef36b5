"""Notices reach a real HTTP server and a real SMTP server, signed, once, and with a clear word when they do not."""

from __future__ import annotations

import contextlib
import email
import email.policy
import hashlib
import hmac
import http.server
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.adapters import senders
from scheduler.errors import BadInput, FairTierError
from scheduler.notify_config import MailServer, Webhook
from scheduler.task_rows import TryAgain

BODY = b'{"schema": 1}'


class _Hook(http.server.BaseHTTPRequestHandler):
    """Answers with the code in its path, and keeps what it was sent."""

    seen: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, dict(self.headers), raw))
        code = int(self.path.rpartition("/")[2])
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", "/200")
        self.send_header("Content-Length", "1000000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    seen: list[tuple[str, dict[str, str], bytes]] = []
    with serving(type("Hook", (_Hook,), {"seen": seen})) as port:
        yield f"http://127.0.0.1:{port}", seen


def test_a_webhook_is_told_once_and_signed(
    hook: tuple[str, list[tuple[str, dict[str, str], bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = hook
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    senders.send_webhook(Webhook(url=f"{url}/a/200", secret_file=secret), "t-1", BODY)
    ((path, headers, raw),) = seen
    assert (path, raw) == ("/a/200", BODY)
    assert headers["X-FairTier-Delivery"] == "t-1"
    expected = hmac.new(b"hush", BODY, hashlib.sha256).hexdigest()
    assert headers["X-FairTier-Signature"] == f"sha256={expected}"
    senders.send_webhook(Webhook(url=f"{url}/204"), "t-2", BODY)
    assert "X-FairTier-Signature" not in seen[1][1]


@pytest.mark.parametrize(
    ("code", "passing"),
    [(400, False), (401, False), (404, False), (410, False), (301, False), (307, False)]
    + [(code, True) for code in (408, 429, 500, 502, 503, 504)],
)
def test_answers_that_may_pass_are_told_from_final_ones(
    hook: tuple[str, list[tuple[str, dict[str, str], bytes]]], code: int, passing: bool
) -> None:
    url, seen = hook
    with pytest.raises(FairTierError, match=f"answered {code}") as caught:
        senders.send_webhook(Webhook(url=f"{url}/very-secret/{code}"), "t-1", BODY)
    assert isinstance(caught.value, TryAgain) == passing
    assert len(seen) == 1, "no redirect is followed"
    assert "very-secret" not in str(caught.value)


def test_a_webhook_nobody_answers_may_answer_later() -> None:
    with serving(socketserver.BaseRequestHandler) as port:
        closed = port
        with pytest.raises(TryAgain):  # it hangs up
            senders.send_webhook(Webhook(url=f"http://127.0.0.1:{port}/very-secret"), "t-1", BODY)
    with pytest.raises(TryAgain, match="was not reached") as caught:
        senders.send_webhook(Webhook(url=f"http://127.0.0.1:{closed}/very-secret"), "t-1", BODY)
    assert "very-secret" not in str(caught.value)


def test_a_webhook_that_never_answers_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            time.sleep(1)

    monkeypatch.setattr(senders, "TIMEOUT_S", 0.2)
    with serving(Silent) as port, pytest.raises(TryAgain, match="ReadTimeout"):
        senders.send_webhook(Webhook(url=f"http://127.0.0.1:{port}/"), "t-1", BODY)


class _Sink(socketserver.StreamRequestHandler):
    """The little of SMTP that a client needs; refuses as it is told."""

    mails: list[tuple[list[str], bytes]]
    refuse: dict[str, str]

    def handle(self) -> None:
        self.say("220 sink")
        recipients: list[str] = []
        while line := self.rfile.readline().decode().strip():
            word = line.partition(" ")[0].upper()
            if word in self.refuse:
                self.say(self.refuse[word])
            elif word == "EHLO":
                self.say("250-sink\r\n250 SIZE 1000000")
            elif word == "RCPT":
                recipients.append(line)
                self.say("250 ok")
            elif word == "DATA":
                self.say("354 go on")
                self.mails.append((recipients, b"".join(iter(self.rfile.readline, b".\r\n"))))
                self.say("250 taken")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextlib.contextmanager
def sink(**refuse: str) -> Iterator[tuple[MailServer, list[tuple[list[str], bytes]]]]:
    mails: list[tuple[list[str], bytes]] = []
    with serving(type("Sink", (_Sink,), {"mails": mails, "refuse": refuse})) as port:
        given = {"host": "127.0.0.1", "port": port, "starttls": False, "from": "fairtier@example.org"}
        yield MailServer.model_validate(given), mails


def mail_to(
    to: str = "ann@example.org", subject: str = "s-1: evict", text: str = "Grüße\n.\nend\n"
) -> email.message.EmailMessage:
    return senders.make_mail("fairtier@example.org", to, subject, text, "t-1", 1_700_000_000_000)


def test_a_mail_arrives_whole() -> None:
    with sink() as (server, mails):
        senders.send_mail(server, "ann@example.org", mail_to())
    ((recipients, raw),) = mails
    assert [line.upper() for line in recipients] == ["RCPT TO:<ANN@EXAMPLE.ORG>"]
    mail = email.message_from_bytes(raw.replace(b"\r\n..", b"\r\n."), policy=email.policy.default)
    assert (mail["To"], mail["From"], mail["Subject"]) == ("ann@example.org", "fairtier@example.org", "s-1: evict")
    assert mail["Message-ID"] == "<t-1.1700000000000.fairtier@example.org>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"] == "Tue, 14 Nov 2023 22:13:20 -0000"
    assert mail.get_content().replace("\r\n", "\n") == "Grüße\n.\nend\n"


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("ann@example.org\r\nBcc: all@example.org", "x"),
        ("ann@example.org", "x\r\nBcc: all@example.org"),
        ("ann@example.org", "x\nX: y"),
        ("ann@example.org, all@example.org", "x"),
        ("", "x"),
    ],
)
def test_no_header_and_no_recipient_can_be_smuggled_in(to: str, subject: str) -> None:
    with pytest.raises(BadInput):
        mail_to(to, subject)


@pytest.mark.parametrize(
    ("refuse", "passing"),
    [
        ({"RCPT": "550 no such user"}, False),
        ({"RCPT": "450 busy"}, True),
        ({"MAIL": "421 later"}, True),
        ({"MAIL": "552 never"}, False),
        ({"DATA": "554 no"}, False),
    ],
)
def test_refusals_that_may_pass_are_told_from_final_ones(refuse: dict[str, str], passing: bool) -> None:
    with sink(**refuse) as (server, mails), pytest.raises(FairTierError, match="answered") as caught:
        senders.send_mail(server, "ann@example.org", mail_to())
    assert isinstance(caught.value, TryAgain) == passing
    assert mails == []


def test_a_server_without_encryption_never_sees_the_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    with sink() as (server, mails):
        asked = server.model_copy(update={"starttls": True, "user": "u", "password_file": secret})
        with pytest.raises(FairTierError, match="cannot do that"):
            senders.send_mail(asked, "ann@example.org", mail_to())
    assert mails == []


def test_a_mail_server_that_is_away_may_come_back() -> None:
    with sink() as (server, _):
        pass
    with pytest.raises(TryAgain, match="was not reached"):
        senders.send_mail(server, "ann@example.org", mail_to())
