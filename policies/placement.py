"""Where a session can go: hosts by `consolidate`, one pool without host boundaries, fractions of shared GPUs.

A pool is a cluster of one host. Best fit throughout: the fullest host that fits, the fullest shared GPU that fits, so
that wide requests find room later. Indexes are sorted lists that change by one entry when a host's free count does;
a fit test is a bisection.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.model import WHOLE_M, Allocation, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """What a host brings: `gpus` >= 1 alike; model None = serves any; memory_mib per GPU, None = unchecked."""

    name: str
    gpus: int
    model: str | None = None
    memory_mib: int | None = None


WIDE = 1 << 30
"""Fullness rank of a placement over several hosts: any single host that fits comes first."""


class _Class:
    """Hosts of one model, memory and size: those that may get something new, by free GPUs."""

    __slots__ = ("by_free", "memory_mib", "model", "shared", "size")

    def __init__(self, spec: HostSpec) -> None:
        self.model = spec.model
        self.memory_mib = spec.memory_mib
        self.size = spec.gpus
        self.by_free: list[tuple[int, int]] = []  # (free whole GPUs, host)
        self.shared: list[tuple[int, int, int]] = []  # (free thousandths, host, GPU)

    def serves(self, shape: Shape) -> bool:
        """Model and memory suit the shape."""
        if shape.gpu_type is not None and self.model is not None and shape.gpu_type != self.model:
            return False
        return shape.memory_mib is None or self.memory_mib is None or shape.memory_mib <= self.memory_mib


class _Host:
    """Free and shared GPUs of one host."""

    __slots__ = ("available", "free", "index", "kind", "shared", "spec")

    def __init__(self, spec: HostSpec, index: int, kind: _Class) -> None:
        self.spec = spec
        self.kind = kind
        self.index = index
        self.free = list(range(spec.gpus - 1, -1, -1))
        self.shared: dict[int, list[int]] = {}  # GPU -> [free thousandths, free MiB]
        self.available = False


Given = dict[str, dict[int, tuple[int, int]]]
"""By host and GPU number: (thousandths, MiB) of it."""


def _by_gpu(allocations: Iterable[Allocation]) -> Given:
    """What allocations hold of each GPU, together."""
    found: Given = {}
    for allocation in allocations:
        for name, gpus in allocation.parts:
            parts = found.setdefault(name, {})
            for gpu in gpus:
                fraction, memory = parts.get(gpu, (0, 0))
                parts[gpu] = fraction + allocation.fraction_m, memory + allocation.memory_mib
    return found


class Cluster:
    """Every GPU: free, held whole, or shared; and what fits where.

    Attributes:
        total_m, free_m: thousandths of a GPU on hosts that may get something new, and the free part of them.
        shared_limit: at most so many GPUs are shared at once; None = any GPU not held whole.
    """

    def __init__(self, hosts: tuple[HostSpec, ...] = (), shared_limit: int | None = None) -> None:
        self.hosts: dict[str, _Host] = {}
        self.shared_limit = shared_limit
        self.total_m = 0
        self.free_m = 0
        self._order: list[_Host] = []
        self._classes: dict[tuple[str | None, int | None, int], _Class] = {}
        self._shared_count = 0
        self._only: _Class | None = None  # the class of all hosts, where they are alike
        for spec in hosts:
            self.add_host(spec)

    # -- hosts ---------------------------------------------------------------------------------------------------

    def add_host(
        self, spec: HostSpec, *, free: list[int] | None = None, shared: dict[int, list[int]] | None = None
    ) -> None:
        """A host joins, with all its GPUs free unless a checkpoint says which are, and which are shared."""
        if spec.name in self.hosts:
            raise ValueError(f"host {spec.name} has joined already")
        kind = self._classes.setdefault((spec.model, spec.memory_mib, spec.gpus), _Class(spec))
        self._only = kind if len(self._classes) == 1 else None
        host = _Host(spec, len(self._order), kind)
        if free is not None:
            host.free = free
        if shared is not None:
            host.shared = shared
            self._shared_count += len(shared)
        self._order.append(host)
        self.hosts[spec.name] = host
        self.set_available(spec.name, available=True)

    def replace_host(self, spec: HostSpec) -> None:
        """A host comes back with other GPUs; ValueError while anything of the old ones is held."""
        host = self.hosts[spec.name]
        if host.shared or len(host.free) < host.spec.gpus:
            raise ValueError(f"host {spec.name} still holds sessions on its {host.spec.gpus} GPUs")
        self.set_available(spec.name, available=False)
        old, host.spec = host.kind, spec
        host.kind = self._classes.setdefault((spec.model, spec.memory_mib, spec.gpus), _Class(spec))
        host.free = list(range(spec.gpus - 1, -1, -1))
        if not any(other.kind is old for other in self._order):
            del self._classes[old.model, old.memory_mib, old.size]
        self._only = host.kind if len(self._classes) == 1 else None
        self.set_available(spec.name, available=True)

    def set_available(self, name: str, *, available: bool) -> None:
        """Whether the host may get something new (False while drained or silent)."""
        host = self.hosts[name]
        if host.available == available:
            return
        kind = host.kind
        free_m = self._free_m(host)
        if available:
            insort(kind.by_free, (len(host.free), host.index))
            for gpu, (left, _) in host.shared.items():
                insort(kind.shared, (left, host.index, gpu))
        else:
            kind.by_free.remove((len(host.free), host.index))
            kind.shared = [entry for entry in kind.shared if entry[1] != host.index]
        host.available = available
        sign = 1 if available else -1
        self.total_m += sign * host.spec.gpus * WHOLE_M
        self.free_m += sign * free_m

    def weight_models(self) -> set[str | None]:
        """GPU models present."""
        return {kind.model for kind in self._classes.values()}

    # -- fit -----------------------------------------------------------------------------------------------------

    def can_ever_fit(self, shape: Shape) -> bool:
        """Whether the shape would fit if every GPU of every host were free."""
        if shape.fraction_m < WHOLE_M:
            return self.shared_limit != 0 and any(kind.serves(shape) for kind in self._classes.values())
        for kind in self._classes.values():
            if not kind.serves(shape):
                continue
            hosts = sum(1 for host in self._order if host.kind is kind)
            if shape.gpus <= kind.size or -(-shape.gpus // kind.size) <= hosts:
                return True
        return False

    def fits(self, shape: Shape) -> bool:
        """Whether `place` would find room now."""
        gpus = shape.gpus
        if shape.fraction_m == WHOLE_M and gpus * WHOLE_M > self.free_m:
            return False
        for kind in self._classes.values():
            if not kind.serves(shape):
                continue
            if shape.fraction_m < WHOLE_M:
                if self._shared_slot(kind, shape) is not None or (self._may_open() and self._fullest(kind, 1)):
                    return True
            elif gpus <= kind.size:
                if kind.by_free and kind.by_free[-1][0] >= gpus:
                    return True
            elif self._wide(kind, gpus) is not None:
                return True
        return False

    def fits_without(self, shape: Shape, allocations: Sequence[Allocation]) -> bool:
        """Whether the shape would fit if these allocations were given back (they are taken again before returning)."""
        for allocation in allocations:
            self.release(allocation)
        fits = self.fits(shape)
        for allocation in reversed(allocations):
            self.take(allocation)
        return fits

    def may_grow(self, allocation: Allocation, fraction_m: int) -> bool:
        """Whether the shared GPU of an allocation has room to grant this fraction of it."""
        (name, (gpu,)) = allocation.parts[0]
        return self.hosts[name].shared[gpu][0] >= fraction_m - allocation.fraction_m

    def place_without(self, shape: Shape, allocations: Sequence[Allocation]) -> Allocation | None:
        """Like `place`, as if these allocations had been given back."""
        for allocation in allocations:
            self.release(allocation)
        found = self.place(shape)
        for allocation in reversed(allocations):
            self.take(allocation)
        return found

    def lacking(self, shape: Shape, allocations: Sequence[Allocation]) -> tuple[Allocation, ...]:
        """What the shape needs of the GPUs that are free now, to fit for sure once these allocations are given back.

        Empty when they are enough by themselves, and when it would not fit at all. The right to open one more shared
        GPU where `shared_limit` is reached is not kept.
        """
        found = self.place_without(shape, allocations)
        given = _by_gpu(allocations)
        if found is None or self._only_with(given).fits(shape):
            return ()
        lacking: list[Allocation] = []
        for name, gpus in found.parts:
            parts = given.get(name, {})
            untouched = tuple(gpu for gpu in gpus if gpu not in parts)
            if untouched:
                lacking.append(found._replace(parts=((name, untouched),)))
            for gpu in gpus:
                fraction, memory = parts.get(gpu, (found.fraction_m, 0))
                if fraction < found.fraction_m:
                    rest = max(0, found.memory_mib - memory)
                    lacking.append(Allocation(((name, (gpu,)),), found.fraction_m - fraction, rest))
        return tuple(lacking)

    def _only_with(self, given: Given) -> Cluster:
        """These hosts with nothing free but these parts of GPUs."""
        less = Cluster()
        for name, parts in given.items():
            host = self.hosts[name]
            free = [gpu for gpu, (fraction, _) in parts.items() if fraction == WHOLE_M]
            shared = {gpu: list(part) for gpu, part in parts.items() if part[0] < WHOLE_M}
            less.add_host(host.spec, free=free, shared=shared)
            less.set_available(name, available=host.available)
        return less

    def place(self, shape: Shape) -> Allocation | None:
        """The GPUs that the shape would get now; nothing is taken."""
        if self._only is not None:
            one = self._place_in(self._only, shape) if self._only.serves(shape) else None
            return one[1] if one is not None else None
        best: tuple[tuple[int, int], Allocation] | None = None
        for kind in self._classes.values():
            found = self._place_in(kind, shape) if kind.serves(shape) else None
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best[1] if best else None

    def _place_in(self, kind: _Class, shape: Shape) -> tuple[tuple[int, int], Allocation] | None:
        """((fullness rank, host), allocation) within one class."""
        memory = 0
        if shape.fraction_m < WHOLE_M:
            memory = self._memory(kind, shape)
            slot = self._shared_slot(kind, shape)
            if slot is not None:
                left, index, gpu = slot
                return (left - WHOLE_M, index), self._allocation([(index, (gpu,))], shape.fraction_m, memory)
            if not self._may_open():
                return None
        if shape.gpus > kind.size:
            wide = self._wide(kind, shape.gpus)
            if wide is None:
                return None
            parts = [(index, tuple(self._order[index].free[: -count - 1 : -1])) for index, count in wide]
            return (WIDE, wide[0][0]), self._allocation(parts, WHOLE_M, memory)
        entry = self._fullest(kind, shape.gpus)
        if entry is None:
            return None
        free = self._order[entry[1]].free
        gpus = tuple(free[: -shape.gpus - 1 : -1])
        return entry, Allocation(((self._order[entry[1]].spec.name, gpus),), shape.fraction_m, memory)

    def _allocation(self, parts: list[tuple[int, tuple[int, ...]]], fraction_m: int, memory: int) -> Allocation:
        return Allocation(tuple((self._order[index].spec.name, gpus) for index, gpus in parts), fraction_m, memory)

    @staticmethod
    def _fullest(kind: _Class, gpus: int) -> tuple[int, int] | None:
        """The host with the fewest free GPUs that still has `gpus`; ties by host order."""
        at = bisect_left(kind.by_free, (gpus, -1))
        return kind.by_free[at] if at < len(kind.by_free) else None

    def _wide(self, kind: _Class, gpus: int) -> list[tuple[int, int]] | None:
        """Empty hosts for the multiples of a host's size, one more (the fullest that fits) for the remainder."""
        whole, rest = divmod(gpus, kind.size)
        at = bisect_left(kind.by_free, (kind.size, -1))
        empty = [index for _, index in kind.by_free[at : at + whole]]
        if len(empty) < whole:
            return None
        parts = [(index, kind.size) for index in empty]
        if rest:
            start = bisect_left(kind.by_free, (rest, -1))
            spare = next((index for _, index in kind.by_free[start:] if index not in empty), None)
            if spare is None:
                return None
            parts.append((spare, rest))
        return parts

    def _shared_slot(self, kind: _Class, shape: Shape) -> tuple[int, int, int] | None:
        """The fullest shared GPU with room for the fraction and its memory."""
        at = bisect_left(kind.shared, (shape.fraction_m, -1, -1))
        for left, index, gpu in kind.shared[at:]:
            if kind.memory_mib is None or self._order[index].shared[gpu][1] >= self._memory(kind, shape):
                return left, index, gpu
        return None

    def _may_open(self) -> bool:
        """Whether one more GPU may be shared."""
        return self.shared_limit is None or self._shared_count < self.shared_limit

    @staticmethod
    def _memory(kind: _Class, shape: Shape) -> int:
        """MiB that the shape takes of a shared GPU; what was not stated is its fraction of the memory."""
        if shape.memory_mib is not None:
            return shape.memory_mib
        return (kind.memory_mib or 0) * shape.fraction_m // WHOLE_M

    # -- take and give back --------------------------------------------------------------------------------------

    def take(self, allocation: Allocation) -> None:
        """Hold the GPUs of an allocation that `place` named; ValueError when one of them is not free."""
        for name, gpus in allocation.parts:
            host = self.hosts[name]
            if allocation.fraction_m < WHOLE_M:
                self._take_fraction(host, gpus[0], allocation)
            else:
                self._take_whole(host, gpus)

    def release(self, allocation: Allocation) -> None:
        """Give back what an allocation holds."""
        for name, gpus in allocation.parts:
            host = self.hosts[name]
            if allocation.fraction_m < WHOLE_M:
                self._release_fraction(host, gpus[0], allocation)
            else:
                host.free.extend(reversed(gpus))
                self._refile(host, -len(gpus))

    def resize(self, allocation: Allocation, fraction_m: int) -> Allocation:
        """Change the fraction of a shared GPU that an allocation holds; ValueError when there is no room to grow."""
        (name, (gpu,)), host = allocation.parts[0], self.hosts[allocation.parts[0][0]]
        left, memory = host.shared[gpu]
        gain = allocation.fraction_m - fraction_m
        if left + gain < 0:
            raise ValueError(f"GPU {gpu} of host {name} has {left} thousandths left, {-gain} more asked")
        self._refile_shared(host, gpu, left + gain, memory)
        return allocation._replace(fraction_m=fraction_m)

    def _take_whole(self, host: _Host, gpus: tuple[int, ...]) -> None:
        free = host.free
        count = len(gpus)
        if tuple(free[: -count - 1 : -1]) == gpus:
            del free[-count:]
            self._refile(host, count)
            return
        missing = set(gpus) - set(free)
        if missing or len(set(gpus)) != count:
            raise ValueError(f"GPUs {sorted(missing)} of host {host.spec.name} are not free")
        host.free = [gpu for gpu in free if gpu not in gpus]
        self._refile(host, count)

    def _take_fraction(self, host: _Host, gpu: int, allocation: Allocation) -> None:
        if gpu not in host.shared:
            self._take_whole(host, (gpu,))
            self._shared_count += 1
            host.shared[gpu] = [0, 0]
            kind = host.kind
            if host.available:
                insort(kind.shared, (0, host.index, gpu))
            self._refile_shared(host, gpu, WHOLE_M, kind.memory_mib or 0)
        left, memory = host.shared[gpu]
        need = self._fraction_memory(host, allocation)
        if left < allocation.fraction_m or memory < need:
            raise ValueError(f"GPU {gpu} of host {host.spec.name} has {left} thousandths and {memory} MiB left")
        self._refile_shared(host, gpu, left - allocation.fraction_m, memory - need)

    def _release_fraction(self, host: _Host, gpu: int, allocation: Allocation) -> None:
        left, memory = host.shared[gpu]
        left += allocation.fraction_m
        self._refile_shared(host, gpu, left, memory + self._fraction_memory(host, allocation))
        if left == WHOLE_M:
            self._refile_shared(host, gpu, 0, 0)
            if host.available:
                host.kind.shared.remove((0, host.index, gpu))
            del host.shared[gpu]
            self._shared_count -= 1
            host.free.append(gpu)
            self._refile(host, -1)

    def _fraction_memory(self, host: _Host, allocation: Allocation) -> int:
        """MiB that a shared allocation occupies, 0 where memory is unchecked (kept as `memory_mib` when placed)."""
        return 0 if host.spec.memory_mib is None else allocation.memory_mib

    def _refile(self, host: _Host, taken: int) -> None:
        """Move a host in its class's index after `taken` GPUs (negative: given back) left its list of free ones."""
        if not host.available:
            return
        after = len(host.free)
        by_free = host.kind.by_free
        if len(by_free) == 1:
            by_free[0] = (after, host.index)
        else:
            del by_free[bisect_left(by_free, (after + taken, host.index))]
            insort(by_free, (after, host.index))
        self.free_m -= taken * WHOLE_M

    def _refile_shared(self, host: _Host, gpu: int, left: int, memory: int) -> None:
        before = host.shared[gpu][0]
        host.shared[gpu] = [left, memory]
        if not host.available:
            return
        shared = host.kind.shared
        shared.remove((before, host.index, gpu))
        insort(shared, (left, host.index, gpu))
        self.free_m += left - before

    @staticmethod
    def _free_m(host: _Host) -> int:
        free = len(host.free) * WHOLE_M
        for left, _ in host.shared.values():
            free += left
        return free
