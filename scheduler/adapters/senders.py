"""Notices leave the house: a webhook by HTTP, a mail by SMTP.

What may pass is `TryAgain` (no connection, a timeout, 408, 429, 5xx of HTTP, 4xx of SMTP); the rest is final. No
message holds an address that may be a secret, or a password. A repetition carries the same delivery id and Message-ID.
"""

from __future__ import annotations

import hashlib
import hmac
import smtplib
import ssl
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from typing import TYPE_CHECKING, NoReturn

import httpx

from scheduler.errors import BadInput, FairTierError
from scheduler.notify_config import read_secret
from scheduler.task_rows import TryAgain

if TYPE_CHECKING:
    from scheduler.notify_config import MailServer, Webhook

TIMEOUT_S = 5.0
_PASSING = (408, 429)
_NOT_AUTHENTICATED = 535


def sign(secret: str, body: bytes) -> str:
    """The value of `X-FairTier-Signature`: HMAC-SHA256 of the body, which has a delivery id and a time in it."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def send_webhook(webhook: Webhook, delivery: str, body: bytes) -> None:
    """POST a JSON body; done when the answer is 2xx. The answer's body is not read, redirects are not followed."""
    headers = {"Content-Type": "application/json", "User-Agent": "FairTier", "X-FairTier-Delivery": delivery}
    if webhook.secret_file is not None:
        headers["X-FairTier-Signature"] = sign(read_secret(webhook.secret_file), body)
    try:
        with (
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", webhook.url, content=body, headers=headers) as answer,
        ):
            code = answer.status_code
    except httpx.HTTPError as error:
        raise TryAgain(f"the webhook at {webhook.shown} was not reached: {type(error).__name__}") from None
    except (httpx.InvalidURL, ValueError) as error:
        raise BadInput(f"the webhook at {webhook.shown} cannot be told: {type(error).__name__}") from None
    if not 200 <= code < 300:
        _refused(webhook, code)


def _refused(webhook: Webhook, code: int) -> NoReturn:
    said = f"the webhook at {webhook.shown} answered {code}"
    if code in _PASSING or code >= 500:
        raise TryAgain(said)
    hint = "redirects are not followed: name the final address" if 300 <= code < 400 else None
    raise FairTierError(said, hint)


def make_mail(sender: str, to: str, subject: str, text: str, delivery: str, at_ms: int) -> EmailMessage:
    """A mail; `BadInput` for an address or subject that is none (a line break cannot become a header)."""
    try:
        mail = EmailMessage(policy=SMTP)
        mail["From"], mail["To"] = Address(addr_spec=sender), Address(addr_spec=to)
        mail["Subject"] = subject
        mail["Date"] = formatdate(at_ms / 1000)
        mail["Message-ID"] = f"<{delivery}.{at_ms}.fairtier@{sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
    except (ValueError, MessageError, IndexError) as error:
        raise BadInput(f"no mail can be made for {to!r}: {error}") from None
    return mail


def send_mail(server: MailServer, to: str, mail: EmailMessage) -> None:
    """Hand a mail to the server, for one recipient."""
    password = read_secret(server.password_file) if server.password_file is not None else ""
    try:
        with smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S) as client:
            if server.starttls:
                client.starttls(context=ssl.create_default_context())
            if server.user is not None:
                client.login(server.user, password)
            client.send_message(mail, from_addr=server.sender, to_addrs=[to])
    except smtplib.SMTPRecipientsRefused as error:
        _mail_refused(server, max(code for code, _ in error.recipients.values()))
    except smtplib.SMTPResponseException as error:
        _mail_refused(server, error.smtp_code)
    except ssl.SSLCertVerificationError as error:
        raise FairTierError(f"the mail server {server.host} is not who it should be: {error.verify_message}") from None
    except smtplib.SMTPNotSupportedError as error:
        raise FairTierError(f"the mail server {server.host} cannot do that: {error}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise TryAgain(f"the mail server {server.host} was not reached: {type(error).__name__}") from None


def _mail_refused(server: MailServer, code: int) -> NoReturn:
    said = f"the mail server {server.host} answered {code}"
    if code == _NOT_AUTHENTICATED:
        raise FairTierError(f"{said}: it does not accept the password", "see [mail] in notify.toml")
    raise FairTierError(said) if 500 <= code < 600 else TryAgain(said)
