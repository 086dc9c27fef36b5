"""Each route makes the request that it says, mistakes are told at once and in one form, and nothing hostile gets in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.requests import LAST_MS, Answer, Request
from tests.scheduler.api.site import Api, Scheduler, Transport, short_directory

SUBMIT = {"user": "ann", "argv": ["sleep", "1"]}


class Door:
    """An API process in front of a scheduler that notes what it is told."""

    def __init__(self, api: Api, scheduler: Scheduler, transport: Transport) -> None:
        self.api, self.scheduler, self.transport = api, scheduler, transport
        self.http = api.http

    def told(self) -> list[Request]:
        """What the scheduler was told since it was last asked."""
        told, self.scheduler.told = self.scheduler.told, []
        return told


@pytest.fixture(scope="module")
def served() -> Iterator[Door]:
    with short_directory() as state:
        transport = Transport(state)
        transport.start()
        try:
            with Scheduler(transport.url, lambda request: Answer(key=request.key)) as scheduler, Api(state) as api:
                yield Door(api, scheduler, transport)
        finally:
            transport.stop()


@pytest.fixture
def door(served: Door) -> Door:
    served.scheduler.respond = lambda request: Answer(key=request.key)
    served.told()
    return served


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "operation"),
    [
        ("POST", "/v1/sessions", SUBMIT, 201, {"op": "submit", "user": "ann"}),
        (
            "POST",
            "/v1/sessions/s-1/cancel",
            {"reason": "done"},
            200,
            {"op": "cancel", "session": "s-1", "reason": "done"},
        ),
        ("POST", "/v1/sessions/s-1/hold", None, 200, {"op": "hold", "session": "s-1"}),
        ("POST", "/v1/sessions/s-1/unhold", {}, 200, {"op": "unhold"}),
        ("POST", "/v1/sessions/s-1/evict", {}, 200, {"op": "evict"}),
        ("PUT", "/v1/users/ann", {"shares": 2}, 200, {"op": "user", "user": "ann", "shares": 2.0}),
        ("POST", "/v1/users/ann/restrict", {"for_s": 60}, 200, {"op": "restrict", "user": "ann", "for_s": 60}),
        (
            "POST",
            "/v1/users/ann/restrict",
            {"until_ms": 5, "reason": "mining"},
            200,
            {"until_ms": 5, "for_s": None, "reason": "mining"},
        ),
        ("POST", "/v1/users/ann/restrict", None, 200, {"for_s": None, "until_ms": None, "reason": ""}),
        ("POST", "/v1/users/ann/pardon", {"reason": "sorry"}, 200, {"op": "pardon", "user": "ann", "reason": "sorry"}),
        (
            "POST",
            "/v1/appeals",
            {"session": "s-1", "text": "no"},
            201,
            {"op": "appeal", "session": "s-1", "user": None},
        ),
        ("POST", "/v1/appeals", {"user": "ann", "text": "no"}, 201, {"op": "appeal", "user": "ann", "text": "no"}),
        (
            "POST",
            "/v1/appeals/a-7/grant",
            {"text": "ok", "allow_for_s": 9, "rule": "mining"},
            200,
            {"op": "grant", "appeal": "a-7", "allow_for_s": 9, "rule": "mining"},
        ),
        ("POST", "/v1/appeals/a-7/deny", {"text": "no"}, 200, {"op": "deny", "allow_for_s": None, "rule": ""}),
        ("POST", "/v1/hosts/gpu-01/drain", None, 200, {"op": "drain", "host": "gpu-01"}),
        ("POST", "/v1/hosts/gpu-01/resume", None, 200, {"op": "resume"}),
        (
            "POST",
            "/v1/tasks",
            {"kind": "simulate", "arguments": {"seed": 1}},
            202,
            {"op": "task", "arguments": {"seed": 1}},
        ),
        ("POST", "/v1/close", None, 200, {"op": "close"}),
        ("POST", "/v1/ping", None, 200, {"op": "ping"}),
    ],
)
def test_each_route_tells_the_scheduler_its_operation(
    door: Door, method: str, path: str, body: Any, status: int, operation: dict[str, Any]
) -> None:
    response = door.http.request(method, path, json=body)
    assert response.status_code == status, response.text
    [request] = door.told()
    assert operation.items() <= request.operation.model_dump().items()


def test_a_noop_checks_and_tells_nobody(door: Door) -> None:
    assert door.http.post("/v1/noop", json=SUBMIT).status_code == 200
    assert door.http.post("/v1/noop", json={"user": "ann"}).status_code == 422
    assert door.told() == []


def test_key_and_asker_come_from_the_headers(door: Door) -> None:
    door.http.post("/v1/ping", headers={"Idempotency-Key": "abcdefgh", "FairTier-By": "root"})
    door.http.post("/v1/ping")
    first, second = door.told()
    assert (first.key, first.by) == ("abcdefgh", "root")
    assert len(second.key) == 32


@pytest.mark.parametrize(
    "headers", [{"Idempotency-Key": "short"}, {"Idempotency-Key": "no spaces in it"}, {"FairTier-By": "x" * 65}]
)
def test_headers_that_are_not_what_they_should_be(door: Door, headers: dict[str, str]) -> None:
    response = door.http.post("/v1/ping", headers=headers)
    assert (response.status_code, response.json()["error"]) == (422, "bad-input")
    assert door.told() == []


def test_all_mistakes_of_a_body_are_told_at_once(door: Door) -> None:
    body = {"user": "Ann", "gpus": 0, "fraction": 2, "memory_mib": -1, "unknown": 1, "argv": ["true"]}
    response = door.http.post("/v1/sessions", json=body)
    told = response.json()
    assert (response.status_code, told["error"]) == (422, "bad-input")
    for member in ("user", "gpus", "fraction", "memory_mib", "unknown"):
        assert f"{member}: " in told["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"for_s": 60, "until_ms": 5}, "for a time or until an instant, not both"),
        ({"for_s": 0}, "for_s: "),
        ({"for_s": 10**9 + 1}, "for_s: "),
        ({"for_s": 0.5}, "for_s: "),
        ({"until_ms": LAST_MS + 1}, "until_ms: "),
        ({"until_ms": "tomorrow"}, "until_ms: "),
        ({"reason": "x" * 501}, "reason: "),
        ({"until": "2026-12-01T00:00Z"}, "until: "),
    ],
)
def test_a_restriction_has_one_end_or_none(door: Door, body: dict[str, Any], told: str) -> None:
    response = door.http.post("/v1/users/ann/restrict", json=body)
    assert (response.status_code, response.json()["error"]) == (422, "bad-input")
    assert told in response.json()["message"]
    assert door.told() == []


def test_what_cannot_be_a_user_is_none(door: Door) -> None:
    for op in ("restrict", "pardon"):
        assert door.http.post(f"/v1/users/UPPER/{op}").json()["error"] == "not-found"


HOSTILE = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"user":"\xff"}',
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "deep": b'{"user":' * 30_000,
    "deeper": b"[" * 200_000,
    "not a number": b'{"user":"ann","argv":["x"],"fraction":NaN}',
    "infinite": b'{"user":"ann","argv":["x"],"fraction":1e999}',
    "huge number": b'{"user":"ann","argv":["x"],"gpus":' + b"9" * 5000 + b"}",
    "half a character": b'{"user":"ann","argv":["\\ud800"]}',
    "NUL": b'{"user":"ann","argv":["a\\u0000b"]}',
    "an empty program": b'{"user":"ann","argv":[""]}',
    "many arguments": json.dumps({"user": "ann", "argv": ["x"] * 257}).encode(),
    "long arguments": json.dumps({"user": "ann", "argv": ["x" * 66_000]}).encode(),
    "a path": b'{"user":"../../etc","argv":["x"]}',
    "a key of Redis": b'{"user":"ft:inbox","argv":["x"]}',
    "another operation": b'{"op":"close"}',
    "both": b'{"user":"ann","argv":["x"],"notebook":true}',
    "parts of many": b'{"user":"ann","argv":["x"],"gpus":2,"fraction":0.5}',
    "a true number": b'{"user":true,"argv":["x"]}',
    "an object": b'{"user":{"$ne":1},"argv":["x"]}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_refused_and_go_no_further(door: Door, body: bytes) -> None:
    response = door.http.post("/v1/sessions", content=body)
    assert response.status_code in (400, 422), response.text
    assert set(response.json()) == {"error", "message", "hint"}
    assert response.json()["error"] == "bad-input"
    assert len(response.text) < 2000
    assert door.told() == []


def test_a_body_over_the_limit_is_not_read_to_its_end(door: Door) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    for content in (b" " * 300_000, endless()):
        response = door.http.post("/v1/sessions", content=content)
        assert (response.status_code, response.json()["error"]) == (413, "bad-input")
    assert door.told() == []
    assert door.http.post("/v1/ping").status_code == 200


@pytest.mark.parametrize(
    "name", ["NOPE", "a b", "..", "%2e%2e", "..%2f..%2fetc", "s-1%00", "x" * 65, "s-1%0a", "é", "-x"]
)
def test_what_cannot_be_a_name_names_nothing(door: Door, name: str) -> None:
    response = door.http.post(f"/v1/sessions/{name}/cancel", json={})
    assert (response.status_code, response.json()["error"]) == (404, "not-found")
    assert door.told() == []


def test_unknown_paths_and_methods_are_told_in_the_same_form(door: Door) -> None:
    for method, path, status in (("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("DELETE", "/v1/sessions", 405)):
        response = door.http.request(method, path)
        assert response.status_code == status
        assert set(response.json()) == {"error", "message", "hint"}


@pytest.mark.parametrize(
    ("error", "status"),
    [("bad-input", 422), ("not-found", 404), ("refused", 409), ("unreachable", 503), ("failed", 500)],
)
def test_each_sort_of_error_has_its_status(door: Door, error: Any, status: int) -> None:
    door.scheduler.respond = lambda request: Answer(key=request.key, error=error, message="why", hint="what to do")
    response = door.http.post("/v1/ping")
    assert response.status_code == status
    assert response.json() == {"error": error, "message": "why", "hint": "what to do"}


def test_a_dead_scheduler_is_told_in_time(door: Door) -> None:
    door.scheduler.respond = lambda request: None
    began = time.monotonic()
    response = door.http.post("/v1/ping")
    assert (response.status_code, response.json()["error"]) == (503, "unreachable")
    assert time.monotonic() - began < 2.6
    assert len(door.told()) >= 2


def test_a_dead_transport_is_told_in_time_and_its_return_is_noticed(door: Door) -> None:
    door.transport.stop()
    began = time.monotonic()
    assert door.http.post("/v1/ping").status_code == 503
    assert time.monotonic() - began < 2.6
    door.transport.start()
    assert door.http.post("/v1/ping").status_code == 200
