"""Steps keep to the memory and to the devices, whatever is drawn; devices are assigned within hosts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import PlacementError
from jaxserve.placement.devices import assign_devices
from jaxserve.placement.moves import Moves, worth_holding
from jaxserve.plans import ParallelConfig
from tests.placement.small import problem

PROBLEM = problem(models=9, devices=8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), reshape=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_step_is_a_placement(seed: int, reshape: float) -> None:
    rng = np.random.default_rng(seed)
    moves = Moves(PROBLEM, reshape=reshape)
    tables, fleet = PROBLEM.tables, PROBLEM.fleet
    shape = PROBLEM.empty([tables.configs.index(ParallelConfig(1, 2))] * 4 + [-1] * 3)
    fits = worth_holding(PROBLEM)
    for _ in range(30):
        before = shape.config.copy(), shape.held.copy()
        changed = moves.step(shape, rng.random(len(fleet.models)), rng)
        np.testing.assert_array_equal(shape.config, before[0])
        np.testing.assert_array_equal(shape.held, before[1])
        if changed is None:
            continue
        shape = changed
        used = shape.config >= 0
        assert tables.devices[shape.config[used]].sum() <= fleet.devices
        assert not shape.held[~used].any()
        for config, held in zip(shape.config[used], shape.held[used].astype(bool), strict=True):
            assert (tables.weight_bytes[config][held].sum(axis=0) <= fleet.memory_bytes).all()
            assert fits[config][held].all()
        PROBLEM.placement(shape)


def test_a_full_group_has_no_room_for_what_is_wanted() -> None:
    moves = Moves(PROBLEM, reshape=0.0)
    shape = PROBLEM.empty([PROBLEM.tables.configs.index(ParallelConfig(1, 1))])
    wanted = np.arange(9, dtype=np.float64)
    first = moves.most_wanted(shape, 0, wanted)
    assert first == 8  # a large one, 90 of 100 bytes
    shape.held[0, first] = 1
    assert moves.most_wanted(shape, 0, wanted) is None


@pytest.mark.parametrize(
    ("configs", "devices", "expected"),
    [
        ([(1, 2), (2, 1)], 4, [(2, 3), (0, 1)]),
        ([(4, 1), (4, 1)], 8, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ([(1, 8)], 8, [tuple(range(8))]),
        ([(1, 1), (1, 3), (1, 4)], 8, [(7,), (4, 5, 6), (0, 1, 2, 3)]),
    ],
)
def test_devices(configs: list[tuple[int, int]], devices: int, expected: list[tuple[int, ...]]) -> None:
    found = assign_devices([ParallelConfig(*each) for each in configs], devices=devices, devices_per_host=4)
    assert found == expected


@pytest.mark.parametrize(
    ("configs", "problem"),
    [
        ([(1, 4), (1, 1)], "the groups need 5 devices, but the cluster has 4"),
        ([(3, 1)], "group 0 has stages of 3 devices, but no host of 2 has so many left"),
    ],
)
def test_groups_that_do_not_fit(configs: list[tuple[int, int]], problem: str) -> None:
    with pytest.raises(PlacementError, match=problem):
        assign_devices([ParallelConfig(*each) for each in configs], devices=4, devices_per_host=2)
