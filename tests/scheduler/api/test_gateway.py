"""An answer finds its asker whatever the transport does meanwhile, and who gets none is told so in time."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from scheduler.adapters.redis_bus import INBOX
from scheduler.adapters.redis_gateway import GIVE_UP_S, Gateway
from scheduler.errors import BadInput, FairTierError, Refused, Unreachable
from scheduler.requests import Answer, Ping, Request, Run
from tests.scheduler.api.site import Scheduler, Transport, short_directory

AGAIN_S = 0.2


@pytest.fixture
def transport() -> Iterator[Transport]:
    with short_directory() as state:
        server = Transport(state)
        server.start()
        yield server
        server.stop()


def ping() -> Request:
    return Request(key=secrets.token_hex(8), operation=Ping())


def yes(request: Request) -> Answer:
    return Answer(key=request.key, body={"key": request.key})


def with_gateway(url: str, use: Callable[[Gateway], Awaitable[Any]], again_s: float = AGAIN_S) -> Any:
    async def run() -> Any:
        gateway = Gateway(url, again_s=again_s)
        await gateway.start()
        try:
            return await use(gateway)
        finally:
            began = time.monotonic()
            await gateway.close()
            assert time.monotonic() - began < 1

    return asyncio.run(run())


def test_every_asker_gets_the_answer_to_its_own_request(transport: Transport) -> None:
    async def many(gateway: Gateway) -> None:
        requests = [ping() for _ in range(200)]
        bodies = await asyncio.gather(*(gateway.ask(request) for request in requests))
        assert [body["key"] for body in bodies] == [request.key for request in requests]

    with Scheduler(transport.url, yes):
        with_gateway(transport.url, many, again_s=2)


def test_an_answer_of_any_sort_becomes_the_error_of_that_sort(transport: Transport) -> None:
    def no(request: Request) -> Answer:
        return Answer(key=request.key, error="refused", message="not now", hint="later")

    with Scheduler(transport.url, no), pytest.raises(Refused, match="not now") as caught:
        with_gateway(transport.url, lambda gateway: gateway.ask(ping()))
    assert caught.value.hint == "later"


def test_a_request_is_told_again_with_its_key_until_it_is_answered(transport: Transport) -> None:
    """A scheduler that begins to answer late; the same key each time makes the repetitions harmless."""
    told: list[str] = []

    def third_time(request: Request) -> Answer | None:
        told.append(request.key)
        return yes(request) if len(told) == 3 else None

    with Scheduler(transport.url, third_time):
        with_gateway(transport.url, lambda gateway: gateway.ask(ping()))
    assert len(told) == 3
    assert len(set(told)) == 1


def test_without_an_answer_the_asker_is_told_before_three_seconds(transport: Transport) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not answer"):
        with_gateway(transport.url, lambda gateway: gateway.ask(ping()), again_s=1.0)
    assert GIVE_UP_S - 0.1 < time.monotonic() - began < 2.9


def test_a_wiped_server_loses_nothing_that_is_waited_for(transport: Transport) -> None:
    """All keys are deleted after the request was told and before it was answered."""

    def wipe_first(request: Request) -> Answer | None:
        if transport.client().get("wiped") is None:
            transport.client().flushall()
            transport.client().set("wiped", 1)
            return None
        return yes(request)

    with Scheduler(transport.url, wipe_first):
        with_gateway(transport.url, lambda gateway: gateway.ask(ping()))


def test_a_server_that_was_away_is_found_again(transport: Transport) -> None:
    """Stopped, asked meanwhile, started again empty: the request arrives within its time, and so do later ones."""

    async def through(gateway: Gateway) -> None:
        await gateway.ask(ping())
        transport.stop()
        asked = asyncio.create_task(gateway.ask(ping()))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(transport.start)
        await asked
        await gateway.ask(ping())

    with Scheduler(transport.url, yes):
        with_gateway(transport.url, through)


def test_two_with_one_key_share_one_answer(transport: Transport) -> None:
    request = ping()

    async def twice(gateway: Gateway) -> None:
        one, other = await asyncio.gather(gateway.ask(request), gateway.ask(request))
        assert one == other

    with Scheduler(transport.url, yes):
        with_gateway(transport.url, twice)


def test_nonsense_in_the_answers_is_passed_over(transport: Transport) -> None:
    async def amid_nonsense(gateway: Gateway) -> None:
        for nonsense in (b"", b"[", b"\xff", b'{"key":1}', b'{"key":"x","error":"what"}', b"[" * 100_000):
            transport.client().xadd(gateway.reply_to, {"m": nonsense})
        transport.client().xadd(gateway.reply_to, {"other": "field"})
        await gateway.ask(ping())

    with Scheduler(transport.url, yes):
        with_gateway(transport.url, amid_nonsense)


def test_more_than_the_scheduler_would_read_is_not_sent(transport: Transport) -> None:
    request = Request(key="k" * 8, operation=Run(kind="report", arguments={"text": "x" * 300_000}))
    with pytest.raises(BadInput, match="at most 262144"):
        with_gateway(transport.url, lambda gateway: gateway.ask(request))
    assert transport.client().xlen(INBOX) == 0


def test_closing_ends_even_while_it_connects(transport: Transport) -> None:
    """The client library may swallow a cancellation in that moment; `with_gateway` checks the time."""
    for _ in range(20):
        with_gateway(transport.url, lambda gateway: asyncio.sleep(0.002))


def test_a_gateway_without_a_server_says_so_and_closes() -> None:
    with short_directory() as state, pytest.raises(FairTierError, match="did not answer"):
        with_gateway(f"unix://{state}/redis.sock", lambda gateway: gateway.ask(ping()))
