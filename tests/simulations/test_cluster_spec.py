"""Clusters from the command line: what is read, and what is refused with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import BadInput
from simulations import cluster_spec


def test_a_pool_is_one_host_without_model() -> None:
    """`--gpus N` has no host boundaries, no model and no memory to check."""
    (host,) = cluster_spec.pool(768)
    assert (host.host, host.gpus, host.model, host.memory_mib) == ("pool", 768, None, None)


def test_groups_of_hosts_are_numbered_through() -> None:
    """Groups join in the order given; memory is GiB, kept in MiB."""
    hosts = cluster_spec.hosts("2x8:A100:80,1x4:T4,1x2")
    assert [(h.host, h.gpus, h.model, h.memory_mib) for h in hosts] == [
        ("h000", 8, "A100", 81920),
        ("h001", 8, "A100", 81920),
        ("h002", 4, "T4", None),
        ("h003", 2, None, None),
    ]


@pytest.mark.parametrize("gpus", [0, -1, 100_001, 10**30])
def test_an_impossible_pool_names_the_option_and_the_range(gpus: int) -> None:
    """Nobody simulates no GPUs, or more than the largest cluster."""
    with pytest.raises(BadInput, match=r"--gpus -?\d+ must be within 1\.\.100000"):
        cluster_spec.pool(gpus)


@pytest.mark.parametrize(
    "text",
    ["", "8", "0x4", "4x0", "-1x4", "axb", "4X4", "4x4:", "4x4:T4:0", "4x4:T4:nan", "4x4,", "4x4:T4:16:1", "4 x 4"],
)
def test_an_impossible_cluster_is_named(text: str) -> None:
    """Each message repeats what was given."""
    with pytest.raises(BadInput) as caught:
        cluster_spec.hosts(text)
    assert f"--hosts {text!r}" in caught.value.message


def test_the_limit_holds_for_all_groups_together() -> None:
    """A long list of groups cannot get past the largest cluster."""
    with pytest.raises(BadInput, match="within"):
        cluster_spec.hosts(",".join(["1000x100"] * 2))


@given(st.integers(1, 50), st.integers(1, 16), st.integers(1, 50))
def test_every_good_spec_gives_as_many_gpus_as_it_says(hosts: int, gpus: int, more: int) -> None:
    """H x G GPUs on H hosts of different names."""
    joined = cluster_spec.hosts(f"{hosts}x{gpus},{more}x1")
    assert sum(host.gpus for host in joined) == hosts * gpus + more
    assert len({host.host for host in joined}) == hosts + more
