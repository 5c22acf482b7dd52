"""Spare models: their stages leave the devices and come back, and compute the same bits."""

import concurrent.futures
import gc
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve import runtime
from jaxserve.model import Model
from jaxserve.plans import ParallelConfig
from jaxserve.runtime.measure import LEAST_RUNS, MOST_RUNS, measure_restore
from tests.model.toys import WIDTH, X, encoder, ids_of, perceptron, perceptron_params
from tests.parallel import loops
from tests.runtime.test_weights import STACKS, counted


def load(model, intra_op=1, inter_op=1, *, spare=True, first_device=0, **options):
    config = ParallelConfig(intra_op, inter_op)
    devices = jax.devices()[first_device : first_device + config.devices]
    return runtime.load(model, config, devices, spare=spare, **({"repeats": 1} | options))


def layered(params=None, **options):
    cuts = ("layer_1", "layer_2", "layer_3")
    return Model.from_function("f", perceptron, params or perceptron_params(4), inputs=X, cuts=cuts, **options)


def x_of(batch):
    return {"x": np.random.default_rng(batch).normal(size=(batch, WIDTH)).astype(np.float32)}


def evict_all(pipeline):
    for stage in range(pipeline.num_stages):
        pipeline.evict(stage)


def restore_all(pipeline):
    for stage in range(pipeline.num_stages):
        pipeline.restore(stage)


def bytes_on(devices):
    gc.collect()
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array in jax.live_arrays()
        for _ in array.sharding.device_set & set(devices)
    )


def assert_bits_equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), found, expected)


def small_encoder():
    return encoder(cuts=("layers_1", "layers_2", "layers_3"), batch_sizes=(4,), buckets={"length": (8,)})[0]


MODELS = {
    "linen": (small_encoder, {"ids": ids_of(3, 6)}),
    "layers": (lambda: layered(batch_sizes=(1, 4)), x_of(3)),
    "rows of stacked layers": (STACKS["linen"], loops.rows(2)),
    "cast": (lambda: loops.tied(jnp.bfloat16), {"ids": np.arange(8, dtype=np.int32).reshape(2, 4)}),
}


@pytest.mark.parametrize(
    ("kind", "intra_op", "inter_op"),
    [
        ("linen", 2, 2),
        ("linen", 1, 4),
        ("layers", 1, 1),
        ("layers", 4, 2),
        ("rows of stacked layers", 2, 2),
        ("cast", 1, 1),
        ("cast", 4, 1),
    ],
)
def test_what_comes_back_computes_the_same_bits(kind, intra_op, inter_op):
    make, inputs = MODELS[kind]
    pipeline = load(make(), intra_op, inter_op)
    assert_bits_equal(pipeline(inputs), load(make(), intra_op, inter_op, spare=False)(inputs))
    before = jax.tree.map(np.array, pipeline(inputs))
    for _ in range(2):
        evict_all(pipeline)
        restore_all(pipeline)
        assert_bits_equal(pipeline(inputs), before)


@pytest.mark.parametrize("source", ["lent", "made"])
@pytest.mark.parametrize(("intra_op", "inter_op"), [(1, 1), (2, 2), (1, 4)])
def test_the_memory_of_each_stage_falls_and_rises(intra_op, inter_op, source):
    """On other devices than the first, where jax counts what lies in host memory."""
    tree = jax.tree.map(jnp.asarray, perceptron_params(4))
    model = layered(tree if source == "lent" else lambda: jax.tree.map(np.asarray, tree))
    load(model, intra_op, inter_op, first_device=4).close()
    everywhere = bytes_on(jax.devices())
    pipeline = load(model, intra_op, inter_op, first_device=4)
    devices = [jax.devices()[4 + stage * intra_op :][:intra_op] for stage in range(inter_op)]
    held = [intra_op * nbytes for nbytes in pipeline.profiles[0].stage_weight_bytes]
    assert [bytes_on(each) for each in devices] == held
    for stage in range(inter_op):
        pipeline.evict(stage)
        gone = [pipeline.resident(other) for other in range(inter_op)].count(False)
        assert gone == 1
        assert [bytes_on(each) for each in devices] == [*held[:stage], 0, *held[stage + 1 :]]
        pipeline.restore(stage)
        assert [bytes_on(each) for each in devices] == held
    pipeline.evict(0)
    pipeline.close()
    assert bytes_on(jax.devices()) == everywhere
    jax.block_until_ready(tree)  # the caller's own arrays are still there


def test_arrays_lie_where_they_lay():
    pipeline = load(layered(), 2, 2, stack_below_bytes=1 << 20)
    stages = pipeline._stages
    before = [[array.sharding for array in stage.weights] for stage in stages]
    evict_all(pipeline)
    assert [stage.weights for stage in stages] == [(), ()]
    restore_all(pipeline)
    assert [[array.sharding for array in stage.weights] for stage in stages] == before
    assert all(array.is_ready() for stage in stages for array in stage.weights)


def test_large_constants_leave_the_devices_too():
    table = np.arange(4096.0, dtype=np.float32).reshape(512, WIDTH)
    held = jnp.asarray(table)
    model = Model.from_function("f", lambda x: x + table[9] + held[x.shape[0]], inputs=X, batch_sizes=(2, 4))
    pipeline = load(model, 2, 1, first_device=4)
    submesh = jax.devices()[4:6]
    found = [pipeline(x_of(batch)) for batch in (2, 4)]
    passed = pipeline._stages[0].arguments
    assert bytes_on(submesh) == sum(map(len, passed)) * table.nbytes * len(submesh) > 0
    pipeline.evict(0)
    assert bytes_on(submesh) == 0, "also where somebody keeps a reference, such as the traceback of an error"
    del passed
    pipeline.restore(0)
    assert_bits_equal([pipeline(x_of(batch)) for batch in (2, 4)], found)
    pipeline.close()
    np.testing.assert_array_equal(held, table)


def test_keys_of_random_numbers_come_back():
    key = jax.random.key(3)

    def noisy(params, x):
        return x * params["scale"] + jax.random.normal(params["key"], (WIDTH,))

    params = {"key": key, "scale": np.full(WIDTH, 2, np.float32)}
    model = Model.from_function("noisy", noisy, params, inputs=X)
    pipeline = load(model)
    before = pipeline(x_of(1))
    pipeline.evict(0)
    pipeline.restore(0)
    assert_bits_equal(pipeline(x_of(1)), before)
    pipeline.close()
    jax.block_until_ready(key)


def test_the_models_own_arrays_on_the_host_are_the_copies():
    tree = {"w": jnp.eye(WIDTH)}
    pipeline = load(Model.from_function("f", lambda params, x: x @ params["w"], tree, inputs=X), first_device=4)
    (copy,) = pipeline._stages[0]._copies
    assert np.shares_memory(copy, np.asarray(tree["w"]))


@pytest.mark.parametrize("kind", ["linen", "nested"])
def test_every_leaf_is_read_once(kind):
    model = STACKS[kind]()
    source = counted(model)
    pipeline = load(model, 1, 2)
    evict_all(pipeline)
    restore_all(pipeline)
    assert {path: len(read) for path, read in source.read_to.items()} == dict.fromkeys(model.param_paths, 1)


@pytest.mark.parametrize("resident", [True, False])
def test_close_gives_the_copies_up(resident):
    pipeline = load(layered(), 2, 2)
    copies = [weakref.ref(copy) for stage in pipeline._stages for copy in stage._copies]
    assert copies
    if not resident:
        pipeline.evict(1)
    pipeline.close()
    pipeline.close()
    gc.collect()
    assert not any(copy() is not None for copy in copies)
    assert not any(pipeline.resident(stage) for stage in range(2))
    pipeline.evict(0)
    closed = "the pipeline of 'f' is closed; load the model again"
    with pytest.raises(RuntimeError, match=closed):
        pipeline.restore(0)
    with pytest.raises(RuntimeError, match=closed):
        pipeline(x_of(1))


def test_what_is_there_stays_and_what_is_not_does_not_run():
    pipeline = load(layered(), 1, 2)
    weights = [stage.weights for stage in pipeline._stages]
    restore_all(pipeline)
    assert [stage.weights for stage in pipeline._stages] == weights
    values = pipeline.run(0, 0, pipeline.put(0, x_of(1)))
    for _ in range(2):
        pipeline.evict(1)
        assert [pipeline.resident(stage) for stage in range(2)] == [True, False]
    with pytest.raises(RuntimeError, match=r"stage 1 of 'f' is not on its devices; call restore\(1\) before it runs"):
        pipeline.run(1, 0, values)
    assert all(comparison.agrees for comparison in pipeline.check())
    pipeline.restore(1)
    assert_bits_equal(pipeline.fetch(0, pipeline.run(1, 0, values))["output"], pipeline(x_of(1)))


def test_without_spare_nothing_is_copied_or_evicted():
    pipeline = load(layered(), 1, 2, spare=False)
    assert pipeline.restore_s == ()
    assert not any(stage.spare for stage in pipeline._stages)
    pipeline.restore(0)
    with pytest.raises(RuntimeError, match="'f' has no copy of its weights to restore; load it with spare=True"):
        pipeline.evict(0)
    assert pipeline.resident(0)
    pipeline.close()
    pipeline.evict(0)


def test_a_restore_that_fails_leaves_nothing_on_the_devices(monkeypatch):
    pipeline = load(layered(), 2, 1, first_device=4)
    before = pipeline(x_of(1))
    pipeline.evict(0)

    def full(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(jax, "block_until_ready", full)
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory") as kept:
            pipeline.restore(0)
    assert kept.tb is not None  # which keeps the frames, and what they name
    assert not pipeline.resident(0)
    assert bytes_on(jax.devices()[4:6]) == 0
    pipeline.restore(0)
    assert_bits_equal(pipeline(x_of(1)), before)


def test_a_thread_for_each_stage():
    """Each stage comes and goes while the others run, restore and evict."""
    pipeline = load(layered(), 1, 4)
    values = [pipeline.put(0, x_of(1))]
    for stage in range(4):
        values.append(pipeline.run(stage, 0, values[-1]))

    def drive(stage):
        for turn in range(30):
            if turn % (stage + 2) == 0:
                pipeline.evict(stage)
            pipeline.restore(stage)
            assert_bits_equal(pipeline.run(stage, 0, values[stage]), values[stage + 1])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(drive, range(4)))


def test_progress_and_measured_seconds():
    reports = []
    pipeline = load(layered(), 2, 2, progress=lambda *report: reports.append(report))
    assert len(pipeline.restore_s) == 2
    assert all(seconds > 0 for seconds in pipeline.restore_s)
    assert [pipeline.resident(stage) for stage in range(2)] == [True, True]
    assert [report[0] for report in reports if report[1] == report[2]] == ["compile", "load", "profile", "restore"]


def test_measuring_stops_in_time():
    pipeline = load(layered())
    restores = []
    restore = pipeline.restore
    pipeline.restore = lambda stage: (restores.append(stage), restore(stage))
    clock = iter(range(10_000))
    assert measure_restore(pipeline, 0, clock=lambda: next(clock)) == 1
    assert len(restores) == 1 + LEAST_RUNS
    assert measure_restore(pipeline, 0, clock=lambda: 0.0) == 0
    assert len(restores) == 2 + LEAST_RUNS + MOST_RUNS
