"""Operations and bytes of programs counted by hand, and the model of fusion between them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxserve.model.flat import flatten_program
from jaxserve.models.bert import PLANNED, Bert
from jaxserve.parallel.atoms import fixed_vars
from jaxserve.parallel.devices import DEVICES
from jaxserve.parallel.work import FREE, Work, flops, seconds, work


def program(function, *shapes, dtype="float32"):
    """The flat program of a function of arrays of these shapes."""
    return flatten_program(jax.make_jaxpr(function)(*(zeros(*shape, dtype=dtype) for shape in shapes)), params=0)


def costs(function, *shapes, dtype="float32"):
    """What launches or moves anything, with the name of its primitive."""
    flat = program(function, *shapes, dtype=dtype)
    found = work(flat.eqns, outputs=flat.outputs)
    assert len(found) == len(flat.eqns)
    return [(eqn.primitive.name, cost) for eqn, cost in zip(flat.eqns, found, strict=True) if cost != FREE]


def flops_of(function, *arguments):
    return sum(map(flops, jax.make_jaxpr(function)(*arguments).jaxpr.eqns))


def zeros(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def convolution(**options):
    return lambda image, kernel: lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def looped(x):
    return lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=7)[0]


def while_looped(x):
    return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)


def branched(x):
    return lax.cond(x[0, 0] < 1, lambda x: x @ x @ x, lambda x: x, x)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, [zeros(3, 4), zeros(4, 5)], 2 * 3 * 4 * 5),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [zeros(2, 3, 4), zeros(2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (convolution(), [zeros(2, 8, 8, 3), zeros(5, 5, 3, 6)], 2 * (2 * 8 * 8 * 6) * (5 * 5 * 3)),
        (convolution(feature_group_count=3), [zeros(2, 8, 8, 3), zeros(5, 5, 1, 6)], 2 * (2 * 8 * 8 * 6) * 25),
        (lax.ragged_dot, [zeros(8, 4), zeros(2, 4, 5), zeros(2, dtype="int32")], 2 * 8 * 4 * 5),
        (lambda x: x.reshape(2, 8).T.astype(jnp.float16), [zeros(4, 4)], 0),
        (lambda x: jnp.sum(x, axis=0), [zeros(4, 5)], 20),
        (lambda x: lax.cumsum(x, axis=0), [zeros(4, 5)], 20),
        (lambda x: lax.argmax(x, 0, jnp.int32), [zeros(4, 5)], 20),
        (lambda x: lax.sort(x, dimension=0), [zeros(8, 5)], 8 * 5 * 3),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 2), "VALID"), [zeros(4, 6)], 4 * 3 * 2),
        (looped, [zeros(4, 4)], 7 * 2 * 4**3),
        (while_looped, [zeros(4, 4)], 2 * 4**3 + 1),
        (branched, [zeros(4, 4)], 2 * 2 * 4**3 + 1),
        (lambda x, i: x.at[i].add(1.0, mode="clip"), [zeros(100), zeros(3, dtype="int32")], 3),
    ],
)
def test_flops_by_hand(function, arguments, expected):
    # Indices are brought into range by a few operations on integers.
    assert flops_of(function, *arguments) == pytest.approx(expected, abs=20)


def test_flops_of_a_ragged_sum():
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )

    def function(a, b, groups):
        return lax.ragged_dot_general(a, b, groups, numbers)

    assert flops_of(function, zeros(8, 3), zeros(8, 5), zeros(2, dtype="int32")) == 2 * 8 * 3 * 5


def test_a_product_reads_its_operands_and_writes_its_result():
    ((name, cost),) = costs(lambda x, y: x @ y.T, (8, 4), (8, 4), dtype="float16")
    assert name == "dot_general"
    assert cost == Work(flops=2 * 8 * 4 * 8, nbytes=2 * (8 * 4 + 8 * 4 + 8 * 8), dtype="float16", kernels=1)


def test_an_elementwise_chain_is_one_kernel_that_reads_each_array_once():
    ((name, cost),) = costs(lambda x, y: jnp.exp(x * y + x[:, :1]) * x, (8, 4), (8, 4))
    assert name == "mul"
    assert (cost.nbytes, cost.kernels) == (4 * 3 * 32, 1)
    assert cost.flops == 4 * 32


def test_a_broadcast_is_not_written_but_for_a_product():
    fused, product = (
        costs(function, (8, 4)) for function in (lambda x: x + 1.0, lambda x: x @ jnp.ones((4, 8), jnp.float32))
    )
    assert [cost.nbytes for _, cost in fused] == [4 * 2 * 32]
    assert [(name, cost.nbytes) for name, cost in product] == [
        ("broadcast_in_dim", 4 * 32),
        ("dot_general", 4 * (32 + 32 + 64)),
    ]


def test_softmax_reads_thrice_and_writes_once():
    def softmax(x):
        exponentials = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
        return exponentials / jnp.sum(exponentials, axis=1, keepdims=True)

    found = costs(softmax, (512, 1024))
    assert [name for name, _ in found] == ["reduce_max", "reduce_sum", "div"]
    assert sum(cost.nbytes for _, cost in found) == pytest.approx(4 * 4 * 512 * 1024, rel=0.01)
    assert sum(cost.kernels for _, cost in found) == 3


def test_the_two_sums_of_a_layer_norm_are_one_kernel():
    def norm(x):
        mean, square = jnp.mean(x, axis=1, keepdims=True), jnp.mean(x * x, axis=1, keepdims=True)
        return (x - mean) * lax.rsqrt(square - mean * mean)

    found = costs(norm, (512, 1024))
    assert sum(cost.kernels for _, cost in found) == 2
    assert sum(cost.nbytes for _, cost in found) == pytest.approx(4 * 3 * 512 * 1024, rel=0.02)


def test_a_value_that_many_use_is_written_where_that_is_cheaper():
    def function(x, y, z):
        total = x + y + z
        return [jnp.sum(total, axis=0), jnp.max(total, axis=1), jnp.min(total), jnp.tanh(total)]

    found = costs(function, (512, 512), (512, 512), (512, 512))
    # Fused, each of the four would read three arrays.
    assert sum(cost.nbytes for _, cost in found) == pytest.approx(4 * 512 * 512 * (3 + 1 + 4 + 1), rel=0.01)


def test_a_look_up_reads_rows_and_an_update_writes_them():
    def function(indices):
        table = jnp.zeros((1000, 16), jnp.float32)
        rows = table.at[indices].get(mode="clip")
        return rows, lax.dynamic_update_slice(table, rows, (0, 0)), table.at[indices].add(rows, mode="clip")

    found = dict(costs(function, (8,), dtype="int32"))
    assert found["gather"].nbytes == 2 * 4 * 8 * 16 + 4 * 8
    assert found["dynamic_update_slice"].nbytes == 2 * 4 * 8 * 16
    assert found["scatter-add"].nbytes == 3 * 4 * 8 * 16 + 4 * 8


def test_a_slice_reads_what_it_takes():
    ((_, cost),) = costs(lambda x: x[:, :3] * 2.0, (8, 1000))
    assert cost.nbytes == 2 * 4 * 8 * 3


def test_a_loop_is_its_body_as_often_as_it_runs():
    ((name, cost),) = costs(looped, (4, 4))
    assert (name, cost.kernels, cost.repeats) == ("scan", 7, 7)
    assert cost.flops == 7 * 2 * 64
    assert cost.nbytes == 7 * 4 * 32
    (inside,) = cost.body
    assert seconds(cost, DEVICES["a100"]) == pytest.approx(7 * seconds(inside, DEVICES["a100"]))


def test_what_no_output_needs_costs_nothing():
    flat = program(lambda x: [x @ x, jnp.tanh(x) @ x][0], (4, 4))
    assert [cost.kernels for cost in work(flat.eqns, outputs=flat.outputs)].count(1) == 1
    assert sum(cost.kernels for cost in work(flat.eqns)) == 3


def test_what_depends_on_params_alone_is_computed_at_load():
    def function(x):
        table = jnp.tanh(jnp.arange(16, dtype=jnp.float32).reshape(4, 4))
        return x @ table + jnp.zeros((8, 4), jnp.float32)

    flat = program(function, (8, 4))
    free = fixed_vars([], flat.eqns)
    found = [cost for cost in work(flat.eqns, outputs=flat.outputs, free=free) if cost != FREE]
    # The product reads the table that lies in memory; the zeros are made where they are added.
    assert [cost.nbytes for cost in found] == [4 * (32 + 16 + 32), 4 * (32 + 32)]
    priced = sum(cost.kernels for cost in work(flat.eqns, outputs=flat.outputs))
    assert priced == len(found) + 1


def test_a_primitive_that_is_not_known_is_a_kernel_of_its_own():
    found = costs(lambda x: jnp.linalg.cholesky(x * 2.0), (4, 4))
    name, cost = next((name, cost) for name, cost in found if name == "cholesky")
    assert (name, cost.kernels, cost.nbytes) == ("cholesky", 1, 2 * 4 * 16)


works = st.builds(
    Work,
    flops=st.floats(0, 1e15),
    nbytes=st.floats(0, 1e12),
    dtype=st.sampled_from(["float32", "float16", "bool"]),
    kernels=st.integers(0, 10),
)
devices = st.sampled_from(list(DEVICES.values()))


@given(works, devices, st.integers(1, 16))
def test_the_roofline_is_monotone(cost, device, shards):
    alone_s = seconds(cost, device)
    assert seconds(cost, device, shards) <= alone_s <= seconds(cost, device, shards) * shards * (1 + 1e-9)
    assert alone_s >= cost.kernels * device.overhead_s
    assert alone_s <= seconds(dataclasses.replace(cost, flops=2 * cost.flops + 1), device)
    assert alone_s <= seconds(dataclasses.replace(cost, nbytes=2 * cost.nbytes + 1), device)


def test_the_roofline_by_hand():
    device = dataclasses.replace(DEVICES["v100"], compute_efficiency=0.5, memory_efficiency=0.5, overhead_s=1e-6)
    assert seconds(Work(flops=125e9, dtype="float16", kernels=2), device) == pytest.approx(2e-3 + 2e-6)
    assert seconds(Work(nbytes=900e6, kernels=1), device, 4) == pytest.approx(0.5e-3 + 1e-6)
    assert seconds(FREE, device) == 0


def bert_costs(config):
    """Seconds on a V100 and operations of a BERT at batch 1; only its shapes are made."""
    module = Bert(config)
    inputs = {name: zeros(1, config.max_length, dtype="int32") for name in ("input_ids", "attention_mask")}
    params = jax.eval_shape(module.init, jax.random.key(0), **inputs)
    closed = jax.make_jaxpr(lambda params, inputs: module.apply(params, **inputs))(params, inputs)
    leaves = len(jax.tree.leaves(params))
    flat = flatten_program(closed, params=leaves)
    free = fixed_vars((*closed.jaxpr.invars[:leaves], *flat.constants), flat.eqns)
    found = work(flat.eqns, outputs=flat.outputs, free=free)
    assert {cost.dtype for cost in found if cost.flops > 1e9} == {"float16"}
    return np.array([sum(seconds(cost, DEVICES["v100"]) for cost in found), sum(cost.flops for cost in found)])


@pytest.mark.parametrize(
    ("name", "published_s", "parameters"),
    [("bert-1.3b", 0.151, 1.2e9), ("bert-2.7b", 0.238, 2.5e9), ("bert-6.7b", 0.395, 6.4e9)],
)
def test_latencies_that_alpaserve_published(name, published_s, parameters):
    # OSDI'23, table 1: one V100, batch 1, 2048 tokens, float16. Layers are alike, so the third tells of all the others.
    config = PLANNED[name]
    two, three = (bert_costs(dataclasses.replace(config, layers=layers)) for layers in (2, 3))
    total_s, total_flops = two + (config.layers - 2) * (three - two)
    assert (config.dtype, config.max_length) == ("float16", 2048)
    assert total_s == pytest.approx(published_s, rel=0.2)
    # 2 for each token and parameter outside of the tables, and attention's 4 length * size for each token and layer.
    attention = config.layers * 4 * 2048 * 2048 * config.hidden_size
    assert total_flops == pytest.approx(2 * parameters * 2048 + attention, rel=0.05)
