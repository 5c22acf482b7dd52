"""Loaded models: equal to the uncut one under every config, run by a thread for each stage, and gone when closed."""

import concurrent.futures
import functools
import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxserve
from jaxserve import runtime
from jaxserve.errors import InvalidInput, PlacementError
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import ParallelConfig
from jaxserve.runtime.measure import LEAST_RUNS, MOST_RUNS, measure_stages
from tests.model.toys import (
    IDS,
    WIDTH,
    Encoder,
    X,
    encoder,
    encoder_variables,
    ids_of,
    nnx_net,
    perceptron,
    perceptron_params,
)

CONFIGS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (1, 4)]


def load(model, intra_op=1, inter_op=1, **options):
    config = ParallelConfig(intra_op, inter_op)
    return runtime.load(model, config, jax.devices()[: config.devices], **({"repeats": 1} | options))


def assert_same(found, expected):
    """To the rounding of sums whose order a sharding changes: relative to the largest number."""

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(np.max(np.abs(b), initial=1e-6)))

    jax.tree.map(same, found, expected)


@functools.cache
def encoded():
    """What the uncut encoder returns."""
    _, module, variables = encoder()
    return jax.tree.map(np.asarray, jax.jit(module.apply)(variables, ids_of(4, 8)))


@pytest.mark.parametrize(("intra_op", "inter_op"), CONFIGS)
def test_linen_equals_the_uncut_model(intra_op, inter_op):
    """Tied embeddings, a mask and a skip over all stages, remat, outputs of the first stage, a nested dict."""
    model, _, _ = encoder(cuts=("layers_1", "layers_2", "layers_3"), batch_sizes=(4,), buckets={"length": (8,)})
    pipeline = load(model, intra_op, inter_op)
    for batch in (1, 3, 4):
        expected = jax.tree.map(lambda leaf, batch=batch: leaf[:batch], encoded())
        assert_same(pipeline({"ids": ids_of(4, 8)[:batch]}), expected)


@functools.cache
def nnx_reference(length):
    """What the nnx module itself returns in evaluation mode."""
    _, module = nnx_net()
    module.eval()
    return np.asarray(nnx.jit(lambda module, ids: module(ids))(module, ids_of(4, length)))


@pytest.mark.parametrize(("intra_op", "inter_op"), [(1, 1), (2, 2), (1, 3)])
def test_nnx_equals_the_uncut_model(intra_op, inter_op):
    model, _ = nnx_net(cuts=("layers_1", "layers_2"), buckets={"length": (4, 8)})
    pipeline = load(model, intra_op, inter_op)
    for length in (3, 8):
        assert_same(pipeline({"ids": ids_of(4, length)}), nnx_reference(length))
    assert [profile.batch_size for profile in pipeline.profiles] == [2, 2, 4, 4]
    assert [profile.length for profile in pipeline.profiles] == [4, 8, 4, 8]


@pytest.mark.parametrize(("intra_op", "inter_op"), CONFIGS)
def test_function_equals_the_uncut_one(intra_op, inter_op):
    params = perceptron_params(5)
    model = Model.from_function(
        "f", perceptron, params, inputs=X, batch_sizes=(1, 4), cuts=[f"layer_{layer}" for layer in range(1, 5)]
    )
    pipeline = load(model, intra_op, inter_op)
    x = np.linspace(-1, 1, 4 * WIDTH, dtype=np.float32).reshape(4, WIDTH)
    assert_same(pipeline({"x": x}), perceptron(params, x))


def test_values_are_passed_between_submeshes():
    model, _ = nnx_net(cuts=("layers_1",), batch_sizes=(2,), buckets={"length": (4,)})
    devices = jax.devices()[4:8]
    pipeline = runtime.load(model, ParallelConfig(2, 2), devices, repeats=1)
    values = pipeline.put(0, {"ids": ids_of(2, 4)})
    for stage in range(2):
        values = pipeline.run(stage, 0, values)
        made = [
            value
            for value in values
            if isinstance(value, jax.Array) and value.devices() == set(devices[2 * stage :][:2])
        ]
        assert made, "the stage ran on its own devices"
        assert all(value.is_ready() for value in made)
    assert pipeline.fetch(0, values)["output"].shape == (2, 4, 16)


def test_inputs_that_do_not_fit():
    pipeline = _shared_pipeline()
    with pytest.raises(InvalidInput, match="batch is 5, but the largest bucket holds 4"):
        pipeline({"ids": ids_of(5, 4)})
    with pytest.raises(InvalidInput, match="lack 'ids'"):
        pipeline({})


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (ParallelConfig(2, 2), 3, r"as \(2, 2\) needs 4 different devices, but 3 are given"),
        (ParallelConfig(2, 1), None, "needs 2 different devices, but 1 are given"),
        (
            ParallelConfig(1, 3),
            3,
            "model 'encoder': 3 stages were asked for.*use at most 2, or where cuts are named, name more",
        ),
    ],
)
def test_configs_that_do_not_fit(config, devices, message):
    model, _, _ = encoder(cuts=("layers_2",), batch_sizes=(1,), buckets={"length": (4,)})
    with pytest.raises(PlacementError, match=message):
        runtime.load(model, config, jax.devices()[:devices] if devices else [jax.devices()[0]] * 2)


def test_a_model_on_the_host_is_not_loaded():
    model = Model.from_function("host", lambda x: x, inputs=X, on_host=True)
    with pytest.raises(PlacementError, match="runs on the host and takes no devices"):
        runtime.load(model)


def test_profiles_and_progress():
    model = Model.from_linen(
        "encoder", Encoder(2), encoder_variables(2), inputs=IDS, buckets={"length": (2, 4)}, cuts=("layers_1",)
    )
    reports = []
    pipeline = load(model, 1, 2, repeats=7, progress=lambda *report: reports.append(report))
    assert [(row.batch_size, row.length, row.config, row.source) for row in pipeline.profiles] == [
        (1, 2, ParallelConfig(1, 2), "measured"),
        (1, 4, ParallelConfig(1, 2), "measured"),
    ]
    for row in pipeline.profiles:
        assert row.stage_latency_p99_s is not None
        assert all(0 < low <= high for low, high in zip(row.stage_latency_s, row.stage_latency_p99_s, strict=True))
        assert all(size > 0 for size in row.stage_activation_bytes)
        tied = 16 * WIDTH * 4  # the embedding lies on both stages
        assert sum(row.stage_weight_bytes) == model.weight_bytes + tied
    finished = [report[0] for report in reports if report[1] == report[2]]
    assert finished == ["compile", "load", "profile"]


def test_weights_are_split_evenly_over_the_stages_they_belong_to():
    model = Model.from_function("f", perceptron, perceptron_params(4), inputs=X, cuts=("layer_2",))
    pipeline = load(model, 2, 2)
    assert pipeline.profiles[0].stage_weight_bytes == pytest.approx([model.weight_bytes / 4] * 2, rel=0.06)


@pytest.mark.parametrize("stack_below_bytes", [0, 1 << 20])
def test_stacked_weights_compute_the_same(stack_below_bytes):
    model, _, _ = encoder(batch_sizes=(4,), buckets={"length": (8,)}, cuts=("layers_2",))
    pipeline = load(model, 1, 2, stack_below_bytes=stack_below_bytes)
    assert_same(pipeline({"ids": ids_of(4, 8)}), encoded())


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 8)), min_size=1, max_size=4))
def test_every_size_comes_back_as_it_went_in(sizes):
    pipeline = _shared_pipeline()
    for batch, length in sizes:
        ids = ids_of(batch, length, seed=batch)
        returned = pipeline({"ids": ids})
        np.testing.assert_array_equal(returned["same"], ids)
        np.testing.assert_allclose(returned["scaled"], ids[:, :, None] * np.arange(3.0), rtol=1e-6)


def _shared_pipeline(made=[]):  # noqa: B006 (one for all examples)
    if not made:
        scale = jnp.arange(3.0)
        model = Model.from_function(
            "f",
            lambda ids: {"same": ids, "scaled": ids[:, :, None] * scale},
            inputs={"ids": TensorSpec(("batch", "length"), "int32")},
            batch_sizes=(1, 4),
            buckets={"length": (2, 8)},
        )
        made.append(load(model, 2, 1))
    return made[0]


def test_large_constants_are_passed_to_the_program():
    table = np.arange(4096.0, dtype=np.float32).reshape(512, WIDTH)
    model = Model.from_function("f", lambda x: x + jnp.asarray(table)[7] + table[9], inputs=X, batch_sizes=(2,))
    found = load(model, 2, 1)({"x": np.zeros((2, WIDTH), np.float32)})
    np.testing.assert_array_equal(found, np.broadcast_to(table[7] + table[9], (2, WIDTH)))


def calling_back(callback):
    """A function of two named stages, each of which calls back to the host."""

    def function(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        for stage in range(2):
            with jax.named_scope(f"stage_{stage}"):
                x = jax.pure_callback(callback, shape, x)
        return x

    return Model.from_function("callbacks", function, inputs=X, batch_sizes=(2,), cuts=("stage_1",))


def test_a_callback_runs_once_in_its_stage():
    calls = []

    def count(x):
        calls.append(len(calls))
        return np.asarray(x) + 1

    pipeline = load(calling_back(count), 1, 2)
    calls.clear()
    values = pipeline.put(0, {"x": np.zeros((2, WIDTH), np.float32)})
    for stage in range(2):
        values = pipeline.run(stage, 0, values)
        assert len(calls) == stage + 1
    np.testing.assert_array_equal(pipeline.fetch(0, values)["output"], np.full((2, WIDTH), 2))


def test_stages_run_at_once():
    """Stage 1 of one batch and stage 0 of the next meet in their callbacks: one after the other, they never would."""
    barrier = threading.Barrier(2, timeout=30)
    meeting = threading.Event()

    def meet(x):
        if meeting.is_set():
            barrier.wait()
        return np.asarray(x) + 1

    pipeline = load(calling_back(meet), 1, 2)
    x = np.zeros((2, WIDTH), np.float32)
    first = pipeline.run(0, 0, pipeline.put(0, {"x": x}))
    meeting.set()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        ending = threads.submit(pipeline.run, 1, 0, first)
        starting = threads.submit(pipeline.run, 0, 0, pipeline.put(0, {"x": x + 10}))
        done, half_done = ending.result(timeout=60), starting.result(timeout=60)
    meeting.clear()
    np.testing.assert_array_equal(pipeline.fetch(0, done)["output"], x + 2)
    np.testing.assert_array_equal(pipeline.fetch(0, pipeline.run(1, 0, half_done))["output"], x + 12)


def test_a_stage_that_raises_fails_only_its_batch():
    def refuse(x):
        if np.asarray(x).any():
            raise ValueError("not this one")
        return np.asarray(x)

    pipeline = load(calling_back(refuse), 1, 2)
    good, bad = np.zeros((2, WIDTH), np.float32), np.ones((2, WIDTH), np.float32)
    for x in (good, bad, good, bad, good):
        if x is bad:
            with pytest.raises(jax.errors.JaxRuntimeError, match="not this one"):
                pipeline({"x": x})
        else:
            np.testing.assert_array_equal(pipeline({"x": x}), good)


def test_many_threads_on_one_pipeline():
    model = Model.from_function(
        "f", perceptron, perceptron_params(3), inputs=X, batch_sizes=(1, 4), cuts=("layer_1", "layer_2")
    )
    pipeline = load(model, 1, 3)
    batches = [np.full((1 + number % 4, WIDTH), number / 10, np.float32) for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for x, found in zip(batches, threads.map(lambda x: pipeline({"x": x}), batches), strict=True):
            assert_same(found, perceptron(perceptron_params(3), x))


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize(("intra_op", "inter_op"), [(1, 1), (2, 2)])
def test_close_gives_the_memory_back(intra_op, inter_op, lent):
    tree = jax.tree.map(jnp.asarray, perceptron_params(4))
    params = tree if lent else lambda: jax.tree.map(np.asarray, tree)
    model = Model.from_function("f", perceptron, params, inputs=X, cuts=("layer_2",))
    load(model, intra_op, inter_op).close()
    before = live_bytes()
    pipeline = load(model, intra_op, inter_op)
    held = live_bytes() - before
    assert held >= (0 if lent else model.weight_bytes)
    pipeline.close()
    pipeline.close()
    assert live_bytes() == before
    with pytest.raises(RuntimeError, match="the pipeline of 'f' is closed; load the model again"):
        pipeline({"x": np.ones((1, WIDTH), np.float32)})
    jax.block_until_ready(tree)  # the caller's own arrays are still there


def test_batch_norm_statistics_are_weights():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(nn.BatchNorm(use_running_average=True)(x))

    module = Net()
    variables = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, WIDTH)))
    variables = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])}
    model = Model.from_linen("m", module, variables, inputs=X, batch_sizes=(2,), cuts=("head",))
    x = np.ones((2, WIDTH), np.float32)
    assert_same(load(model, 2, 2)({"x": x}), module.apply(variables, x))


def test_measuring_stops_in_time():
    clock = iter(range(10_000))
    pipeline = load(Model.from_function("f", lambda x: x + 1, inputs=X))
    assert measure_stages(pipeline, 0, clock=lambda: next(clock)).shape == (LEAST_RUNS, 1)
    assert measure_stages(pipeline, 0, clock=lambda: 0.0).shape == (MOST_RUNS, 1)
    assert measure_stages(pipeline, 0, repeats=7).shape == (7, 1)


def test_profile_of_several_configs():
    model = Model.from_function("f", perceptron, perceptron_params(2), inputs=X, batch_sizes=(1, 2), cuts=("layer_1",))
    configs = [ParallelConfig(), ParallelConfig(2, 2)]
    rows = jaxserve.profile(model, configs)
    assert [(row.config, row.batch_size) for row in rows] == [(config, batch) for config in configs for batch in (1, 2)]
    assert [row.config for row in jaxserve.profile(model)] == [configs[0]] * 2
    with pytest.raises(PlacementError, match=r"as \(4, 4\) needs 16 different devices, but 8 are given"):
        jaxserve.profile(model, ParallelConfig(4, 4))


def test_parallelize():
    params = perceptron_params(2)
    model = Model.from_function("f", perceptron, params, inputs=X, cuts=("layer_1",))
    pipeline = jaxserve.parallelize(model, jaxserve.ParallelConfig(intra_op=2, inter_op=2), devices=jax.devices()[:4])
    x = np.ones((1, WIDTH), np.float32)
    assert_same(pipeline({"x": x}), perceptron(params, x))


def test_a_callback_is_not_spread_over_devices():
    def inside(x):
        scan = jax.lax.scan(lambda carry, _: (jax.pure_callback(lambda v: v, carry, carry), None), x, None, length=2)
        return scan[0]

    model = Model.from_function("calls", inside, inputs={"x": TensorSpec(("batch", 4), "float32")}, batch_sizes=(2,))
    with pytest.raises(PlacementError, match="'calls' calls back into Python, which must not be spread over 2 devices"):
        runtime.parallelize(model, ParallelConfig(intra_op=2))


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        ((2, 1), None, r"the config is \(2, 1\), but must be a ParallelConfig"),
        (ParallelConfig(2, 1), [0, 1], r"devices hold 0, but must be jax devices, such as jax.devices\(\)\[:2\]"),
    ],
)
def test_what_is_no_config_and_no_device_is_said(config, devices, message):
    model = Model.from_function("f", perceptron, perceptron_params(1), inputs=X)
    with pytest.raises(PlacementError, match=message):
        runtime.load(model, config, devices)


def test_constraints_for_other_devices_are_dropped():
    """A module may state shardings on the devices that it was trained on."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def function(params, x):
        return jax.lax.with_sharding_constraint(x @ params["w"], sharding)

    model = Model.from_function("f", function, {"w": np.eye(8, dtype=np.float32)}, inputs=X, batch_sizes=(2,))
    pipeline = runtime.load(model, ParallelConfig(2, 1), jax.devices()[2:4], repeats=1)
    x = np.random.default_rng(0).normal(size=(2, *X["x"].shape[1:])).astype(np.float32)
    np.testing.assert_allclose(pipeline({"x": x}), x)
