"""What it costs to lay an array out differently is what compiled programs send."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.parallel.hlo import collectives
from jaxserve.parallel.layout import (
    AXES,
    LogicalMesh,
    fits,
    mesh_shapes,
    partition_spec,
    resharding,
    resharding_s,
)
from jaxserve.parallel.rules import NONE
from tests.parallel.programs import CPU, H100, wire_bytes

SHAPE = (64, 64)
NBYTES = 4.0 * math.prod(SHAPE)
SPECS = tuple(itertools.product((NONE, 0, 1), repeat=2))
MESH = LogicalMesh(shape=(2, 4), device=H100)

specs = st.sampled_from(SPECS)


@pytest.fixture(scope="module")
def devices():
    return Mesh(np.array(jax.devices()).reshape(MESH.shape), AXES, axis_types=(AxisType.Auto,) * 2)


def compiled_bytes(devices, source, target):
    shardings = [NamedSharding(devices, partition_spec(spec)) for spec in (source, target)]
    jitted = jax.jit(lambda x: x, in_shardings=shardings[0], out_shardings=shardings[1])
    compiled = jitted.lower(jax.ShapeDtypeStruct(SHAPE, "float32")).compile()
    return wire_bytes(collectives(compiled.as_text()))


@pytest.mark.parametrize("source", SPECS)
def test_a_resharding_sends_what_xla_sends(devices, source):
    for target in SPECS:
        planned = wire_bytes(resharding(MESH, NBYTES, source, target))
        compiled = compiled_bytes(devices, source, target)
        if sum(before != after for before, after in zip(source, target, strict=True)) <= 1:
            assert planned == compiled, (source, target)
        else:
            assert planned / 2 <= compiled <= 2 * planned, (source, target)


@given(source=specs, target=specs, nbytes=st.integers(0, 1 << 30))
def test_what_is_there_already_costs_nothing(source, target, nbytes):
    assert resharding(MESH, nbytes, source, source) == ()
    sliced = all(before in (NONE, after) for before, after in zip(source, target, strict=True))
    # What is split over y already moves when x becomes the more significant axis of its dimension.
    reordered = source[0] == NONE and target[0] == target[1] == source[1] != NONE
    if sliced and not reordered:
        assert resharding(MESH, nbytes, source, target) == ()
    assert resharding_s(MESH, nbytes, source, target) >= 0


@given(source=specs, target=specs)
def test_seconds_grow_with_bytes(source, target):
    assert resharding_s(MESH, NBYTES, source, target) <= resharding_s(MESH, 2 * NBYTES, source, target)


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_a_spec_is_what_jax_makes_of_it(shape):
    """The bytes of one device's part lie where the spec says."""
    mesh = Mesh(np.array(jax.devices()).reshape(shape), AXES[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
    logical = LogicalMesh(shape=shape, device=CPU)
    for spec in itertools.product((NONE, 0, 1, 2), repeat=len(shape)):
        sharding = NamedSharding(mesh, partition_spec(spec))
        local = [64, 64, 64]
        for size, dim in zip(shape, spec, strict=True):
            if dim != NONE:
                local[dim] //= size
        assert sharding.shard_shape((64, 64, 64)) == tuple(local)
        assert logical.shards(spec) == 64**3 // math.prod(local)


def test_partition_specs():
    assert partition_spec((NONE, NONE)) == PartitionSpec()
    assert partition_spec((1, NONE)) == PartitionSpec(None, "x")
    assert partition_spec((NONE, 0)) == PartitionSpec("y")
    assert partition_spec((2, 0)) == PartitionSpec("y", None, "x")
    assert partition_spec((1, 1)) == PartitionSpec(None, ("x", "y"))


@given(shape=st.lists(st.integers(0, 16), max_size=3), spec=st.tuples(*[st.integers(-1, 2)] * 2))
def test_a_spec_fits_where_its_dimensions_divide(shape, spec):
    counts = [1] * 3
    for size, dim in zip(MESH.shape, spec, strict=True):
        if dim != NONE:
            counts[dim] *= size
    sizes = [*shape, *[1] * (3 - len(shape))]
    expected = all(size % count == 0 and (size or count == 1) for size, count in zip(sizes, counts, strict=True))
    assert fits(MESH, shape, spec) == expected


def test_meshes_of_devices():
    assert mesh_shapes(1) == ((1,),)
    assert mesh_shapes(2) == ((2,),)
    assert mesh_shapes(4) == ((4,), (2, 2))
    assert mesh_shapes(6) == ((6,), (2, 3))
    assert mesh_shapes(8) == ((8,), (2, 4))
    assert mesh_shapes(16) == ((16,), (2, 8), (4, 4))
    assert MESH.size == 8
    assert MESH.axes == {"x": 2, "y": 4}
