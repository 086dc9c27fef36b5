"""Going over from one policy to another: the versions on record, and the state carried over.

The version's row, the head that begins a new part of the journal and the checkpoint are one transaction. Before it the
old policy is in force, after it the new one; there is nothing between.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.catalogue import make_policy
from policies.decide import WEEK_MS
from policies.param_keys import POLICIES
from policies.params import Params, PolicyError, load
from policies.promises import doubts
from scheduler import checkpoint
from scheduler.errors import BadInput, NotFound, Refused
from scheduler.journal import head_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policies.promises import Doubt
    from scheduler.core import Core
    from scheduler.moment import Moment
    from scheduler.ports import Reader, Row
    from scheduler.requests import Activate, Rollback


class Change(NamedTuple):
    """The policy that a pass goes over to at its end, the row of its version, and what is doubtful about it."""

    params: Params
    row: Row
    warnings: tuple[str, ...] = ()


def promises(core: Core, params: Params) -> list[Doubt]:
    """What a policy promises that the hosts of this instance, all of them, cannot keep; nothing before one has joined.

    Users count who wait, hold GPUs, or did within the last 7 days.
    """
    gpus = sum(host.spec.gpus for host in core.cluster.hosts.values())
    users: dict[str, int] = {}
    for user in core.ledger.users.values():
        if user.held or user.cells or core.now_ms - user.active_ms <= WEEK_MS:
            users[user.tier] = users.get(user.tier, 0) + 1
    return doubts(params, gpus, users) if gpus else []


class Versions:
    """The versions on record, oldest first; the last one is in force.

    Args:
        reader: of the truth.
        core: as loaded from it.
    """

    def __init__(self, reader: Reader, core: Core) -> None:
        self._rows = reader.policies()
        self._params = core.params
        self._core = core

    @property
    def present(self) -> Row:
        """The row of the version in force."""
        return self._rows[-1]

    @property
    def number(self) -> int:
        """Of the version in force."""
        return int(self.present["version"])

    def activate(self, asked: Activate, now_ms: int, by: str) -> Change | None:
        """What a request leads to; None = this policy is in force already.

        Raises:
            BadInput: the policy has mistakes; every one is named.
            Refused: its hosts report too seldom for it.
        """
        try:
            params = load(asked.toml, "policy")
        except PolicyError as error:
            mistakes = "; ".join(map(str, error.errors))
            raise BadInput(
                f"the policy is not activated, {self._params.name or self._params.policy} stays in force: {mistakes}",
                "fairtier policy check FILE lists every mistake",
            ) from None
        return self._change(params, now_ms, "activate", by, asked.note)

    def rollback(self, asked: Rollback, now_ms: int, by: str) -> Change | None:
        """As `activate`, with the text of the version before the present one, or of the one named; `NotFound`."""
        found = {row["version"]: row for row in self._rows}
        wanted = asked.version if asked.version is not None else self._before()
        if wanted not in found:
            raise NotFound(f"there is no policy version {wanted}", "fairtier policy versions lists them")
        try:
            params = load(found[wanted]["toml"], f"version {wanted}")
        except PolicyError as error:
            raise Refused(
                f"version {wanted} is no policy of this version of FairTier: {'; '.join(map(str, error.errors))}",
                "fairtier policy activate takes a file that is",
            ) from None
        return self._change(params, now_ms, "rollback", by, asked.note, wanted)

    def _before(self) -> int:
        if len(self._rows) < 2:
            raise NotFound("there is no version before the present one", "fairtier policy versions lists them")
        return self.number - 1

    def _change(
        self, params: Params, now_ms: int, source: str, by: str, note: str, rolled_back_to: int | None = None
    ) -> Change | None:
        if params.to_toml() == self._params.to_toml():
            return None
        pace_ms, stale_ms = self._params.telemetry.report_ms, params.telemetry.stale_ms
        if stale_ms < 2 * pace_ms and params.telemetry.report_ms < pace_ms:
            raise Refused(
                f"telemetry.stale_s {stale_ms / 1000:g} is less than two reports: the workers that run report each"
                f" {pace_ms / 1000:g} s until they are started again",
                "restart the instance with --policy, or leave telemetry as it is",
            )
        found = promises(self._core, params)
        broken = [str(doubt) for doubt in found if doubt.broken]
        if broken:
            raise Refused(
                f"the policy promises more than there is: {'; '.join(broken)}",
                "guarantee less, or activate it when the hosts have joined",
            )
        more = {"who": by, "note": note, "rolled_back_to": rolled_back_to}
        row = version_row(self.number + 1, params, now_ms, source, **more)
        return Change(params, row, tuple(map(str, found)))


def version_row(version: int, params: Params, now_ms: int, source: str, **more: Any) -> Row:
    """The row of a version that begins now; `source` is start, activate or rollback."""
    text = params.to_toml()
    row: Row = {
        "version": version,
        "at_ms": now_ms,
        "name": params.name or params.policy,
        "toml": text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "source": source,
    }
    return row | {"who": "", "note": "", "rolled_back_to": None} | more


def wanted_anew(params: Params, versions: Sequence[Row]) -> bool:
    """Whether the policy that a start names is to take over from another one that is in force.

    Not if it has been in force since the instance was last given a policy at a start: then somebody has activated
    another one in its place, and a scheduler that is started again after a crash must not undo that.
    """
    newest = max((at for at, row in enumerate(versions) if row["source"] == "start"), default=0)
    return all(not _says(row, params) for row in versions[newest:])


def _says(row: Row, params: Params) -> bool:
    """A row's policy, as this version of the program reads it, is this one."""
    try:
        return load(row["toml"], "version").to_toml() == params.to_toml()
    except PolicyError:
        return False


def successor(core: Core, params: Params) -> Core:
    """A new core in the same state under another policy; the one given stays as it is.

    Who was promised the GPUs of others waits in the queue again where the new policy serves no promise.
    """
    if params.policy != POLICIES[0] and core.view.claims:
        core = checkpoint.restore(checkpoint.dump(core), make_policy(core.params))
        for claim in list(core.view.claims.values()):
            if claim.waiter is not None:
                waiter = claim.waiter
                core.claims.drop(waiter)
                core.queue.add(waiter)
    return checkpoint.under(core, make_policy(params))


def go_over(moment: Moment, core: Core, warn: Callable[..., None]) -> None:
    """Where a pass was asked for another policy, its head begins a new part of the journal, after all of the pass."""
    if moment.change is None:
        return
    name = moment.change.row["name"]
    try:
        head = head_line(successor(core, moment.change.params))
    except (ValueError, ArithmeticError, LookupError, AssertionError) as error:
        warn("policy-not-activated", policy=name, error=str(error))
        moment.give_up(Refused(f"the state cannot go on under the policy {name}: {error}", "keep a backup, report it"))
        return
    moment.batch.lines.append(head)
    moment.batch.checkpoint = head
    moment.batch.policies.append(moment.change.row)
