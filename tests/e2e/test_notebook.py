"""A real Jupyter server as a session: a cell computes, the throttle slows it, and after eviction nothing is left."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import websocket

from benchmarks.live_instance import LiveInstance
from scheduler.policy_files import preset_text
from workers.leftovers import leftovers
from workers.settings import instance_of

pytestmark = pytest.mark.slow

COUNT = """
import time
def rate(seconds):
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        n += 1
    return n / seconds
print(rate({seconds}))
"""


class Notebook:
    """A client of one kernel of a Jupyter server: HTTP for the kernel, a websocket for cells."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        token = parse_qs(parts.query)["token"][0]
        headers = {"Authorization": f"token {token}"}
        self._http = httpx.Client(base_url=f"http://{parts.netloc}", headers=headers, timeout=60)
        kernel = self._http.post("/api/kernels", json={"name": "python3"})
        kernel.raise_for_status()
        self._socket = websocket.create_connection(
            f"ws://{parts.netloc}/api/kernels/{kernel.json()['id']}/channels?token={token}", timeout=60
        )

    def run(self, code: str) -> str:
        """What a cell prints."""
        message = uuid.uuid4().hex
        header = {"msg_id": message, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        self._socket.send(
            json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
        )
        printed = ""
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv())
            if answer["parent_header"].get("msg_id") != message:
                continue
            if answer["msg_type"] == "stream":
                printed += answer["content"]["text"]
            elif answer["msg_type"] == "error":
                raise AssertionError(answer["content"])
            elif answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                return printed

    def close(self) -> None:
        self._socket.close()
        self._http.close()


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The condition's value once it is true."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return value


def hasty(folder: Path) -> Path:
    """The demo's policy with hardly any credit and long steps, so that one step can be measured."""
    text, changed = re.subn(r"baseline_gpus = [\d.]+", "baseline_gpus = 0.1", preset_text("demo"))
    text, changed_too = re.subn(r"throttle_step_s = \d+", "throttle_step_s = 8", text)
    assert changed == changed_too == 1
    path = folder / "hasty.toml"
    path.write_text(text)
    return path


def test_a_jupyter_server_from_submit_to_eviction(tmp_path: Path) -> None:
    """One shared GPU, a notebook on .8 of it that computes; a waiter asks for a half."""
    with LiveInstance("1x1", str(hasty(tmp_path))) as instance:
        instance.set_users("ann", "bob")
        sid = instance.http.post("/v1/sessions", json={"user": "ann", "fraction": 0.8, "notebook": True}).json()[
            "session"
        ]
        folder = instance.state / "sessions" / sid
        show = lambda: instance.http.get(f"/v1/sessions/{sid}").json()  # noqa: E731
        url = until(lambda: show()["url"], 40, "no URL")
        assert urlsplit(url).hostname in ("127.0.0.1", "localhost")
        notebook = Notebook(url)
        try:
            assert notebook.run("print(6 * 7)") == "42\n"
            free = float(notebook.run(COUNT.format(seconds=3)))
            spend = until(lambda: out_of_credit(instance, notebook), 60, "credit is not used up")
            assert spend
            waiter = instance.http.post(
                "/v1/sessions", json={"user": "bob", "fraction": 0.5, "argv": ["sleep", "4"]}
            ).json()["session"]
            until(lambda: keep_busy(notebook) and show()["ladder"] == "throttle", 40, "no throttle")
            granted = show()["gpus"][0]["fraction"]
            slow = float(notebook.run(COUNT.format(seconds=4)))
            assert slow / free < granted + 0.25
            assert "notice" in {path.name for path in folder.iterdir()}
            assert "GPU-h" in (folder / "notice").read_text()
            assert instance.http.get(f"/v1/sessions/{waiter}").json()["state"] in ("running", "queued", "ended")
        finally:
            notebook.close()
        instance.http.post(f"/v1/sessions/{sid}/evict", json={"reason": "enough"}).raise_for_status()
        until(lambda: show()["state"] == "ended", 20, "not ended")
        assert show()["outcome"] == "evicted"
        until(lambda: instance.http.get(f"/v1/sessions/{waiter}").json()["state"] == "ended", 40, "the waiter")
        left = leftovers(instance_of(instance.state), instance.state)
        assert left == {"processes": 0, "cgroups": 0}


def out_of_credit(instance: LiveInstance, notebook: Notebook) -> bool:
    """Compute for a second; whether ann has used up her credit."""
    keep_busy(notebook)
    users = instance.http.get("/v1/shares").json()["users"]
    return any(user["user"] == "ann" and user["credit_gpu_h"] < 0 for user in users)


def keep_busy(notebook: Notebook) -> bool:
    """A cell that computes for a second."""
    notebook.run(COUNT.format(seconds=1))
    return True
