"""Sharded and cut, every model returns what it returns whole: the zoo, and models that no rule was written for.

How two results are compared, see `difference`. Here each model meets the configs that cover most;
`bench/correctness.py` runs every model under every config, with one row and with four, and prints the differences.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxserve import runtime
from jaxserve.model import Model, TensorSpec
from jaxserve.models.bert import TINY as BERT
from jaxserve.models.bert import Bert
from jaxserve.models.gpt import TINY as GPT
from jaxserve.models.gpt import Gpt, stack_layers
from jaxserve.models.moe import TINY as MOE
from jaxserve.models.moe import Moe
from jaxserve.models.resnet import TINY as RESNET
from jaxserve.models.resnet import Resnet
from jaxserve.models.vit import TINY as VIT
from jaxserve.models.vit import Vit
from jaxserve.plans import ParallelConfig
from tests.parallel.strangers import LENGTH, STRANGERS, drawn, inputs_of, of_linen

TOLERANCE = 2e-5
"""Of float32, by `difference`. Another order of summing makes about 5e-7 (bench/correctness.py)."""
BFLOAT16_FACTOR = 2.0
"""How many times farther from float32 than the whole bfloat16 model the sharded one may be, by `rms_difference`."""

TOKENS = {
    "input_ids": TensorSpec(("batch", LENGTH), "int32"),
    "attention_mask": TensorSpec(("batch", LENGTH), "int32"),
}
PICTURE = {"image": TensorSpec(("batch", 32, 32, 3), "float32")}

EVERY_CONFIG = tuple((intra, inter) for intra in (1, 2, 4, 8) for inter in (1, 2, 4, 8) if intra * inter <= 8)
SOME_CONFIGS = ((8, 1), (4, 2), (2, 4), (1, 8))
STRANGE_CONFIGS = ((2, 1), (8, 1), (2, 2), (1, 4), (4, 2))


def gpt(*, dtype: str, scan: bool = False, remat: bool = False, **options: Any) -> Model:
    config = dataclasses.replace(GPT, dtype=dtype)

    def module(**how: bool) -> Gpt:
        return nnx.eval_shape(lambda: Gpt(config, rngs=nnx.Rngs(0), **how))

    params = drawn(nnx.to_pure_dict(nnx.state(module())))
    return Model.from_nnx(
        "gpt", module(scan=scan, remat=remat), stack_layers(params) if scan else params, inputs=TOKENS, **options
    )


def of_zoo(name: str, module: Any, config: Any, inputs: Any) -> Callable[..., Model]:
    """A factory of a linen model of the zoo: without cuts, and with biases that are not zero."""
    return lambda *, dtype, **options: of_linen(
        name, module(dataclasses.replace(config, dtype=dtype)), inputs, **options
    )


ZOO: dict[str, Callable[..., Model]] = {
    "bert": of_zoo("bert", Bert, BERT, TOKENS),
    "moe": of_zoo("moe", Moe, MOE, TOKENS),
    "gpt": gpt,
    "gpt scanned": functools.partial(gpt, scan=True),
    "gpt rematerialised": functools.partial(gpt, remat=True),
    "gpt scanned and rematerialised": functools.partial(gpt, scan=True, remat=True),
    "vit": of_zoo("vit", Vit, VIT, PICTURE),
    "resnet": of_zoo("resnet", Resnet, RESNET, PICTURE),
}


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two numbers, as a part of the largest number of the expected output it belongs to.

    Not of each number itself: where a sum cancels to almost nothing, any other order of adding is far off by that
    measure. Structures, shapes and dtypes must be the same; integers must be equal, and all floats finite, else it is
    infinite.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    return max(map(_difference, jax.tree.leaves(found), jax.tree.leaves(expected)))


def _difference(found: Any, expected: Any) -> float:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else np.inf
    if not np.isfinite(found).all():
        return np.inf
    return float(np.max(np.abs(found - expected)) / max(1e-6, np.max(np.abs(expected))))


def rms_difference(found: Any, expected: Any) -> float:
    """The root mean square of the differences, as a part of that of the output; of several outputs, the largest.

    For rounding errors: the largest of a few of them is chance, and changes by half with any change of the program.
    """
    assert np.isfinite(difference(found, expected))

    def one(found: Any, expected: Any) -> float:
        return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))

    return max(map(one, jax.tree.leaves(found), jax.tree.leaves(expected)))


@functools.cache
def made(factory: Callable[..., Model], batch_size: int, **options: Any) -> Model:
    """The model with a single bucket, so that little is compiled."""
    return factory(batch_sizes=(batch_size,), **options)


@functools.cache
def whole(factory: Callable[..., Model], batch_size: int, **options: Any) -> Any:
    """What the model returns on one device, jitted as it is."""
    model = made(factory, batch_size, **options)
    returned = jax.jit(model.apply)(model.load_params(), inputs_of(model, batch_size=batch_size))
    return jax.tree.map(np.asarray, returned)


def parallel(factory: Callable[..., Model], batch_size: int, config: tuple[int, int], **options: Any) -> Any:
    """What the pipeline returns."""
    model = made(factory, batch_size, **options)
    parallel_config = ParallelConfig(*config)
    # What `parallelize` does, but for the time that it takes to measure the stages.
    pipeline = runtime.load(model, parallel_config, jax.devices()[: parallel_config.devices], repeats=1)
    try:
        return pipeline(inputs_of(model, batch_size=batch_size))
    finally:
        pipeline.close()


@pytest.fixture(scope="module", autouse=True)
def cheap_machine_code():
    """Compiling is most of the time here. This leaves out passes of LLVM, none of those that partition a program."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def batch_size_for(config: tuple[int, int]) -> int:
    """One row cannot be split, so on many devices something else must be."""
    return 1 if config[0] >= 4 else 4


def cases(names: Any, configs: Callable[[str], Any]) -> list[Any]:
    return [pytest.param(name, config, id=f"{name} {config}") for name in names for config in configs(name)]


def configs_for(name: str) -> tuple[tuple[int, int], ...]:
    """Every config for two models, fewer for the others: the variants of the GPT differ in how they are traced only."""
    if name in ("bert", "moe"):
        return EVERY_CONFIG
    return ((8, 1), (2, 4)) if name.startswith("gpt ") else SOME_CONFIGS


@pytest.mark.parametrize(("name", "config"), cases(ZOO, configs_for))
def test_a_model_of_the_zoo_equals_the_whole_one(name, config):
    batch_size = batch_size_for(config)
    found = parallel(ZOO[name], batch_size, config, dtype="float32")
    assert difference(found, whole(ZOO[name], batch_size, dtype="float32")) <= TOLERANCE


@pytest.mark.parametrize(("name", "config"), cases(STRANGERS, lambda _: STRANGE_CONFIGS))
def test_a_stranger_equals_the_whole_one(name, config):
    batch_size = batch_size_for(config)
    found = parallel(STRANGERS[name], batch_size, config)
    assert difference(found, whole(STRANGERS[name], batch_size)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "config"), cases(ZOO, lambda name: ((2, 2),) if name.startswith("gpt ") else ((8, 1), (2, 2)))
)
def test_bfloat16_is_as_near_to_float32_as_when_whole(name, config):
    """The params are the same numbers, so what differs is the rounding between operations."""
    exact = whole(ZOO[name], 4, dtype="float32")
    allowed = BFLOAT16_FACTOR * rms_difference(whole(ZOO[name], 4, dtype="bfloat16"), exact)
    assert rms_difference(parallel(ZOO[name], 4, config, dtype="bfloat16"), exact) <= allowed


def test_a_difference_is_seen():
    expected = {"a": np.array([1.0, -4.0], np.float32), "b": np.array([1, 2], np.int32)}
    assert difference(expected, expected) == 0
    for name, value, size in (
        ("a", np.array([1.0, -3.0], np.float32), 0.25),
        ("a", np.array([1.0, np.nan], np.float32), np.inf),
        ("b", np.array([1, 3], np.int32), np.inf),
    ):
        assert difference({**expected, name: value}, expected) == size
