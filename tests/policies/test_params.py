"""A policy file is read whole or refused with every mistake in it, each with its line."""

from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.param_file import write
from policies.param_keys import KEYS, TIER_KEYS, Key, Names, Setting, Word
from policies.params import (
    HeadroomParams,
    LadderParams,
    ParamError,
    Params,
    PolicyError,
    TelemetryParams,
    TierParams,
    UsageParams,
    load,
)

NUMBERS = tuple(key for key in KEYS if isinstance(key, Key))


def errors(text: str) -> dict[str, ParamError]:
    """The mistakes in a file, by key."""
    with pytest.raises(PolicyError) as caught:
        load(text, "site.toml")
    assert [e.line for e in caught.value.errors] == sorted(e.line for e in caught.value.errors)
    return {error.key: error for error in caught.value.errors}


def only_error(text: str) -> ParamError:
    """The one mistake in a file."""
    (error,) = errors(text).values()
    return error


EVERY_MISTAKE = """\
name = "site"

[usage]
half_life_h = 0
[gpu_weight]
"A100" = 0
[ladder]
rotate_delta_gpu_h = 0
grace_s = 15
grace_sec = 20
[telemetry]
stale_s = 60
lost_s = 45
"""


def test_t18_every_mistake_at_once() -> None:
    found = errors(EVERY_MISTAKE)
    assert {key: (e.file, e.line, e.value) for key, e in found.items()} == {
        "usage.half_life_h": ("site.toml", 4, 0),
        "gpu_weight.A100": ("site.toml", 6, 0),
        "ladder.rotate_delta_gpu_h": ("site.toml", 8, 0),
        "ladder.grace_s": ("site.toml", 9, 15),
        "ladder.grace_sec": ("site.toml", 10, 20),
        "telemetry.stale_s": ("site.toml", 12, 60),
    }
    assert found["usage.half_life_h"].allowed.startswith("a number > 0")
    assert "swap for ever" in found["ladder.rotate_delta_gpu_h"].allowed
    assert "2 x telemetry.report_s = 20" in found["ladder.grace_s"].allowed
    assert "did you mean grace_s?" in found["ladder.grace_sec"].allowed
    assert "telemetry.lost_s = 45" in found["telemetry.stale_s"].allowed


@pytest.mark.parametrize("line", [line for line in EVERY_MISTAKE.splitlines() if line.endswith(("0", "15"))])
def test_t18_each_mistake_disappears_when_it_alone_is_mended(line: str) -> None:
    whole, key = set(errors(EVERY_MISTAKE)), line.partition(" = ")[0].strip('"')
    assert {name.split(".")[1] for name in whole - set(errors(EVERY_MISTAKE.replace(line + "\n", "\n")))} == {key}


def test_a_message_reads_as_a_sentence() -> None:
    message = str(only_error("\n[usage]\nhalf_life_h = 0"))
    assert message == "site.toml:3: usage.half_life_h = 0: must be a number > 0 and at most 8760"


def test_defaults_are_those_of_the_classes_and_of_the_table_of_keys() -> None:
    empty = load("", "empty.toml")
    assert empty == Params()
    assert empty.usage == UsageParams(half_life_h=48, idle_charge=0.5)
    assert empty.headroom == HeadroomParams(fixed_gpus=0, max_fraction=0.25)
    assert empty.ladder == LadderParams(warn_ms=300_000, min_run_ms=1_800_000, rotate_delta_gpu_h=None)
    assert empty.telemetry == TelemetryParams(report_ms=10_000, stale_ms=30_000, lost_ms=45_000)
    assert (empty.policy, empty.gpu_weight, empty.tiers) == ("fair-share", {}, {"free": TierParams()})
    for key in KEYS:
        expected = None if key.default is None else key.convert(key.default)
        assert getattr(getattr(empty, key.table), key.field) == expected, key.name


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.table}.{key.name}")
def test_every_key_is_read_into_its_own_field(key: Key) -> None:
    given = {
        "half_life_h": 5,
        "rotate_delta_gpu_h": 2,
        "lost_s": 99,
        "stale_s": 44,
        "report_s": 7.5,
        "confidence": 0.5,
    }.get(key.name)
    value = given if given is not None else (0.125 if key.high == 1 else 123)
    read = load(f"[{key.table}]\n{key.name} = {value}\n", "x.toml")
    changed = {
        k.name for k in KEYS if getattr(getattr(read, k.table), k.field) != getattr(getattr(Params(), k.table), k.field)
    }
    assert changed == {key.name}
    assert getattr(getattr(read, key.table), key.field) == (value * 1000 if key.is_duration else value)


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.table}.{key.name}")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "true", '"5 min"', "-1", "[1]", "{a = 1}", "1e10", "07:30:00"])
def test_wrong_values_are_refused_whatever_the_key(key: Key, value: str) -> None:
    error = only_error(f"[{key.table}]\n{key.name} = {value}\n")
    assert (error.line, error.key) == (2, f"{key.table}.{key.name}")
    assert error.allowed.startswith("a number")


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.table}.{key.name}")
def test_bounds_are_allowed_or_refused_as_the_table_says(key: Key) -> None:
    assert key.accepts(key.high)
    assert not key.accepts(math.nextafter(key.high, math.inf))
    assert key.accepts(key.low) is not key.above
    assert not key.accepts(math.nextafter(key.low, -math.inf))


def test_durations_are_kept_to_the_millisecond_and_never_round_to_nothing() -> None:
    assert load("[telemetry]\nreport_s = 0.0015", "x").telemetry.report_ms == 2
    assert only_error("[telemetry]\nreport_s = 0.0004").key == "telemetry.report_s"
    assert only_error("[usage]\nhalf_life_h = 1e-10").key == "usage.half_life_h"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("[telemetry]\nstale_s = 46", "telemetry.stale_s", 2),
        ("[telemetry]\nlost_s = 29", "telemetry.lost_s", 2),
        ("[telemetry]\nlost_s = 10\nstale_s = 11", "telemetry.stale_s", 3),
        ("[ladder]\ngrace_s = 19.9", "ladder.grace_s", 2),
        ("[telemetry]\nreport_s = 151\n", "telemetry.report_s", 2),
        ("[ladder]\nrotate_delta_gpu_h = 69.25", "ladder.rotate_delta_gpu_h", 2),
        ("usage.half_life_h = 1\nladder.rotate_delta_gpu_h = 1.45", "ladder.rotate_delta_gpu_h", 2),
    ],
)
def test_checks_between_keys(text: str, key: str, line: int) -> None:
    error = only_error(text)
    assert (error.key, error.line) == (key, line)


@pytest.mark.parametrize(
    "text",
    [
        "[telemetry]\nstale_s = 45",
        "[ladder]\ngrace_s = 20",
        "[ladder]\ngrace_s = 0",
        "[telemetry]\nreport_s = 150",
        "[ladder]\nrotate_delta_gpu_h = 69.2",
    ],
)
def test_the_last_right_value_of_each_check_between_keys(text: str) -> None:
    load(text, "x.toml")


def test_a_wrong_key_does_not_hide_or_cause_checks_between_others() -> None:
    text = "[usage]\nhalf_life_h = -1\n[ladder]\nrotate_delta_gpu_h = 500\n[telemetry]\nlost_s = nan\nstale_s = 1e6\n"
    assert set(errors(text)) == {"usage.half_life_h", "telemetry.lost_s"}


@pytest.mark.parametrize(
    ("text", "key", "line", "part"),
    [
        ("nmae = 'x'", "nmae", 1, "did you mean name?"),
        ("[ladder]\n\nwarn = 3", "ladder.warn", 3, "did you mean warn_s?"),
        ("[[rules]]\na = 1", "rules", 1, "a known key: name, summary, policy, usage"),
        ("[tiers.free]\nbaseline = 1", "tiers.free.baseline", 2, "did you mean baseline_gpus?"),
        ("usage = 3", "usage", 1, "a table [usage]"),
        ("[[ladder]]\nwarn_s = 3", "ladder", 1, "a table [ladder]"),
        ("[tiers]\nfree = 1", "tiers.free", 2, "a table [tiers.free]"),
        ("[tiers.Free]", "tiers.Free", 1, "named in the form"),
        ('[tiers.free]\nbaseline_gpus = "some"', "tiers.free.baseline_gpus", 2, 'or "auto"'),
        ("[tiers.free]\nbaseline_gpus = false", "tiers.free.baseline_gpus", 2, "a number >= 0"),
        ('name = "Bad Name"', "name", 1, "a text of the form"),
        ('name = "ok\\n"', "name", 1, "a text of the form"),
        ("summary = 1", "summary", 1, "a text"),
        ('policy = "lifo"', "policy", 1, '"fair-share", "fifo", "fifo-skip", "sjf"'),
        ("policy = []", "policy", 1, "one of"),
        ('[gpu_weight]\n"A 100" = inf', 'gpu_weight."A 100"', 2, "a number > 0"),
    ],
)
def test_what_else_is_refused(text: str, key: str, line: int, part: str) -> None:
    error = only_error(text)
    assert (error.key, error.line) == (key, line)
    assert part in error.allowed


def test_a_plain_order_takes_no_tables() -> None:
    plain = load('policy = "fifo"\nname = "queue"', "x.toml")
    assert (plain.policy, plain.name) == ("fifo", "queue")
    found = errors('policy = "sjf"\n[usage]\nhalf_life_h = 0\n[ladder]\n')
    assert {key: e.line for key, e in found.items()} == {"usage": 2, "ladder": 4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[usage\n", 1),
        ("a = 1\nb = \n", 2),
        ("a = 1\n\na = 2\nb = 3", 3),
        ("x = 1\ny = '''\n\n\n", 4),
        ("\x00", 1),
        ("a = " + "[" * 20_000, 1),
        ("a = " + "1" * 5000, 1),
    ],
)
def test_broken_toml_is_one_mistake_with_its_line(text: str, line: int) -> None:
    error = only_error(text)
    assert (error.line, error.key, error.allowed) == (line, "", "valid TOML")
    assert "\n" not in str(error)


def test_values_that_json_cannot_hold_become_text() -> None:
    found = errors(f"[usage]\nhalf_life_h = nan\nidle_charge = 0x{'f' * 5000}\n[ladder]\nwarn_s = 1979-05-27\n")
    assert found["usage.half_life_h"].value == "nan"
    assert str(found["usage.idle_charge"].value).startswith("0xfff")
    assert len(str(found["usage.idle_charge"])) < 200
    assert found["ladder.warn_s"].value == "1979-05-27"


def test_a_tier_that_is_not_listed_is_treated_as_free() -> None:
    params = load('[tiers.free]\nbaseline_gpus = 0\n[tiers.staff]\nbaseline_gpus = "auto"', "x.toml")
    assert params.tier("visitor") == params.tier("free") == TierParams(baseline_gpus=0)
    assert params.tier("staff") == TierParams(baseline_gpus=None)
    assert load("[tiers.staff]\nbaseline_gpus = 2", "x.toml").tier("free") == TierParams()


def test_models_that_are_not_listed_weigh_one() -> None:
    params = load("[gpu_weight]\nA100 = 4", "x.toml")
    assert [params.weight(model) for model in ("A100", "T4", None)] == [4, 1, 1]


@pytest.mark.parametrize(
    ("half_life_h", "delta", "hours"), [(24, 0.5, 1.00007), (24, None, 1.00007), (48, None, 1.0000174), (1, 1.0, 2.465)]
)
def test_t15_swap_period(half_life_h: float, delta: float | None, hours: float) -> None:
    params = Params(usage=UsageParams(half_life_h=half_life_h), ladder=LadderParams(rotate_delta_gpu_h=delta))
    assert params.swap_period_ms / 3_600_000 == pytest.approx(hours, abs=1e-3 if delta == 1 else 1e-5)


def test_swap_period_where_the_assumed_gap_is_out_of_reach() -> None:
    """K <= .5, so d = K / 2 and the period is h log2(3)."""
    params = Params(usage=UsageParams(half_life_h=0.25))
    assert params.steady_gpu_h == pytest.approx(0.25 / math.log(2))
    assert params.delta_gpu_h == params.steady_gpu_h / 2
    assert params.swap_period_ms == round(0.25 * 3_600_000 * math.log2(3))


def values_of(key: Setting) -> st.SearchStrategy[object]:
    """Any value that a key accepts, durations in whole milliseconds."""
    if isinstance(key, Word):
        return st.sampled_from([*key.options, *(["36h", "7d"] if key.pattern else [])])
    if isinstance(key, Names):
        return st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=3)
    if key.whole:
        return st.integers(int(key.low), 10**6)
    number = st.floats(1e-6 if key.above else key.low, key.high)
    if key.is_duration:
        number = st.integers(int(key.above), 10**7).map(lambda ms: ms / 1000)
    return number | st.just(key.word) if key.word else number


def tables_of(keys: tuple[Setting, ...]) -> st.SearchStrategy[dict[str, object]]:
    """Some of the keys of one table."""
    return st.fixed_dictionaries({}, optional={key.name: values_of(key) for key in keys})


@st.composite
def policies(draw: st.DrawFn) -> dict[str, object]:
    """A policy as nested dictionaries, right key by key; what holds between keys is left to chance."""
    names = dict.fromkeys(key.table for key in KEYS)
    tables = {name: draw(tables_of(tuple(key for key in KEYS if key.table == name))) for name in names}
    weights = draw(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.floats(0.1, 10), max_size=2))
    tier = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,5}", fullmatch=True)
    tiers = draw(st.dictionaries(tier, tables_of(TIER_KEYS), max_size=2))
    summary = draw(st.text(st.characters(codec="utf-8"), max_size=10))
    given = {name: table for name, table in tables.items() if table}
    return {"summary": summary, **given, "gpu_weight": weights, "tiers": tiers}


@settings(max_examples=300, deadline=None)
@given(policies())
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    text = write(values)
    assert tomllib.loads(text) == {k: v for k, v in values.items() if k not in ("gpu_weight", "tiers") or v} | {
        k: values[k] for k in ("gpu_weight", "tiers")
    }
    try:
        params = load(text, "x.toml")
    except PolicyError:
        return  # only checks between keys can fail here; they have their own tests
    assert load(params.to_toml(), "y.toml") == params
    assert load(params.to_toml(), "y.toml").as_dict() == params.as_dict()


def test_parameters_can_be_hashed_and_compared() -> None:
    assert hash(load("", "a")) == hash(Params())
    assert load("[gpu_weight]\nA = 2", "a") != Params()


def test_limits_of_a_tier_are_read_with_their_units() -> None:
    """Durations become milliseconds, whole numbers stay whole, lists keep their order."""
    text = """
    [tiers.free]
    sessions_per_user = 2
    gpus_per_user = 1.5
    gpu_models = ["T4", "L4", "T4"]
    lifetime_s = 32400
    quota_gpu_h = 30
    quota_window = "weekly"
    [order]
    by = "arrival"
    [idle]
    warn_s = 7200
    release_s = 10800
    """
    params = load(text, "x.toml")
    tier = params.tier("free")
    assert (tier.sessions_per_user, tier.gpus_per_user, tier.gpu_models) == (2, 1.5, ("T4", "L4"))
    assert (tier.lifetime_ms, tier.quota_gpu_h, tier.quota_window) == (32_400_000, 30.0, "weekly")
    assert (params.order.by, params.idle.warn_ms, params.idle.release_ms) == ("arrival", 7_200_000, 10_800_000)


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("[tiers.a]\nsessions_per_user = 0", "tiers.a.sessions_per_user", "a whole number >= 1"),
        ("[tiers.a]\nsessions_per_user = 1.5", "tiers.a.sessions_per_user", "a whole number >= 1"),
        ("[tiers.a]\ngpus_per_user = 0", "tiers.a.gpus_per_user", "a number > 0"),
        ("[tiers.a]\ngpu_models = []", "tiers.a.gpu_models", "a list of texts"),
        ('[tiers.a]\ngpu_models = "T4"', "tiers.a.gpu_models", "a list of texts"),
        ('[tiers.a]\nquota_window = "0d"', "tiers.a.quota_window", '"daily" or "weekly"'),
        ("[tiers.a]\nquota_window = 7", "tiers.a.quota_window", '"daily" or "weekly"'),
        ("[tiers.a]\nlifetime_s = 2\nlongest_s = 1", "tiers.a.lifetime_s", "at most tiers.a.longest_s = 1"),
        ("[idle]\nwarn_s = 2\nrelease_s = 1", "idle.warn_s", "at most idle.release_s = 1"),
        ('[idle]\nwhen = "never"', "idle.when", 'one of "contention", "always"'),
        ("[order]\nby = 3", "order.by", 'one of "standing", "arrival"'),
    ],
)
def test_wrong_limits_are_refused(text: str, key: str, allowed: str) -> None:
    """Each with its key and what is allowed."""
    error = only_error(text)
    assert error.key == key
    assert error.allowed.startswith(allowed)
