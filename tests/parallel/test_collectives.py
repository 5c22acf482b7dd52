"""The alpha-beta costs of collectives: by hand, and what must hold of any."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import ConfigError
from jaxserve.parallel.collectives import collective_s
from jaxserve.parallel.devices import COLLECTIVES, DEVICES, Link

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-3)
devices = st.sampled_from(list(DEVICES.values()))
kinds = st.sampled_from(sorted(COLLECTIVES))
sizes = st.floats(0, 1e12)
counts = st.integers(1, 64)


@pytest.mark.parametrize(
    ("kind", "expected_s"),
    [
        # 4 devices, 4 MB: a step moves 1 MB in 1 ms, after 1 ms.
        ("all_gather", 3 * 2e-3),
        ("reduce_scatter", 3 * 2e-3),
        ("all_to_all", 3 * 2e-3),
        ("all_reduce", 6 * 2e-3),
        ("collective_permute", 5e-3),  # all of it in one step
    ],
)
def test_by_hand(kind, expected_s):
    device = dataclasses.replace(DEVICES["a100"], inside_host=LINK)
    assert collective_s(device, kind, 4e6, 4) == pytest.approx(device.overhead_s + expected_s)


def test_beyond_a_host_the_network_is_what_counts():
    device = dataclasses.replace(DEVICES["a100"], between_hosts=LINK)
    assert collective_s(device, "all_gather", 16e6, 16) == pytest.approx(device.overhead_s + 15 * 2e-3)


@given(devices, kinds, sizes)
def test_one_device_has_nobody_to_talk_to(device, kind, nbytes):
    assert collective_s(device, kind, nbytes, 1) == 0


@given(devices, kinds, sizes, sizes, counts)
def test_more_bytes_are_never_cheaper(device, kind, nbytes, more, count):
    less_s, more_s = (collective_s(device, kind, each, count) for each in sorted((nbytes, more)))
    assert 0 <= less_s <= more_s


@given(devices, kinds, sizes, counts, counts)
def test_more_devices_are_never_cheaper_for_the_same_bytes_on_each(device, kind, nbytes, count, more):
    few_s, many_s = (collective_s(device, kind, nbytes, each) for each in sorted((count, more)))
    assert few_s <= many_s * (1 + 1e-12)


@given(devices, sizes, counts)
def test_an_all_reduce_costs_no_more_than_its_two_halves(device, nbytes, count):
    halves_s = sum(collective_s(device, kind, nbytes, count) for kind in ("reduce_scatter", "all_gather"))
    assert collective_s(device, "all_reduce", nbytes, count) <= halves_s * (1 + 1e-12)


def test_what_a_backend_lacks_is_done_by_what_it_has():
    cpu = DEVICES["cpu"]
    assert collective_s(cpu, "reduce_scatter", 1e6, 4) == collective_s(cpu, "all_reduce", 1e6, 4)
    bare = dataclasses.replace(cpu, collectives=frozenset({"all_reduce"}))
    assert collective_s(bare, "all_gather", 1e6, 4) == collective_s(cpu, "all_reduce", 1e6, 4)
    lacking = dataclasses.replace(cpu, collectives=COLLECTIVES - {"all_to_all"})
    assert collective_s(lacking, "all_to_all", 1e6, 4) == collective_s(cpu, "all_gather", 4e6, 4)


def test_unknown_collective():
    with pytest.raises(ConfigError, match=r"no collective is called 'all_reduced'; choose one of all_gather, all_redu"):
        collective_s(DEVICES["cpu"], "all_reduced", 1.0, 2)
