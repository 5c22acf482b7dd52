"""The zoo: models to serve at once, and models to plan for.

Each factory returns a `jaxserve.Model` of demonstration size, whose layers are the modules "layers_0", "layers_1", ...
All but `minilm` have random params, drawn from a seed. `planning_model` has only the shapes of params.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from jaxserve.config import cache_directory
from jaxserve.errors import ConfigError
from jaxserve.model import Model, TensorSpec
from jaxserve.model.model import ModelOptions
from jaxserve.models import bert as _bert
from jaxserve.models import gpt as _gpt
from jaxserve.models import minilm as _minilm
from jaxserve.models import moe as _moe
from jaxserve.models import resnet as _resnet
from jaxserve.models import vit as _vit

__all__ = ["PLANNING_MODELS", "bert", "gpt", "minilm", "moe", "planning_model", "resnet", "vit"]

PLANNING_MODELS = (*_bert.PLANNED, *_moe.PLANNED)

_TOKENS = {
    "input_ids": TensorSpec(("batch", "length"), "int32"),
    "attention_mask": TensorSpec(("batch", "length"), "int32"),
}


def minilm(
    *,
    directory: Path | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (16, 32, 64, 128, 256),
    deadline_s: float | None = 1.0,
) -> Model:
    """all-MiniLM-L6-v2 with its real weights: {"text": n sentences} to {"embedding": float32 [n, 384]} of length 1.

    Args:
        directory: where the weights are kept once they are fetched; None for jaxserve's cache directory.
        batch_sizes: to compile.
        lengths: in tokens, to compile; sentences are cut at 256.
        deadline_s: the default deadline.

    Raises:
        ModelError: the weights are not there and cannot be fetched.
        MissingExtra: `safetensors` or `tokenizers` is not installed.
    """
    folder = _minilm.fetch_minilm(cache_directory() if directory is None else directory)
    tokenizer = _minilm.MinilmTokenizer(folder / _minilm.TOKENIZER)
    return Model.from_linen(
        "minilm",
        _bert.Bert(_bert.MINILM),
        _minilm.minilm_params(folder / _minilm.WEIGHTS),
        inputs=_TOKENS,
        batch_sizes=batch_sizes,
        buckets={"length": lengths},
        deadline_s=deadline_s,
        preprocess=tokenizer,
        accepts={"text": TensorSpec(("batch",), "string")},
        embedder=True,
        count_tokens=tokenizer.count_tokens,
    )


def bert(
    config: _bert.BertConfig = _bert.SMALL,
    *,
    name: str = "bert",
    batch_sizes: Sequence[int] = (1, 4, 8),
    lengths: Sequence[int] = (32, 64),
    deadline_s: float | None = 0.2,
    seed: int = 0,
) -> Model:
    """A BERT that scores classes: int32 input_ids and attention_mask [batch, length] to logits [batch, classes]."""
    return _seeded(
        name,
        _bert.Bert(config),
        seed,
        inputs=_TOKENS,
        batch_sizes=batch_sizes,
        buckets={"length": lengths},
        deadline_s=deadline_s,
    )


def gpt(
    config: _gpt.GptConfig = _gpt.SMALL,
    *,
    name: str = "gpt",
    batch_sizes: Sequence[int] = (1, 4, 8),
    lengths: Sequence[int] = (32, 64),
    deadline_s: float | None = 0.2,
    seed: int = 0,
    scan: bool = False,
    remat: bool = False,
) -> Model:
    """A GPT's prefill: int32 input_ids and attention_mask [batch, length] to logits [batch, vocabulary or classes].

    With `scan` its layers are stacked and run by one `nnx.scan`, with `remat` each runs under `nnx.remat`, as programs
    that were written for training do. The answers are the same, and so are the names of the layers.
    """
    module = nnx.eval_shape(lambda: _gpt.Gpt(config, rngs=nnx.Rngs(0)))
    params = _random_params(nnx.to_pure_dict(nnx.state(module)), seed)
    if scan or remat:
        module = nnx.eval_shape(lambda: _gpt.Gpt(config, rngs=nnx.Rngs(0), scan=scan, remat=remat))
    return Model.from_nnx(
        name,
        module,
        _gpt.stack_layers(params) if scan else params,
        inputs=_TOKENS,
        batch_sizes=batch_sizes,
        buckets={"length": lengths},
        deadline_s=deadline_s,
    )


def moe(
    config: _moe.MoeConfig = _moe.SMALL,
    *,
    name: str = "moe",
    batch_sizes: Sequence[int] = (1, 4, 8),
    lengths: Sequence[int] = (32, 64),
    deadline_s: float | None = 0.2,
    seed: int = 0,
) -> Model:
    """A mixture of experts: int32 input_ids and attention_mask [batch, length] to logits [batch, classes]."""
    return _seeded(
        name,
        _moe.Moe(config),
        seed,
        inputs=_TOKENS,
        batch_sizes=batch_sizes,
        buckets={"length": lengths},
        deadline_s=deadline_s,
    )


def vit(
    config: _vit.VitConfig = _vit.SMALL,
    *,
    name: str = "vit",
    batch_sizes: Sequence[int] = (1, 4, 8),
    deadline_s: float | None = 0.2,
    seed: int = 0,
) -> Model:
    """A vision transformer: float32 image [batch, 32, 32, 3] to logits [batch, classes]."""
    return _seeded(
        name,
        _vit.Vit(config),
        seed,
        inputs={"image": TensorSpec(("batch", config.image_size, config.image_size, 3), "float32")},
        batch_sizes=batch_sizes,
        deadline_s=deadline_s,
    )


def resnet(
    config: _resnet.ResnetConfig = _resnet.SMALL,
    *,
    name: str = "resnet",
    batch_sizes: Sequence[int] = (1, 4, 8),
    deadline_s: float | None = 0.2,
    seed: int = 0,
) -> Model:
    """A residual network: float32 image [batch, 32, 32, 3] to logits [batch, classes]."""
    return _seeded(
        name,
        _resnet.Resnet(config),
        seed,
        inputs={"image": TensorSpec(("batch", 32, 32, 3), "float32")},
        batch_sizes=batch_sizes,
        deadline_s=deadline_s,
    )


def planning_model(name: str, *, batch_sizes: Sequence[int] = (1,), lengths: Sequence[int] | None = None) -> Model:
    """One of `PLANNING_MODELS` with shapes in place of params: it can be traced, cut and priced, but not loaded.

    Commands reach them as `jaxserve.models:bert_6_7b` and the like.

    Args:
        name: such as "bert-6.7b".
        batch_sizes: to plan for.
        lengths: in tokens, to plan for; None for the model's longest.

    Raises:
        ConfigError: there is none of this name.
    """
    if name in _bert.PLANNED:
        config = _bert.PLANNED[name]
        module = _bert.Bert(config)
    elif name in _moe.PLANNED:
        config = _moe.PLANNED[name]
        module = _moe.Moe(config)
    else:
        raise ConfigError(f"there is no planning model {name!r}; choose one of {', '.join(PLANNING_MODELS)}")
    return Model.from_linen(
        name,
        module,
        _abstract_params(module, _TOKENS),
        inputs=_TOKENS,
        batch_sizes=batch_sizes,
        buckets={"length": lengths or (config.max_length,)},
    )


def bert_1_3b() -> Model:
    """`planning_model("bert-1.3b")`."""
    return planning_model("bert-1.3b")


def bert_2_7b() -> Model:
    """`planning_model("bert-2.7b")`."""
    return planning_model("bert-2.7b")


def bert_6_7b() -> Model:
    """`planning_model("bert-6.7b")`."""
    return planning_model("bert-6.7b")


def bert_104b() -> Model:
    """`planning_model("bert-104b")`."""
    return planning_model("bert-104b")


def moe_1_3b() -> Model:
    """`planning_model("moe-1.3b")`."""
    return planning_model("moe-1.3b")


def moe_2_4b() -> Model:
    """`planning_model("moe-2.4b")`."""
    return planning_model("moe-2.4b")


def moe_5_3b() -> Model:
    """`planning_model("moe-5.3b")`."""
    return planning_model("moe-5.3b")


def _seeded(
    name: str, module: nn.Module, seed: int, *, inputs: Mapping[str, TensorSpec], **options: Unpack[ModelOptions]
) -> Model:
    """A model of a linen module with random params."""
    params = _random_params(_abstract_params(module, inputs), seed)
    return Model.from_linen(name, module, params, inputs=inputs, **options)


def _abstract_params(module: nn.Module, inputs: Mapping[str, TensorSpec]) -> Any:
    """Shapes and dtypes of what the module's `init` returns; nothing is allocated, however large it is."""
    sizes = {name: tuple(1 if isinstance(size, str) else size for size in spec.shape) for name, spec in inputs.items()}
    arrays = {name: jax.ShapeDtypeStruct(sizes[name], spec.dtype) for name, spec in inputs.items()}
    return jax.eval_shape(lambda arrays: module.init(jax.random.key(0), **arrays), arrays)


def _random_params(shapes: Any, seed: int) -> Any:
    """Arrays of these shapes: scales and variances 1, biases and means 0, all else normal of variance 1 / fan-in.

    Drawn by numpy, since a program that does what the modules' own initializers do takes seconds to compile.
    """
    random = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray[Any, Any]:
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if name in ("bias", "mean"):
            return np.zeros(leaf.shape, leaf.dtype)
        return (random.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
