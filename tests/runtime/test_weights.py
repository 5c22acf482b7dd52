"""Weights reach their stages: read once, split at load, derived on the host, given back when the model is closed."""

import collections
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxserve
from jaxserve import runtime
from jaxserve.model import Model
from jaxserve.model.params import SafetensorsSource
from jaxserve.plans import ParallelConfig
from tests.model.toys import WIDTH, X, encoder, perceptron, perceptron_params
from tests.parallel import loops


def load(model, intra_op=1, inter_op=1, **options):
    config = ParallelConfig(intra_op, inter_op)
    return runtime.load(model, config, jax.devices()[: config.devices], **({"repeats": 1} | options))


def assert_same(found, expected, *, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


def whole(model, inputs):
    return jax.tree.map(np.asarray, jax.jit(model.apply)(model.load_params(), inputs))


ONE_BUCKET = {"batch_sizes": (1,), "buckets": {"length": (4,)}}
STACKS = {
    "linen": lambda **options: loops.of_linen(loops.LinenStack(), cuts=("stack_2",), **options),
    "linen with remat": lambda **options: loops.of_linen(loops.LinenStack(remat=True), cuts=("stack_2",), **options),
    "nnx": lambda **options: loops.of_nnx(cuts=("layers_2",), **options),
    "nnx with remat": lambda **options: loops.of_nnx(remat=True, cuts=("layers_2/dense",), **options),
    "backwards": lambda **options: loops.backwards(cuts=("layer_1",), **options),
    "nested": lambda **options: loops.nested(cuts=("block_0/layer_2", "block_1", "block_1/layer_1"), **options),
    "joined": lambda **options: loops.joined_in_the_program(cuts=("scan_2", "scan_3"), **options),
    "loops": lambda **options: loops.looping(cuts=("branch",), **options),
}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("config", [ParallelConfig(1, 2), ParallelConfig(2, 2)], ids=str)
def test_loops_over_layers_in_stages(kind, config):
    model = STACKS[kind]()
    pipeline = jaxserve.parallelize(model, config, devices=jax.devices()[: config.devices])
    for count in (1, 2):
        inputs = loops.rows(count)
        assert_same(pipeline(inputs), whole(model, inputs))


def test_a_loop_over_time_in_stages():
    model = loops.recurrent(cuts=("after",))
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)}
    assert_same(load(model, 1, 2)(inputs), whole(model, inputs))


def test_a_stage_holds_only_its_own_layers():
    model = STACKS["linen"]()
    first, last = load(model, 1, 2).profiles[0].stage_weight_bytes
    before, after, layer = WIDTH * (WIDTH + 1) * 4, (WIDTH + 1) * 2 * 4, WIDTH * (WIDTH + 3) * 4
    assert (first, last) == (before + 2 * layer, 2 * layer + after)
    assert first + last == model.weight_bytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_params_are_kept_in_the_precision_that_is_computed_in(dtype):
    model = loops.tied(dtype)
    pipeline = load(model)
    (weights,) = pipeline.profiles[0].stage_weight_bytes
    assert weights == model.weight_bytes * jnp.dtype(dtype).itemsize / 4
    inputs = {"ids": np.arange(8, dtype=np.int32).reshape(2, 4)}
    assert_same(pipeline(inputs), whole(model, inputs), tolerance=1e-2)


def test_a_tied_table_lies_on_the_stages_that_use_it_once_each():
    model = loops.tied(jnp.bfloat16, cuts=("dense", "embed.attend"))
    weights = load(model, 1, 3).profiles[0].stage_weight_bytes
    assert weights == (16 * WIDTH * 2, WIDTH * (WIDTH + 1) * 2, 16 * WIDTH * 2)


def test_buckets_that_read_different_rows_of_a_table():
    model = loops.of_length()
    pipeline = load(model)
    assert pipeline.profiles[0].stage_weight_bytes == (model.weight_bytes / 2,)
    for length in (1, 3, 8):
        x = np.ones((1, length, WIDTH), np.float32)
        padded = np.ones((1, 8, WIDTH), np.float32)
        found = np.asarray(pipeline({"x": x}), np.float32)
        assert_same(found, np.asarray(whole(model, {"x": padded}), np.float32)[:, :length], tolerance=1e-2)


class Counting:
    """A source that notes what is read, and where to."""

    lends = False

    def __init__(self, model):
        self.source = model.param_source
        self.shapes = self.source.shapes
        self.read_to = collections.defaultdict(list)

    def read(self, targets):
        for path, sharding in targets:
            self.read_to[path].append(sharding)
        return self.source.read(targets)


def counted(model):
    source = Counting(model)
    object.__setattr__(model._adapter, "source", source)
    return source


@pytest.mark.parametrize(
    "make", [STACKS["linen"], STACKS["joined"], lambda: encoder(cuts=("layers_2",), **ONE_BUCKET)[0]]
)
def test_every_leaf_is_read_once(make):
    model = make()
    source = counted(model)
    load(model, 2, 2, stack_below_bytes=64)
    assert {path: len(read) for path, read in source.read_to.items()} == dict.fromkeys(model.param_paths, 1)


def test_stacked_layers_are_split_on_the_host():
    model = STACKS["linen"]()
    source = counted(model)
    pipeline = runtime.load(model, ParallelConfig(1, 2), jax.devices()[4:6], repeats=1, stack_below_bytes=0)
    for path, (sharding,) in source.read_to.items():
        on_host = "stack" in path
        assert (sharding.device_set == {jax.devices("cpu")[0]}) == on_host, path
    held = {array.shape for stage in pipeline._stages for array in stage.weights}
    assert held == {(WIDTH, WIDTH), (WIDTH,), (WIDTH, 2), (2,)}


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("make", [STACKS["linen"], loops.tied], ids=["stacked", "cast"])
def test_close_deletes_what_was_derived_and_nothing_that_was_lent(make, lent):
    model = make()
    tree = jax.tree.map(jnp.asarray, model.load_params())
    model = remade(model, tree if lent else lambda: jax.tree.map(np.asarray, tree))
    load(model).close()
    before = live_bytes()
    pipeline = load(model)
    derived = [array for stage in pipeline._stages for array in stage.weights]
    assert live_bytes() > before
    pipeline.close()
    pipeline.close()
    assert any(array.is_deleted() for array in derived)
    jax.block_until_ready(tree)
    del derived
    assert live_bytes() == before
    again = load(model)
    again.close()
    assert live_bytes() == before


def remade(model, params):
    """The same model with other params."""
    function = model.apply
    return Model.from_function(
        "again", lambda params, **inputs: function(params, inputs), params, inputs=model.inputs, batch_sizes=(1, 2)
    )


def test_a_file_is_read_once_for_every_stage(tmp_path):
    from safetensors.numpy import save_file

    params = {
        f"{index}.{name}": leaf for index, layer in enumerate(perceptron_params(4)) for name, leaf in layer.items()
    }
    save_file(params, tmp_path / "params.safetensors")

    def function(params, x):
        layers = [jax.tree.map(lambda leaf: leaf * 2, params[str(index)]) for index in range(4)]
        return perceptron(layers, x)

    model = Model.from_function("f", function, tmp_path / "params.safetensors", inputs=X, cuts=("layer_2",))
    assert isinstance(model.param_source, SafetensorsSource)
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]
    pipeline = load(model, 2, 2)
    doubled = jax.tree.map(lambda leaf: leaf * 2, perceptron_params(4))
    assert_same(pipeline({"x": x}), perceptron(doubled, x))
    held = [array for stage in pipeline._stages for array in stage.weights]
    pipeline.close()
    assert all(array.is_deleted() for array in held)


def test_progress_counts_weights():
    model = STACKS["linen"]()
    reports = []
    load(model, 1, 2, progress=lambda *report: reports.append(report))
    loading = [(done, total) for what, done, total in reports if what == "load"]
    weights = 4 * loops.LAYERS + 4
    assert loading == [(done, weights) for done in range(1, weights + 1)]
