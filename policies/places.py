"""The waiting order: all waiting sessions in the order in which the policy would start them if there were room.

For the fair-share policy no sort gives it: each start adds to what its user, and every group above, has committed, so
that their next session comes later, and perhaps out of credit. What is worked out here is the order of the admissions
of one cycle on an endlessly large cluster, on figures of its own: nothing of the view is changed. While sessions start
a place only falls back, so a heap may keep places that are too good: what surfaces is worked out anew.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

from policies.baselines.arrival import LineQueue
from policies.bounded_wait import EVERY
from policies.model import NANO, State
from policies.order import FairQueue
from policies.standing import weighed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policies.lanes import Cell
    from policies.model import Node, Session, User
    from policies.rights import Held, Right
    from policies.snapshot import Snapshot, WaitingQueue
    from policies.usage import DecayClock

Place = tuple[tuple[float, ...], int, str]
"""Standings from the top down, submit time, session id: the order of `policies.order` within one class of credit."""


def places(view: Snapshot[WaitingQueue]) -> list[Session]:
    """Every waiting session in the order in which they would start now, all lanes and cells merged.

    Nominated waiters come first, oldest claim first. Held sessions and those that could never run are left out. The
    charge of a session is the one it asks for, whatever model it would get where it names none.

    O(n log n) for n waiting sessions, times the number of different charges they ask for in the worst case.

    Raises:
        TypeError: the queue is of a type whose order is not known here.
    """
    nominated = [claim.waiter for claim in view.claims.values() if claim.waiter is not None]
    return nominated + _in_order(view, len(nominated))


def in_queue_order(view: Snapshot[WaitingQueue]) -> list[Session]:
    """Like `places`, without the nominated waiters."""
    return _in_order(view, 0)


def _in_order(view: Snapshot[WaitingQueue], started: int) -> list[Session]:
    """The queue's order after so many other starts."""
    queue = view.queue
    if isinstance(queue, FairQueue):
        return list(_admissions(queue, max(0, view.memory.since_band - started)))
    if isinstance(queue, LineQueue):
        waiting = _present(entry[2] for line in queue.lines.values() for entry in line)
        return sorted(waiting, key=queue.key)
    raise TypeError(f"the order of a {type(queue).__name__} is not known")


def _present(sessions: Iterable[Session]) -> list[Session]:
    """Those that wait, once each: heaps keep sessions that left, and hold those twice that came back."""
    return list(dict.fromkeys(s for s in sessions if s.state is State.QUEUED and s.claim is None))


class _Account:
    """A node of the share tree as it would stand after the starts so far; usage stands still at one instant."""

    __slots__ = ("above", "committed_n", "node", "usage")

    def __init__(self, node: Node, clock: DecayClock, above: _Account | None) -> None:
        self.usage = clock.compared(node)
        self.committed_n = node.committed_n
        self.node = node
        self.above = above

    def standing(self, extra_n: int) -> float:
        """As `policies.standing.standing`, GPU-h."""
        return weighed(self.node, self.usage * NANO + (self.committed_n + extra_n))

    def commit(self, charge_n: int) -> None:
        """A session of this charge has started below."""
        account: _Account | None = self
        while account is not None:
            account.committed_n += charge_n
            account = account.above


class _Asks:
    """One user's waiting sessions of one charge and size, the first one last.

    Attributes:
        fair: ordered by standing, otherwise by arrival alone.
        only_in_credit, only_by_right: the class that is looked for.
        held: what is held of every right, with the starts so far; one for all.
    """

    __slots__ = (
        "account",
        "amount_m",
        "cap",
        "charge_n",
        "fair",
        "group_cap",
        "held",
        "only_by_right",
        "only_in_credit",
        "rights",
        "sessions",
    )

    def __init__(
        self,
        account: _Account,
        cell: Cell,
        caps: tuple[float, float],
        rights: Held,
        held: dict[Right, int],
        *,
        fair: bool,
    ) -> None:
        self.account = account
        self.fair = fair
        self.charge_n = cell.committed_n
        self.amount_m = cell.amount_m
        self.cap, self.group_cap = caps
        self.rights = rights
        self.held = held
        self.sessions: list[Session] = []
        self.only_in_credit = self.only_by_right = True

    def settle(self) -> None:
        """Put its sessions in order."""
        self.sessions.sort(key=lambda session: (session.submit_ms, session.id), reverse=True)

    def place(self) -> Place | None:
        """Where its first session stands; None when it has none in the class that is looked for."""
        if not self.sessions or (self.only_in_credit and not self._in_credit()):
            return None
        if self.only_by_right and not self.by_right():
            return None
        first = self.sessions[-1]
        standings = (self.account.standing(self.charge_n),) if self.fair else ()
        return standings, first.submit_ms, first.id

    def _in_credit(self) -> bool:
        account = self.account
        if not account.usage + (account.committed_n + self.charge_n) / NANO <= self.cap:
            return False
        group = account.above
        return group is None or group.usage + (group.committed_n + self.charge_n) / NANO <= self.group_cap

    def by_right(self) -> bool:
        """It goes first, as `Rights.first` has it."""
        return any(self.held.get(right, right.held_m) + self.amount_m <= right.amount_m for right in self.rights)

    def pop(self) -> Session:
        """Start the first session."""
        session = self.sessions[-1]
        self.take(session)
        return session

    def take(self, session: Session) -> None:
        """Start one of its sessions."""
        self.account.commit(self.charge_n)
        self.sessions.remove(session)
        for right in self.rights:
            self.held[right] = self.held.get(right, right.held_m) + self.amount_m


class _Branch:
    """All that wait below a group with one charge, or (without an account) below the root."""

    __slots__ = ("_pushed", "account", "charge_n", "heap")

    def __init__(self, account: _Account | None, charge_n: int) -> None:
        self.account = account
        self.charge_n = charge_n
        self.heap: list[tuple[Place, int, _Asks | _Branch]] = []
        self._pushed = 0

    def push(self, child: _Asks | _Branch) -> None:
        """Somebody waits below it; `settle` once everybody is there."""
        self._pushed += 1
        self.heap.append((((), 0, ""), self._pushed, child))

    def settle(self) -> None:
        """Work out every place, from below."""
        settled = []
        for _, number, child in self.heap:
            child.settle()
            place = child.place()
            if place is not None:
                settled.append((place, number, child))
        heapify(settled)
        self.heap = settled

    def place(self) -> Place | None:
        """Where its first session stands; None when nobody is left."""
        heap = self.heap
        while heap:
            old, number, child = heap[0]
            new = child.place()
            if new is None:
                heappop(heap)
            elif new != old:
                heapreplace(heap, (new, number, child))
            elif self.account is None:
                return new
            else:
                return (self.account.standing(self.charge_n), *new[0]), new[1], new[2]
        return None

    def pop(self) -> Session:
        """Start the first session; `place` must have been asked since the last one."""
        return self.heap[0][2].pop()


def _admissions(queue: FairQueue, since_band: int) -> Iterator[Session]:
    """By right first, then in credit, for as long as somebody is; then all others. By arrival, whoever came first."""
    accounts: dict[Node, _Account] = {}
    held: dict[Right, int] = {}
    asks = [entry for user in queue.users.values() if user.cells for entry in _asks_of(user, queue, accounts, held)]
    turns = _Turns(queue, asks, since_band)
    for by_right, in_credit in ((True, True), (True, False), (False, queue.fair), (False, False)):
        asks = [(user, entry) for user, entry in asks if entry.sessions]
        looked_at = [(user, entry) for user, entry in asks if entry.rights or not by_right]
        for _, entry in looked_at:
            entry.only_by_right, entry.only_in_credit = by_right, in_credit
        yield from _drain(looked_at, turns, band=not by_right)


class _Turns:
    """Whose turn it is by the bounded-wait band, of those who start here."""

    __slots__ = ("_aged", "_asks", "_done", "_who", "since")

    def __init__(self, queue: FairQueue, asks: list[tuple[User, _Asks]], since: int) -> None:
        self.since = since
        self._who = queue.band.who
        self._done = {self._who(user) for user, _ in asks if queue.band.has_turn(user)}
        self._asks: dict[Session, _Asks] = {}
        limit = queue.clock.now_ms - queue.params.order.max_wait_ms
        if queue.band.cells:
            self._asks = {s: entry for _, entry in asks for s in entry.sessions if s.submit_ms <= limit}
        self._aged = sorted(self._asks, key=lambda session: (session.submit_ms, session.id), reverse=True)

    def count(self) -> None:
        """A session has started, not by the band."""
        self.since = max(0, self.since - 1)

    def take(self) -> Session | None:
        """Start the oldest of the band, if its turn has come."""
        while self._aged and not self.since:
            session = self._aged.pop()
            entry = self._asks[session]
            who = self._who(session.user)
            if who not in self._done and session in entry.sessions:
                self._done.add(who)
                self.since = EVERY - 1
                entry.take(session)
                return session
        return None


def _drain(asks: list[tuple[User, _Asks]], turns: _Turns, *, band: bool) -> Iterator[Session]:
    """Start everybody who is looked for, the first one first; with `band` also whose turn it is by that."""
    root = _Branch(None, 0)
    branches: dict[tuple[Node | None, int], _Branch] = {}
    for user, entry in asks:
        branch = _branch_of(user, entry, root, branches) if entry.fair else root
        branch.push(entry)
    root.settle()
    while root.place() is not None:
        aged = turns.take() if band else None
        if aged is not None:
            yield aged
        else:
            turns.count()
            yield root.pop()


def _branch_of(user: User, entry: _Asks, root: _Branch, branches: dict[tuple[Node | None, int], _Branch]) -> _Branch:
    """The branch of the user's group for this charge, made with all above it where it is new."""
    charge_n, account = entry.charge_n, entry.account
    nodes: list[Node | None] = [None, *user.path[:-1]]
    accounts: list[_Account | None] = [account.above]
    while accounts[-1] is not None:
        accounts.append(accounts[-1].above)
    above = root
    for node, own in zip(nodes, reversed(accounts), strict=True):
        branch = branches.get((node, charge_n))
        if branch is None:
            branch = branches[node, charge_n] = _Branch(own, charge_n)
            above.push(branch)
        above = branch
    return above


def _asks_of(
    user: User, queue: FairQueue, accounts: dict[Node, _Account], held: dict[Right, int]
) -> Iterator[tuple[User, _Asks]]:
    """A user's waiting sessions by charge and size; cooling down counts as out of credit."""
    account = _account(user, queue.clock, accounts)
    cap = float("-inf") if queue.cooling(user) else queue.caps[user.tier]
    shared = queue.group_credits.of(user)
    caps = cap, float("inf") if shared is None else shared.cap_gpu_h
    rights = queue.rights.of(user)
    found: dict[tuple[int, int], _Asks] = {}
    for cell in user.cells.values():
        if cell.block is not None:
            continue
        key = (cell.committed_n, cell.amount_m)
        entry = found.get(key)
        if entry is None:
            entry = found[key] = _Asks(account, cell, caps, rights, held, fair=queue.fair)
        entry.sessions += _present(item[3] for item in cell.heap)
    for entry in found.values():
        yield user, entry


def _account(user: User, clock: DecayClock, accounts: dict[Node, _Account]) -> _Account:
    """The user's account, and those of the groups above it, made where they are new."""
    account: _Account | None = None
    for node in user.path:
        known = accounts.get(node)
        account = known if known is not None else _Account(node, clock, account)
        accounts[node] = account
    assert account is not None, f"user {user.name} is not below the root"  # noqa: S101 - programmer's error
    return account
