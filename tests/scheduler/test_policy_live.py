"""`fairtier policy activate|rollback|versions|shadow` and `show --live` on the real service, API and transport."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fairtier.cli import main
from policies.params import HeadroomParams, Params, TierParams
from scheduler.adapters.sql_reader import SqlReader
from scheduler.state_dir import database
from tests.scheduler.api.live_site import PARAMS, LiveSite, live_site

GOAL = dataclasses.replace(
    PARAMS,
    name="by-goal",
    tiers={"free": TierParams(baseline_gpus=None), "lab": TierParams(baseline_gpus=0.25)},
    headroom=HeadroomParams(confidence=0.9, max_fraction=1.0, prior_per_h=6.0, prior_dispersion=2.0),
)


@pytest.fixture(scope="module")
def site() -> Iterator[LiveSite]:
    with live_site() as found:
        yield found


def run(site: LiveSite, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["policy", *arguments], env={"FAIRTIER_STATE": str(site.state)})


def ok(site: LiveSite, *arguments: str) -> str:
    result = run(site, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(site: LiveSite, *arguments: str) -> Any:
    found = json.loads(ok(site, *arguments, "-o", "json"))
    assert found.pop("schema") == 1
    return found


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes a policy to a file."""

    def write(params: Params, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(params.to_toml())
        return str(path)

    return write


def in_force(site: LiveSite) -> tuple[str, int]:
    found = document(site, "show", "--live")
    return found["name"], found["version"]


@pytest.fixture(autouse=True)
def _as_it_was(site: LiveSite, file: Any) -> Iterator[None]:
    yield
    ok(site, "activate", file(PARAMS))


def test_a_policy_is_activated_listed_and_rolled_back(site: LiveSite, file: Any) -> None:
    """Each is a version of its own, with who did it and why; what is in force already is none."""
    before = document(site, "versions")["versions"][-1]["version"]
    assert ok(site, "activate", file(GOAL), "--note", "busy week") == (
        f"version {before + 1} is in force: by-goal; fairtier policy rollback goes back\n"
    )
    assert in_force(site) == ("by-goal", before + 1)
    assert (
        ok(site, "activate", file(GOAL)) == f"by-goal is in force already, as version {before + 1}: nothing changed\n"
    )
    found = document(site, "rollback", "--note", "too quiet")
    assert (found["version"], found["name"], found["rolled_back_to"], found["changed"]) == (
        before + 2,
        "test",
        before,
        True,
    )
    listed = document(site, "versions")["versions"][-2:]
    assert [(row["source"], row["note"]) for row in listed] == [("activate", "busy week"), ("rollback", "too quiet")]
    assert all(row["who"] for row in listed)
    table = ok(site, "versions")
    assert f"rollback to {before}" in table
    rows = list(csv.DictReader(io.StringIO(ok(site, "versions", "-o", "csv"))))
    assert [int(row["version"]) for row in rows] == list(range(1, before + 3))
    assert run(site, "rollback", "99").exit_code == 3


def test_decisions_show_the_version_that_made_them(site: LiveSite, file: Any) -> None:
    """In the history, in why, and in the count of the list."""
    ok(site, "activate", file(GOAL))
    version = in_force(site)[1]
    name = site.client.submit(user="ann", argv=["sleep", "9"])["session"]
    rows = site.client.get("history", session=name)["decisions"]
    assert {row["policy_version"] for row in rows} == {version}
    assert document(site, "versions")["versions"][-1]["decisions"] == len(rows)
    site.runs(name)
    assert site.client.get(f"sessions/{name}/why")["policy_version"] == version
    site.client.act(name, "cancel")
    site.ended(name, "cancelled", 143)
    [ended] = site.client.get(f"sessions/{name}/why")["reasons"]
    assert ended["policy_version"] == version
    assert site.client.get("status")["policy_version"] == version


def test_every_mistake_is_told_and_nothing_is_changed(site: LiveSite, tmp_path: Path) -> None:
    """By the command before it asks (exit code 2), and by the service of whoever asks without it."""
    bad = tmp_path / "bad.toml"
    bad.write_text("[usage]\nhalf_life_h = 0\n[ladder]\nwarn = 3\n")
    before = in_force(site)
    result = run(site, "activate", str(bad))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)
    assert run(site, "shadow", str(bad)).exit_code == 2
    assert run(site, "activate", "no-such").exit_code == 3
    posted = site.client._http.post("/v1/policy/activate", content=json.dumps({"toml": bad.read_text()}))
    assert posted.status_code == 422
    assert "usage.half_life_h" in posted.json()["message"]
    assert "ladder.warn" in posted.json()["message"]
    assert in_force(site) == before


def test_show_live_has_the_figures_of_the_core(site: LiveSite, file: Any) -> None:
    """Caps, baselines and users of the tiers; the stock by goal, and what it follows from."""
    ok(site, "activate", file(GOAL))
    site.client.set_user("ann")  # a pass, so that a cycle has computed what was due
    found = document(site, "show", "--live")
    tiers = {row["tier"]: row for row in found["tiers"]}
    steady = 48 / math.log(2)
    assert tiers["lab"]["credit_cap_gpu_h"] == pytest.approx(0.25 * steady, rel=1e-4)
    assert (tiers["free"]["auto"], tiers["free"]["users"], tiers["free"]["users_counted"]) == (True, 2, 2)
    assert tiers["free"]["credit_cap_gpu_h"] == pytest.approx(tiers["free"]["baseline_gpus"] * steady, rel=1e-4)
    headroom = found["headroom"]
    assert (headroom["by"], headroom["confidence"], headroom["lead_time_s"]) == ("goal", 0.9, 600)
    assert headroom["total_gpus"] == headroom["free_gpus"] == 2
    assert 0.5 < headroom["expected_gpus"] <= 1.0  # six an hour before anything is learned, for ten minutes
    assert headroom["stock_gpus"] <= 2
    assert len(headroom["hours"]) == 24
    text = ok(site, "show", "--live")
    for part in ("by-goal: version", "finding a free GPU with 90 %", "lead time", "credit_cap_gpu_h", "computed again"):
        assert part in text
    assert run(site, "show", "demo", "--live").exit_code == 2
    assert run(site, "show").exit_code == 2


def test_show_live_of_a_fixed_number(site: LiveSite) -> None:
    headroom = document(site, "show", "--live")["headroom"]
    assert (headroom["by"], headroom["stock_gpus"], headroom["next_at"]) == ("fixed", 0, None)
    assert "a fixed number" in ok(site, "show", "--live")


def test_the_shadow_reads_the_records_and_writes_nothing(site: LiveSite, file: Any) -> None:
    """The policy in force differs in nothing; one that keeps a GPU free would have refused the second start."""
    names = [site.client.submit(user="ann", argv=["sleep", "9"])["session"] for _ in range(2)]
    reader = SqlReader(database(site.state))
    lines = reader.last_seq()
    same = document(site, "shadow", file(PARAMS), "--every", "0")
    assert (same["differences"], same["counts"]) == ([], [])
    assert same["looked_at"] == same["cycles"] > 0
    poor = dataclasses.replace(
        PARAMS,
        name="poor",
        tiers={"free": TierParams(baseline_gpus=0.0)},
        headroom=HeadroomParams(fixed_gpus=1, max_fraction=1.0),
    )
    found = document(site, "shadow", file(poor), "--every", "0")
    would_not = [row["session"] for row in found["differences"] if row["action"] == "start" and not row["would"]]
    assert names[1] in would_not
    text = ok(site, "shadow", file(poor), "--every", "0")
    assert "would not start" in text
    assert "poor held against" in text
    assert (reader.last_seq(), len(reader.policies())) == (lines, len(document(site, "versions")["versions"]))
    reader.close()
    for name in names:
        site.client.act(name, "cancel")
    site.report()
    assert run(site, "shadow", "demo", "--journal", "none").exit_code == 3
    assert run(site, "shadow", "demo", "--follow", "-o", "json").exit_code == 2
    assert run(site, "shadow", "demo", "--journal", "j", "--since", "1h").exit_code == 2
