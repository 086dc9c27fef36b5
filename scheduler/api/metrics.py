"""Figures for Prometheus, computed when asked for. Labels are few and small; series by user are opt-in.

Names follow Prometheus: unit last, `_total` for what only rises. What rises is counted from the record of decisions and
sessions, so that it goes on where it was after a restart of the API.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from policies.model import WHOLE_M, State
from scheduler.api import cluster, words
from scheduler.api.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from scheduler.api.views import Views
    from scheduler.core import Core
    from scheduler.ports import Row


class Metrics:
    """The exposition; a collector of `prometheus_client`. Runs in the reading thread.

    Args:
        views: where the figures come from.
        per_user: also series by user.

    Attributes:
        media_type: of the text.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, views: Views, *, per_user: bool = False) -> None:
        self._views = views
        self._per_user = per_user
        self._record = Record()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Every figure, now."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not read the truth."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families, as `prometheus_client` asks for them."""
        core, now_ms = self._views.core(), self._views.now_ms()
        waiting = self._views.reader.sessions(states=("queued", "held"))
        self._record.catch_up(self._views.reader, now_ms)
        yield from _queue(core, waiting, now_ms)
        yield from _gpus(core)
        yield from _hosts(core, self._views.reader.hosts(), now_ms)
        yield from self._counters()
        yield _policy(core)
        if self._per_user:
            yield from _users(core)

    def _counters(self) -> Iterator[Metric]:
        actions = CounterMetricFamily(
            "fairtier_policy_actions", "Decisions, operators' acts included.", labels=("action", "rule")
        )
        for (action, rule), number in sorted(self._record.actions.items()):
            actions.add_metric((action, rule), number)
        yield actions
        evictions = CounterMetricFamily("fairtier_evictions", "Sessions told to end, by rule.", labels=("reason",))
        for (action, rule), number in sorted(self._record.actions.items()):
            if action == "evict":
                evictions.add_metric((rule,), number)
        yield evictions
        ended = CounterMetricFamily("fairtier_sessions_ended", "Sessions that ended, by outcome.", labels=("outcome",))
        for outcome, number in sorted(self._record.outcomes.items()):
            ended.add_metric((outcome,), number)
        yield ended
        waits = self._record.waits
        yield HistogramMetricFamily(
            "fairtier_queue_wait_seconds",
            "From submit to start, of sessions that started.",
            buckets=waits.buckets(),
            sum_value=waits.sum_s,
        )


def _queue(core: Core, waiting: list[Row], now_ms: int) -> Iterator[Metric]:
    sessions = GaugeMetricFamily("fairtier_queue_sessions", "Sessions that wait, by what for.", labels=("reason",))
    codes = words.WaitCodes(core)
    counts = Counter(codes.of(row) or "Position" for row in waiting)
    for reason, number in sorted(counts.items()):
        sessions.add_metric((reason,), number)
    yield sessions
    oldest = min((row["submitted_ms"] for row in waiting if row["state"] == State.QUEUED), default=now_ms)
    yield GaugeMetricFamily(
        "fairtier_queue_head_age_seconds", "Longest wait in the queue; 0 = nobody.", max(0, now_ms - oldest) / 1000
    )
    live = GaugeMetricFamily("fairtier_sessions", "Sessions that have not ended, by state.", labels=("state",))
    states = Counter(session.state.value for session in core.sessions.values())
    for state in State:
        if state is not State.ENDED:
            live.add_metric((state.value,), states[state.value])
    yield live


def _gpus(core: Core) -> Iterator[Metric]:
    view = core.view
    total = sum(host.spec.gpus for host in core.cluster.hosts.values())
    open_total, free = view.cluster.total_m / WHOLE_M, view.cluster.free_m / WHOLE_M
    gpus = GaugeMetricFamily(
        "fairtier_gpus", "GPUs by what they do; closed: on drained or silent hosts.", labels=("state",)
    )
    for state, number in (("free", free), ("granted", open_total - free), ("closed", total - open_total)):
        gpus.add_metric((state,), number)
    yield gpus
    busy = GaugeMetricFamily(
        "fairtier_gpu_utilization_ratio", "Measured busy part of a GPU; absent = unknown.", labels=("host", "gpu")
    )
    for host in core.cluster.hosts:
        for device in cluster.gpus_json(core, host):
            if device["utilisation"] is not None or not device["sessions"]:
                busy.add_metric((host, str(device["gpu"])), device["utilisation"] or 0.0)
    yield busy


def _hosts(core: Core, found: list[Row], now_ms: int) -> Iterator[Metric]:
    hosts = GaugeMetricFamily("fairtier_hosts", "Hosts by state.", labels=("state",))
    for state, number in cluster.host_counts(core).items():
        hosts.add_metric((state,), number)
    yield hosts
    age = GaugeMetricFamily("fairtier_worker_last_report_age_seconds", "Since a host's last report.", labels=("host",))
    for row in found:
        if row["reported_ms"] is not None:
            age.add_metric((row["host"],), max(0, now_ms - row["reported_ms"]) / 1000)
    yield age


def _policy(core: Core) -> Metric:
    version = hashlib.sha256(core.params.to_toml().encode()).hexdigest()[:12]
    name = core.params.name or core.params.policy
    return InfoMetricFamily("fairtier_policy", "The policy in force.", {"name": name, "version": version})


def _users(core: Core) -> Iterator[Metric]:
    usage = GaugeMetricFamily("fairtier_user_usage_gpu_hours", "Decayed usage.", labels=("user",))
    held = GaugeMetricFamily("fairtier_user_gpus", "GPUs granted now.", labels=("user",))
    for name, user in core.ledger.users.items():
        usage.add_metric((name,), core.view.clock.usage(user))
        held.add_metric((name,), sum(session.held_m for session in user.held.values()) / WHOLE_M)
    yield usage
    yield held
