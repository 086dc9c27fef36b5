"""Placement against a reference that tries every assignment: what fits, where it goes, and that nothing leaks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import WHOLE_M, Allocation, Shape
from policies.placement import Cluster, HostSpec, _Class

# -- the reference -------------------------------------------------------------------------------------------------


class Book:
    """What is held, written down plainly: for each host its GPUs, each with what is left of it."""

    def __init__(self, hosts: tuple[HostSpec, ...], limit: int | None) -> None:
        self.hosts = hosts
        self.limit = limit
        self.open = dict.fromkeys((host.name for host in hosts), True)
        self.held: list[Allocation] = []

    def serves(self, host: HostSpec, shape: Shape) -> bool:
        model = shape.gpu_type is None or host.model in (None, shape.gpu_type)
        return model and (shape.memory_mib is None or host.memory_mib is None or shape.memory_mib <= host.memory_mib)

    def need(self, host: HostSpec, shape: Shape) -> int:
        if shape.memory_mib is not None:
            return shape.memory_mib
        return (host.memory_mib or 0) * shape.fraction_m // WHOLE_M

    def left(self, host: HostSpec) -> dict[int, tuple[int, int, bool]]:
        """GPU -> (thousandths left, MiB left, whether it is shared)."""
        left = dict.fromkeys(range(host.gpus), (WHOLE_M, host.memory_mib or 0, False))
        for allocation in self.held:
            for name, gpus in allocation.parts:
                for gpu in gpus if name == host.name else ():
                    part, memory, _ = left[gpu]
                    taken = allocation.memory_mib if host.memory_mib is not None else 0
                    left[gpu] = (part - allocation.fraction_m, memory - taken, allocation.fraction_m < WHOLE_M)
        return left

    def free(self, host: HostSpec) -> set[int]:
        return {gpu for gpu, (part, _, shared) in self.left(host).items() if part == WHOLE_M and not shared}

    def shared(self) -> int:
        return sum(shared for host in self.hosts for *_, shared in self.left(host).values())

    def usable(self, shape: Shape) -> list[HostSpec]:
        return [host for host in self.hosts if self.open[host.name] and self.serves(host, shape)]

    # every assignment that the rule allows, as {host: number of GPUs}

    def narrow(self, shape: Shape) -> Iterator[dict[str, int]]:
        for host in self.usable(shape):
            if shape.gpus <= host.gpus and len(self.free(host)) >= shape.gpus:
                yield {host.name: shape.gpus}

    def wide(self, shape: Shape) -> Iterator[dict[str, int]]:
        usable = self.usable(shape)
        for key in sorted({(str(h.model), str(h.memory_mib), h.gpus) for h in usable}):
            alike = [h for h in usable if (str(h.model), str(h.memory_mib), h.gpus) == key]
            size = alike[0].gpus
            if shape.gpus <= size:
                continue
            whole, rest = divmod(shape.gpus, size)
            empty = [h for h in alike if len(self.free(h)) == size]
            for full in combinations(empty, whole):
                parts = {h.name: size for h in full}
                if not rest:
                    yield parts
                for h in alike if rest else ():
                    if h not in full and len(self.free(h)) >= rest:
                        yield parts | {h.name: rest}

    def parts(self, shape: Shape) -> Iterator[tuple[int, int, str, int]]:
        """Shared GPUs with room: (thousandths left, host number, host, GPU)."""
        for number, host in enumerate(self.hosts):
            for gpu, (part, memory, shared) in self.left(host).items():
                room = host.memory_mib is None or memory >= self.need(host, shape)
                if shared and host in self.usable(shape) and part >= shape.fraction_m and room:
                    yield part, number, host.name, gpu

    def may_open(self) -> bool:
        return self.limit is None or self.shared() < self.limit

    def fits(self, shape: Shape) -> bool:
        if shape.fraction_m < WHOLE_M:
            return any(self.parts(shape)) or (self.may_open() and any(self.narrow(shape)))
        return any(self.narrow(shape)) or any(self.wide(shape))

    def number(self, name: str) -> int:
        return next(number for number, host in enumerate(self.hosts) if host.name == name)

    def rank(self, name: str) -> tuple[int, int]:
        number = self.number(name)
        return len(self.free(self.hosts[number])), number

    def check_place(self, shape: Shape, found: Allocation | None) -> None:
        """The allocation is one that the rule allows, on free GPUs, and the best fit of its sort."""
        assert (found is not None) == self.fits(shape)
        if found is None:
            return
        assert found.fraction_m == shape.fraction_m
        if shape.fraction_m < WHOLE_M:
            self.check_part(shape, found)
            return
        counts = {name: len(set(gpus)) for name, gpus in found.parts}
        assert sum(counts.values()) == sum(len(gpus) for _, gpus in found.parts) == shape.gpus
        for name, gpus in found.parts:
            assert set(gpus) <= self.free(self.hosts[self.number(name)])
        narrow, wide = list(self.narrow(shape)), list(self.wide(shape))
        assert counts in narrow or counts in wide
        if counts in narrow:
            assert self.rank(next(iter(counts))) == min(self.rank(next(iter(other))) for other in narrow)
        else:
            size = self.hosts[self.number(found.parts[0][0])].gpus
            rest = [name for name, count in counts.items() if count < size]
            full = counts.keys() - set(rest)
            spare = [
                o for o in wide if o.keys() - full and all(o.get(n) == size for n in full) and len(o) == len(counts)
            ]
            others = [next(iter(o.keys() - full)) for o in spare if len(o.keys() - full) == 1]
            if rest:
                assert self.rank(rest[0]) == min(self.rank(name) for name in others)

    def check_part(self, shape: Shape, found: Allocation) -> None:
        ((name, (gpu,)),) = found.parts
        host = self.hosts[self.number(name)]
        assert found.memory_mib == self.need(host, shape)
        rooms = sorted(self.parts(shape))
        if rooms:
            left, number, *_ = rooms[0]
            assert (self.left(host)[gpu][0], self.number(name)) == (left, number)
            assert (name, gpu) in {(room[2], room[3]) for room in rooms}
        else:
            assert self.may_open()
            assert gpu in self.free(host)
            assert self.rank(name) == min(self.rank(next(iter(other))) for other in self.narrow(shape))


# -- comparing -----------------------------------------------------------------------------------------------------


def state(cluster: Cluster) -> list[Any]:
    """Everything that the cluster knows, in order: what a checkpoint would write, and the indexes."""
    hosts = [(h.spec, list(h.free), sorted(map(str, h.shared.items())), h.available) for h in cluster.hosts.values()]
    kinds = [(kind.model, kind.size, list(kind.by_free), list(kind.shared)) for kind in cluster._classes.values()]
    return [hosts, kinds, cluster.total_m, cluster.free_m, cluster._shared_count]


def compare(cluster: Cluster, book: Book) -> None:
    """GPUs, counts and indexes are those of the reference."""
    total = free = 0
    for host in book.hosts:
        mine, left = cluster.hosts[host.name], book.left(host)
        assert sorted(mine.free) == sorted(book.free(host))
        wanted = {gpu: [part, memory] for gpu, (part, memory, shared) in left.items() if shared}
        assert mine.shared == wanted
        assert mine.available == book.open[host.name]
        if book.open[host.name]:
            total += host.gpus * WHOLE_M
            free += len(book.free(host)) * WHOLE_M + sum(part for part, _ in wanted.values())
            assert (len(mine.free), mine.index) in mine.kind.by_free
    assert (cluster.total_m, cluster.free_m) == (total, free)
    assert cluster._shared_count == book.shared()
    for kind in cluster._classes.values():
        assert kind.by_free == sorted(kind.by_free)
        assert kind.shared == sorted(kind.shared)
        assert len(kind.by_free) == sum(h.available for h in cluster.hosts.values() if h.kind is kind)
        assert len(kind.shared) == sum(len(h.shared) for h in cluster.hosts.values() if h.kind is kind and h.available)


HOSTS = [
    HostSpec(name="h", gpus=4),
    HostSpec(name="h", gpus=4, model="T4", memory_mib=16_000),
    HostSpec(name="h", gpus=2, model="T4", memory_mib=16_000),
    HostSpec(name="h", gpus=2, model="A100", memory_mib=40_000),
    HostSpec(name="h", gpus=1, model="A100"),
]
SHAPES = [
    *(Shape(gpus) for gpus in (1, 2, 3, 4, 5, 6, 8, 9, 12)),
    Shape(1, gpu_type="T4"),
    Shape(3, gpu_type="A100"),
    Shape(2, memory_mib=20_000),
    Shape(1, memory_mib=50_000),
    Shape(1, 500),
    Shape(1, 300),
    Shape(1, 999),
    Shape(1, 250, "T4"),
    Shape(1, 250, None, 12_000),
    Shape(1, 100, "A100", 20_000),
]
Op = tuple[str, int, int]
OP = st.tuples(
    st.sampled_from(["take", "take", "take", "release", "toggle", "resize"]), st.integers(0, 99), st.integers(0, 99)
)


def play(kinds: list[int], limit: int | None, ops: list[Op]) -> None:
    """Play the operations on a cluster and on the reference and compare after each."""
    hosts = tuple(
        HostSpec(name=f"h{n}", gpus=HOSTS[k].gpus, model=HOSTS[k].model, memory_mib=HOSTS[k].memory_mib)
        for n, k in enumerate(kinds)
    )
    cluster, book = Cluster(hosts, limit), Book(hosts, limit)
    for shape in SHAPES:
        ever = book.fits(shape) if limit != 0 or shape.fraction_m == WHOLE_M else False
        assert cluster.can_ever_fit(shape) == ever
    for op in ops:
        step(cluster, book, op)
        compare(cluster, book)
    before = state(cluster)
    for shape in SHAPES:
        assert cluster.fits(shape) == book.fits(shape)
        book.check_place(shape, cluster.place(shape))
    check_without(cluster, book)
    assert state(cluster) == before
    for allocation in list(book.held):
        cluster.release(allocation)
        book.held.remove(allocation)
    compare(cluster, book)
    assert all(sorted(host.free) == list(range(host.spec.gpus)) for host in cluster.hosts.values())


def step(cluster: Cluster, book: Book, op: Op) -> None:
    kind, x, y = op
    if kind == "take":
        shape = SHAPES[x % len(SHAPES)]
        found = cluster.place(shape)
        book.check_place(shape, found)
        if found is not None:
            before = state(cluster)
            cluster.take(found)
            cluster.release(found)
            assert state(cluster) == before
            cluster.take(found)
            book.held.append(found)
    elif kind == "toggle":
        name = book.hosts[x % len(book.hosts)].name
        book.open[name] = not book.open[name]
        cluster.set_available(name, available=book.open[name])
    elif kind == "release" and book.held:
        cluster.release(book.held.pop(x % len(book.held)))
    elif kind == "resize":
        shared = [allocation for allocation in book.held if allocation.fraction_m < WHOLE_M]
        if shared:
            resize(cluster, book, shared[x % len(shared)], 1 + y * 10)


def resize(cluster: Cluster, book: Book, allocation: Allocation, fraction_m: int) -> None:
    ((name, (gpu,)),) = allocation.parts
    room = book.left(book.hosts[book.number(name)])[gpu][0] >= fraction_m - allocation.fraction_m
    assert cluster.may_grow(allocation, fraction_m) == room
    if not room:
        before = state(cluster)
        with pytest.raises(ValueError, match=name):
            cluster.resize(allocation, fraction_m)
        assert state(cluster) == before
        return
    book.held[book.held.index(allocation)] = cluster.resize(allocation, fraction_m)


def check_without(cluster: Cluster, book: Book) -> None:
    """`fits_without` and `place_without` answer as if some allocations were gone, and leave no trace."""
    for chosen in (book.held[::2], book.held[1::2], book.held[::-1], book.held[:1]):
        before = state(cluster)
        less = Book(book.hosts, book.limit)
        less.open, less.held = book.open, [a for a in book.held if not any(a is c for c in chosen)]
        for shape in SHAPES[::3]:
            assert cluster.fits_without(shape, chosen) == less.fits(shape)
            assert state(cluster) == before
            less.check_place(shape, cluster.place_without(shape, chosen))
            assert state(cluster) == before
            if less.fits(shape) and (book.limit is None or shape.fraction_m == WHOLE_M):
                check_lacking(deepcopy(cluster), shape, chosen)


def check_lacking(cluster: Cluster, shape: Shape, chosen: list[Allocation]) -> None:
    """Once what is lacking is taken the shape has its place, whatever becomes of the rest that is free."""
    lacking = cluster.lacking(shape, chosen)
    for allocation in lacking:
        cluster.take(allocation)
    for other in (Shape(1), Shape(1, 50)):
        while (found := cluster.place(other)) is not None:
            cluster.take(found)
    assert cluster.fits_without(shape, [*chosen, *lacking])


@settings(max_examples=300, deadline=None)
@given(
    kinds=st.lists(st.integers(0, len(HOSTS) - 1), min_size=1, max_size=5),
    limit=st.sampled_from([None, None, 0, 1, 2]),
    ops=st.lists(OP, min_size=6, max_size=22),
)
def test_placement_is_that_of_trying_everything(kinds: list[int], limit: int | None, ops: list[Op]) -> None:
    """Any hosts, any history: fits iff some assignment exists, best fit chosen, everything given back is back."""
    play(kinds, limit, ops)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(0, 2),
    count=st.integers(1, 4),
    ops=st.lists(OP, min_size=6, max_size=22),
)
def test_placement_on_hosts_that_are_all_alike(size: int, count: int, ops: list[Op]) -> None:
    """The usual cluster, on which wide requests happen more often."""
    play([size] * count, None, ops)


# -- planted faults ------------------------------------------------------------------------------------------------


def emptiest(kind: _Class, gpus: int) -> tuple[int, int] | None:
    return kind.by_free[-1] if kind.by_free and kind.by_free[-1][0] >= gpus else None


def no_memory(kind: _Class, shape: Shape) -> int:
    return 0


def serves_all(self: _Class, shape: Shape) -> bool:
    return True


def always(self: Cluster) -> bool:
    return True


def half_released(self: Cluster, allocation: Allocation) -> None:
    RELEASE(self, allocation._replace(parts=allocation.parts[:1]))


def any_room(self: Cluster, allocation: Allocation, fraction_m: int) -> bool:
    return True


def dirty(self: Cluster, shape: Shape, allocations: list[Allocation]) -> bool:
    for allocation in allocations:
        self.release(allocation)
    fits = self.fits(shape)
    for allocation in allocations[1:]:
        self.take(allocation)
    return fits


def nothing(self: Cluster, shape: Shape, allocations: list[Allocation]) -> tuple[Allocation, ...]:
    return ()


RELEASE = Cluster.release
FAULTS: dict[str, tuple[type[Any], str, Any]] = {
    "worst fit": (Cluster, "_fullest", staticmethod(emptiest)),
    "memory not counted": (Cluster, "_memory", staticmethod(no_memory)),
    "any model": (_Class, "serves", serves_all),
    "limit ignored": (Cluster, "_may_open", always),
    "half released": (Cluster, "release", half_released),
    "grows into others": (Cluster, "may_grow", any_room),
    "trial leaves a trace": (Cluster, "fits_without", dirty),
    "nothing is lacking": (Cluster, "lacking", nothing),
}


def play_seeds(number: int) -> None:
    """So many random histories, the same each time."""
    words = ["take", "take", "take", "release", "toggle", "resize"]
    for seed in range(number):
        draw = random.Random(seed)
        kinds = [draw.randrange(len(HOSTS)) for _ in range(draw.randint(1, 4))]
        ops = [(draw.choice(words), draw.randrange(99), draw.randrange(99)) for _ in range(15)]
        play(kinds, draw.choice([None, 1]), ops)


def test_without_a_fault_nothing_is_found() -> None:
    """The same histories pass on the code as it is."""
    play_seeds(50)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes is found by the comparison within a few hundred random histories."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises((AssertionError, ValueError, KeyError)):
        play_seeds(300)


# -- examples ------------------------------------------------------------------------------------------------------


def cluster_of(count: int, gpus: int, **more: Any) -> Cluster:
    return Cluster(tuple(HostSpec(name=f"h{n}", gpus=gpus, **more) for n in range(count)))


def taken(cluster: Cluster, *shapes: Shape) -> list[Allocation | None]:
    found = []
    for shape in shapes:
        allocation = cluster.place(shape)
        if allocation is not None:
            cluster.take(allocation)
        found.append(allocation)
    return found


def where(allocation: Allocation | None) -> dict[str, int] | None:
    return None if allocation is None else {host: len(gpus) for host, gpus in allocation.parts}


def test_small_requests_fill_the_fullest_host() -> None:
    """5 and 2 leave 3 and 6 of 8; 3 go to the first, and then 1 to the second."""
    cluster = cluster_of(3, 8)
    found = taken(cluster, Shape(5), Shape(6), Shape(3), Shape(2), Shape(1))
    assert list(map(where, found)) == [{"h0": 5}, {"h1": 6}, {"h0": 3}, {"h1": 2}, {"h2": 1}]


def test_multiples_of_a_host_take_empty_hosts_and_the_rest_one_more() -> None:
    """20 on hosts of 8: two empty ones and 4 on the fullest that has them; without two empty ones it waits."""
    cluster = cluster_of(4, 8)
    taken(cluster, Shape(3))
    assert where(cluster.place(Shape(20))) == {"h1": 8, "h2": 8, "h0": 4}
    assert where(cluster.place(Shape(24))) == {"h1": 8, "h2": 8, "h3": 8}
    assert cluster.place(Shape(30)) is None
    assert cluster.can_ever_fit(Shape(30))
    assert not cluster.can_ever_fit(Shape(33))
    taken(cluster, Shape(7), Shape(7))
    assert cluster.place(Shape(16)) is None
    assert cluster.free_m >= 15 * WHOLE_M


def test_a_pool_has_no_boundaries() -> None:
    """One host of 768: any number that is free fits."""
    cluster = cluster_of(1, 768)
    taken(cluster, Shape(1), Shape(760))
    assert where(cluster.place(Shape(7))) == {"h0": 7}
    assert cluster.place(Shape(8)) is None


def test_a_model_or_memory_that_no_host_has_fits_nowhere() -> None:
    """Asked for more than the hosts have; hosts without a model or memory serve any."""
    named = cluster_of(2, 2, model="T4", memory_mib=16_000)
    assert not named.can_ever_fit(Shape(1, gpu_type="A100"))
    assert not named.can_ever_fit(Shape(1, memory_mib=16_001))
    assert named.can_ever_fit(Shape(2, gpu_type="T4", memory_mib=16_000))
    plain = cluster_of(2, 2)
    assert plain.can_ever_fit(Shape(2, gpu_type="A100", memory_mib=10**6))


def test_a_fraction_goes_to_the_fullest_shared_gpu_with_room_and_memory() -> None:
    """300 left on one GPU and 500 on the other: 250 go to the first, unless its memory is taken."""
    cluster = cluster_of(1, 3, memory_mib=10_000)
    first, second, third = taken(cluster, Shape(1, 700, None, 9_000), Shape(1, 500), Shape(1, 250, None, 500))
    assert first is not None
    assert second is not None
    assert third is not None
    assert third.parts == first.parts
    (fourth,) = taken(cluster, Shape(1, 50, None, 800))
    assert fourth is not None
    assert fourth.parts == second.parts
    assert cluster.free_m == 3000 - 700 - 500 - 250 - 50


def test_an_unstated_memory_is_the_fraction_of_the_gpu() -> None:
    """Half a GPU of 10,000 MiB takes 5,000 of them."""
    cluster = cluster_of(1, 1, memory_mib=10_000)
    (half,) = taken(cluster, Shape(1, 500))
    assert half is not None
    assert half.memory_mib == 5_000
    assert cluster.fits(Shape(1, 500))
    assert not cluster.fits(Shape(1, 400, None, 5_001))


def test_the_last_fraction_that_leaves_makes_the_gpu_whole_again() -> None:
    """While a part is held no whole GPU fits; afterwards it does, also for the limit on shared GPUs."""
    cluster = Cluster((HostSpec(name="h", gpus=1),), shared_limit=1)
    one, two = taken(cluster, Shape(1, 400), Shape(1, 600))
    assert one is not None
    assert two is not None
    cluster.release(one)
    assert not cluster.fits(Shape(1))
    cluster.release(two)
    assert where(cluster.place(Shape(1))) == {"h": 1}
    assert cluster.fits(Shape(1, 1))


@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.take(Allocation((("h0", (0,)),), WHOLE_M, 0)),
        lambda c: c.take(Allocation((("h0", (7,)),), WHOLE_M, 0)),
        lambda c: c.take(Allocation((("h1", (1, 1)),), WHOLE_M, 0)),
        lambda c: c.take(Allocation((("h0", (1,)),), 900, 0)),
        lambda c: c.add_host(HostSpec(name="h0", gpus=1)),
    ],
    ids=["held", "no such GPU", "twice the same", "no such room", "host twice"],
)
def test_what_is_not_free_cannot_be_taken(act: Callable[[Cluster], None]) -> None:
    """Refused by ValueError, and nothing has changed."""
    cluster = cluster_of(2, 2)
    taken(cluster, Shape(1), Shape(1, 200))
    before = state(cluster)
    with pytest.raises(ValueError, match=r"h[01]"):
        act(cluster)
    assert state(cluster) == before
