"""Models that no sharding rule was written for: tiny, seeded, float32, without cuts.

Most sizes divide by 8, so that sharding is possible; some are awkward on purpose (6 heads, 10 classes, 50 words, 13
features). No result hangs on how a sum is rounded: what is compared, sorted or branched on is an integer, or floats
that lie far apart. Every bias and running mean is drawn too, for a bias that is added once on each device shows only
where it is not zero.

`STRANGERS` holds the factories by name; each takes the options of `jaxserve.Model`. `inputs_of` draws a model's inputs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxserve.model import Model, TensorSpec

WORDS = 50
CLASSES = 10
LENGTH = 8
SIDE = 16
WIDTH = 32
BATCH_SIZES = (1, 4)

IDS = {"ids": TensorSpec(("batch", LENGTH), "int32")}
IMAGE = {"image": TensorSpec(("batch", SIDE, SIDE, 3), "float32")}
TOKENS = {"x": TensorSpec(("batch", LENGTH, WIDTH), "float32")}
VECTOR = {"x": TensorSpec(("batch", WIDTH), "float32")}

# Integers of an input lie below this; of others, below the number of words.
BELOW = {"steps": 12, "flags": 2, "position": LENGTH, "segments": 3, "day": 7, "valid": 2, "attention_mask": 2}


def inputs_of(model: Model, *, batch_size: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Normal floats, and integers within range, at the smallest bucket's lengths."""
    generator = np.random.default_rng(seed)
    sizes = model.buckets[0].sizes | {"batch": batch_size}

    def draw(name: str, spec: TensorSpec) -> np.ndarray[Any, Any]:
        shape = spec.resolve(sizes)
        if spec.dtype == "int32":
            return generator.integers(0, BELOW.get(name, WORDS), shape, dtype=np.int32)
        return generator.standard_normal(shape).astype(spec.dtype)

    return {name: draw(name, spec) for name, spec in model.inputs.items()}


def drawn(shapes: Any, *, seed: int = 0) -> Any:
    """Arrays of these shapes: scales and variances near 1, biases and means near 0, all else of variance 1 / fan-in.

    The numbers are such as bfloat16 holds, so that a model and its bfloat16 twin have the same params.
    """
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray[Any, Any]:
        name = str(getattr(path[-1], "key", path[-1]))
        normal = generator.standard_normal(leaf.shape)
        if name in ("scale", "var"):
            normal = 1 + 0.1 * np.abs(normal)
        elif name in ("bias", "mean"):
            normal = 0.1 * normal
        else:
            normal = normal / math.sqrt(math.prod(leaf.shape[:-1]))
        return np.asarray(normal).astype(jnp.bfloat16).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def shape_of(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """A param to be drawn."""
    return jax.ShapeDtypeStruct(shape, dtype)


def linen_shapes(module: nn.Module, inputs: Mapping[str, TensorSpec]) -> Any:
    """Shapes of what the module's `init` returns; nothing is compiled."""
    arrays = {
        name: shape_of(*(LENGTH if isinstance(size, str) else size for size in spec.shape), dtype=spec.dtype)
        for name, spec in inputs.items()
    }
    return jax.eval_shape(lambda arrays: module.init(jax.random.key(0), **arrays), arrays)


def of_linen(name: str, module: nn.Module, inputs: Mapping[str, TensorSpec], **options: Any) -> Model:
    options.setdefault("batch_sizes", BATCH_SIZES)
    return Model.from_linen(name, module, drawn(linen_shapes(module, inputs)), inputs=inputs, **options)


def of_function(
    name: str, function: Callable[..., Any], params: Any, inputs: Mapping[str, TensorSpec], **options: Any
) -> Model:
    options.setdefault("batch_sizes", BATCH_SIZES)
    return Model.from_function(name, function, params, inputs=inputs, **options)


# Sequences


class LstmClassifier(nn.Module):
    """Two directions, so one loop runs backwards; a carry of two arrays."""

    @nn.compact
    def __call__(self, *, ids):
        x = nn.Embed(WORDS, WIDTH, name="embed")(ids)
        x = recur(nn.OptimizedLSTMCell(WIDTH), x, name="forward")
        x = x + recur(nn.LSTMCell(WIDTH), x, name="backward", reverse=True, keep_order=True)
        return nn.Dense(CLASSES, name="classes")(x.mean(axis=1))


def recur(cell: nn.RNNCellBase, x: jax.Array, **options: Any) -> Any:
    return nn.RNN(cell, **options)(x)


def lstm(**options: Any) -> Model:
    return of_linen("lstm", LstmClassifier(), IDS, **options)


class TiedDecoder(nn.Module):
    """One layer's weights used in every layer, the word table at both ends: params that several stages hold."""

    @nn.compact
    def __call__(self, *, ids):
        embed = nn.Embed(WORDS, WIDTH, name="embed")
        layer = nn.MultiHeadDotProductAttention(num_heads=4, name="layer")
        norm = nn.LayerNorm(name="norm")
        mask = nn.make_causal_mask(ids)
        x = first = embed(ids)
        for _ in range(3):
            x = norm(x + layer(x, mask=mask))
        return embed.attend(x + first)


def tied(**options: Any) -> Model:
    return of_linen("tied", TiedDecoder(), IDS, **options)


def state_space(**options: Any) -> Model:
    """Diagonal recurrences h[t] = a[t] h[t - 1] + b[t], by an associative scan over the time."""

    def layer(params, x):
        decay = jax.nn.sigmoid(x @ params["decay"] + params["bias"])
        driven = (1 - decay) * (x @ params["drive"])

        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, state = lax.associative_scan(combine, (decay, driven), axis=1)
        return x + jax.nn.silu(x @ params["gate"]) * state

    def function(params, x):
        for each in params["layers"]:
            x = layer(each, x)
        return x[:, -1] @ params["head"]

    square = shape_of(WIDTH, WIDTH)
    one = {"decay": square, "drive": square, "gate": square, "bias": shape_of(WIDTH)}
    shapes = {"layers": [one, one], "head": shape_of(WIDTH, CLASSES)}
    return of_function("state_space", function, drawn(shapes), TOKENS, **options)


def odd_einsums(**options: Any) -> Model:
    """Attention of 6 heads whose operands lie in different orders, kernels of three dimensions, a trilinear form."""
    heads, size = 6, 8

    def function(params, x):
        query = jnp.einsum("bqm,hmd->bhqd", x, params["query"])
        key = jnp.einsum("mhd,bkm->bkhd", params["key"], x)
        value = jnp.einsum("bkm,mdh->bhdk", x, params["value"])
        scores = jnp.einsum("bhqd,bkhd->bhqk", query, key) / math.sqrt(size)
        scores = scores + jnp.einsum("hq,hk->hqk", params["rows"], params["columns"])
        mixed = jnp.einsum("bhqk,bhdk->qbhd", jax.nn.softmax(scores), value)
        hidden = jnp.einsum("qbhd,dhm->bmq", mixed, params["output"])
        pairs = jnp.einsum("bmi,bmj,m->bij", hidden, hidden, params["pair"])
        return {"pairs": pairs, "diagonal": jnp.einsum("bii->bi", pairs), "sum": jnp.einsum("bmq->bm", hidden)}

    shapes = {
        "query": shape_of(heads, WIDTH, size),
        "key": shape_of(WIDTH, heads, size),
        "value": shape_of(WIDTH, size, heads),
        "output": shape_of(size, heads, WIDTH),
        "rows": shape_of(heads, LENGTH),
        "columns": shape_of(heads, LENGTH),
        "pair": shape_of(WIDTH),
    }
    return of_function("odd_einsums", function, drawn(shapes), TOKENS, **options)


def fourier(**options: Any) -> Model:
    """Tokens mixed by an FFT over two dimensions: complex numbers between stages."""

    def function(params, x):
        for each in params["layers"]:
            spectrum = jnp.fft.fft2(x, axes=(1, 2))
            spectrum = spectrum * (1 + 1j * each["phase"])
            x = x + jax.nn.gelu(jnp.real(jnp.fft.ifft2(spectrum, axes=(1, 2))) @ each["up"]) @ each["down"]
        return jnp.max(x, axis=1)

    one = {"phase": shape_of(WIDTH), "up": shape_of(WIDTH, 64), "down": shape_of(64, WIDTH)}
    return of_function("fourier", function, drawn({"layers": [one, one]}), TOKENS, **options)


# Images


class UNet(nn.Module):
    """Skips that reach from each level down to the same level up; up by a transposed convolution and by a resize."""

    @nn.compact
    def __call__(self, *, image):
        def conv(channels, name, stride=1):
            return nn.Conv(channels, (3, 3), (stride, stride), name=name)

        top = nn.relu(conv(8, "top")(image))
        middle = nn.relu(nn.GroupNorm(4, name="middle_norm")(conv(16, "middle", 2)(top)))
        bottom = nn.relu(conv(32, "bottom")(nn.max_pool(middle, (2, 2), strides=(2, 2))))
        up = nn.ConvTranspose(16, (2, 2), strides=(2, 2), name="up")(bottom)
        up = nn.relu(conv(16, "middle_again")(jnp.concatenate([up, middle], axis=-1)))
        up = jax.image.resize(up, (*top.shape[:3], 16), "nearest")
        up = nn.relu(conv(8, "top_again")(jnp.concatenate([top, up], axis=-1)))
        return nn.Conv(3, (1, 1), name="classes")(up)


def unet(**options: Any) -> Model:
    return of_linen("unet", UNet(), IMAGE, **options)


class Mixer(nn.Module):
    """Dense layers over the tokens and over the channels in turn: transposes, no attention."""

    @nn.compact
    def __call__(self, *, image):
        x = nn.Conv(WIDTH, (4, 4), (4, 4), name="patch")(image)
        x = x.reshape(x.shape[0], -1, WIDTH)
        for index in range(2):
            across = nn.LayerNorm(name=f"token_norm_{index}")(x).swapaxes(1, 2)
            across = nn.Dense(x.shape[1], name=f"token_down_{index}")(
                nn.gelu(nn.Dense(24, name=f"token_up_{index}")(across))
            )
            x = x + across.swapaxes(1, 2)
            within = nn.LayerNorm(name=f"norm_{index}")(x)
            x = x + nn.Dense(WIDTH, name=f"down_{index}")(nn.gelu(nn.Dense(64, name=f"up_{index}")(within)))
        return nn.Dense(CLASSES, name="classes")(x.mean(axis=1))


def mixer(**options: Any) -> Model:
    return of_linen("mixer", Mixer(), IMAGE, **options)


class MobileNet(nn.Module):
    """Depthwise, grouped and dilated convolutions, batch norms, a squeeze-and-excitation gate."""

    @nn.compact
    def __call__(self, *, image):
        x = nn.Conv(16, (3, 3), (2, 2), use_bias=False, name="stem")(image)
        for index, groups in enumerate((16, 4)):
            y = nn.Conv(16, (3, 3), feature_group_count=groups, name=f"spread_{index}", kernel_dilation=index + 1)(x)
            y = nn.relu6(nn.BatchNorm(use_running_average=True, name=f"norm_{index}")(y))
            gate = nn.sigmoid(nn.Dense(16, name=f"gate_{index}")(y.mean(axis=(1, 2))))
            x = x + nn.Conv(16, (1, 1), name=f"point_{index}")(y * gate[:, None, None])
        return nn.Dense(CLASSES, name="classes")(nn.avg_pool(x, (8, 8)).reshape(x.shape[0], -1))


def mobilenet(**options: Any) -> Model:
    return of_linen("mobilenet", MobileNet(), IMAGE, **options)


# Tables, and several inputs and outputs


def recommender(**options: Any) -> Model:
    """As DLRM: three embedding tables, one of them a bag; dot products of all pairs; two dense towers."""
    rows = {"user": 512, "item": 256, "tags": WORDS}

    def function(params, user, item, tags, dense):
        tables = params["tables"]
        bag = jnp.sum(jnp.take(tables["tags"], tags, axis=0), axis=1)
        below = jax.nn.relu(dense @ params["bottom"] + params["bias"])
        features = jnp.stack([tables["user"][user], tables["item"][item], bag, below], axis=1)
        dots = jnp.einsum("bif,bjf->bij", features, features)
        lower = np.tril_indices(4, -1)
        joined = jnp.concatenate([below, dots[:, lower[0], lower[1]]], axis=1)
        return jax.nn.sigmoid(jax.nn.relu(joined @ params["top"]) @ params["click"])[:, 0]

    shapes = {
        "tables": {name: shape_of(count, WIDTH) for name, count in rows.items()},
        "bottom": shape_of(13, WIDTH),
        "bias": shape_of(WIDTH),
        "top": shape_of(WIDTH + 6, 24),
        "click": shape_of(24, 1),
    }
    inputs = {
        "user": TensorSpec(("batch",), "int32"),
        "item": TensorSpec(("batch",), "int32"),
        "tags": TensorSpec(("batch", 5), "int32"),
        "dense": TensorSpec(("batch", 13), "float32"),
    }
    return of_function("recommender", function, drawn(shapes), inputs, **options)


class TwoTowers(nn.Module):
    """Inputs of different lengths, two of them used late; a nested dict, an input and integers among the outputs."""

    @nn.compact
    def __call__(self, *, query, document, valid, day):
        def tower(x, name):
            x = nn.gelu(nn.Dense(64, name=f"{name}_up")(x))
            return nn.LayerNorm(name=f"{name}_norm")(nn.Dense(WIDTH, name=f"{name}_down")(x))

        words = nn.Embed(WORDS, WIDTH, name="words")
        asked = tower(words(query).mean(axis=1), "query")
        found = tower(words(document), "document")
        scores = jnp.einsum("bf,bnf->bn", asked, found) + nn.Embed(7, 1, name="day")(day)[:, 0]
        scores = jnp.where(valid > 0, scores, -1e3)
        return {"scores": scores, "embedding": {"query": asked, "documents": found}, "given": document, "day": day + 1}


def two_towers(**options: Any) -> Model:
    inputs = {
        "query": TensorSpec(("batch", 5), "int32"),
        "document": TensorSpec(("batch", 12), "int32"),
        "valid": TensorSpec(("batch", 12), "int32"),
        "day": TensorSpec(("batch", 1), "int32"),
    }
    return of_linen("two_towers", TwoTowers(), inputs, **options)


# Control flow


def equilibrium(**options: Any) -> Model:
    """A `while_loop` whose number of turns is the largest of an input: each row stops at its own."""

    def function(params, x, steps):
        drive = x @ params["drive"] + params["bias"]

        def go_on(state):
            turn, _ = state
            return turn < jnp.max(steps)

        def turn_once(state):
            turn, z = state
            fresh = jnp.tanh(z @ params["recur"] + drive)
            return turn + 1, jnp.where((turn < steps)[:, None], fresh, z)

        turns, z = lax.while_loop(go_on, turn_once, (0, jnp.zeros_like(drive)))
        return {"z": z @ params["head"], "turns": jnp.broadcast_to(turns, steps.shape)}

    shapes = {
        "drive": shape_of(WIDTH, WIDTH),
        "recur": shape_of(WIDTH, WIDTH),
        "bias": shape_of(WIDTH),
        "head": shape_of(WIDTH, CLASSES),
    }
    inputs = {**VECTOR, "steps": TensorSpec(("batch",), "int32")}
    return of_function("equilibrium", function, drawn(shapes), inputs, **options)


def branches(**options: Any) -> Model:
    """A `cond` of two branches with different weights, then a `switch` of three."""

    def function(params, x, flags, segments):
        x = jax.nn.relu(x @ params["before"])
        x = lax.cond(
            jnp.sum(flags) > 0,
            lambda x: jnp.tanh(x @ params["yes"]) + params["bias"],
            lambda x: x @ params["no"],
            x,
        )
        kinds = [lambda x: x, lambda x: jnp.cumsum(x, axis=1), lambda x: x @ params["yes"]]
        return lax.switch(jnp.max(segments), kinds, x) @ params["after"]

    square = shape_of(WIDTH, WIDTH)
    shapes = {"before": square, "yes": square, "no": square, "bias": shape_of(WIDTH), "after": shape_of(WIDTH, CLASSES)}
    inputs = {**VECTOR, "flags": TensorSpec(("batch",), "int32"), "segments": TensorSpec(("batch",), "int32")}
    return of_function("branches", function, drawn(shapes), inputs, **options)


# Indexing


def ranking(**options: Any) -> Model:
    """Sort, argsort, top_k, cumsum, gathers by what they found, argmax: along features that one may shard."""

    def function(params, x):
        scores = x @ params["items"].T
        best, places = lax.top_k(scores, 6)
        found = jnp.sum(jax.nn.softmax(best)[..., None] * params["items"][places], axis=1)
        order = jnp.argsort(found, axis=-1, descending=True)
        ranked = jnp.take_along_axis(found, order, axis=-1)
        shares = jnp.cumsum(jax.nn.softmax(ranked), axis=-1)
        return {
            "places": places,
            "nucleus": jnp.where(shares < 0.9, ranked, 0.0) @ params["head"],
            "sorted": jnp.sort(x @ params["head"], axis=-1)[:, ::-1],
            "first": jnp.argmax(scores, axis=-1),
        }

    shapes = {"items": shape_of(WORDS, WIDTH), "head": shape_of(WIDTH, CLASSES)}
    return of_function("ranking", function, drawn(shapes), VECTOR, **options)


def ragged(**options: Any) -> Model:
    """A mixture of experts by sorting: tokens ordered by their expert, one ragged product, and put back."""
    experts = 8

    def function(params, ids):
        x = params["words"][ids].reshape(-1, WIDTH)
        expert = (ids % experts).reshape(-1)
        order = jnp.argsort(expert)
        sizes = jnp.bincount(expert, length=experts).astype(jnp.int32)
        hidden = jax.nn.gelu(lax.ragged_dot(x[order], params["up"], sizes))
        out = lax.ragged_dot(hidden, params["down"], sizes)
        x = x + jnp.zeros_like(out).at[order].set(out)
        return jnp.sum(x.reshape(*ids.shape, WIDTH), axis=1) @ params["head"]

    shapes = {
        "words": shape_of(WORDS, WIDTH),
        "up": shape_of(experts, WIDTH, 64),
        "down": shape_of(experts, 64, WIDTH),
        "head": shape_of(WIDTH, CLASSES),
    }
    return of_function("ragged", function, drawn(shapes), IDS, **options)


def cache(**options: Any) -> Model:
    """A step of a decoder: a cache written at one place of all rows and at one place of each, read by a window."""
    heads, size = 4, 8

    def function(params, x, history, position):
        batch = x.shape[0]
        keys = history @ params["key"]
        fresh = (x @ params["key"])[:, None]
        start = jnp.min(position)
        keys = lax.dynamic_update_slice(keys, fresh, (0, start, 0))
        values = jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (at, 0)))(history, fresh, position)
        window = lax.dynamic_slice_in_dim(values, start // 2, 4, axis=1).reshape(batch, 4, heads, size)
        recent = lax.dynamic_slice(keys, (0, start // 2, 0), (batch, 4, WIDTH)).reshape(batch, 4, heads, size)
        query = (x @ params["query"]).reshape(batch, heads, size)
        weights = jax.nn.softmax(jnp.einsum("bhd,bkhd->bhk", query, recent))
        seen = jnp.einsum("bhk,bkhd->bhd", weights, window).reshape(batch, WIDTH)
        bias = lax.dynamic_index_in_dim(params["bias"], start, keepdims=False)
        return {"next": seen @ params["output"] + bias, "keys": keys}

    square = shape_of(WIDTH, WIDTH)
    shapes = {"key": square, "query": square, "output": square, "bias": shape_of(LENGTH, WIDTH)}
    inputs = {
        **VECTOR,
        "history": TensorSpec(("batch", LENGTH, WIDTH), "float32"),
        "position": TensorSpec(("batch",), "int32"),
    }
    return of_function("cache", function, drawn(shapes), inputs, **options)


# Numbers, constants, state


def quantised(**options: Any) -> Model:
    """int8 kernels: one multiplied with int8 inputs into int32, the others dequantised by channel before their use."""

    def function(params, x):
        whole = jnp.clip(jnp.round(x * 32), -127, 127).astype(jnp.int8)
        x = lax.dot(whole, params["first"], preferred_element_type=jnp.int32).astype(jnp.float32)
        x = jax.nn.relu(x * params["first_step"] / 32)
        for kernel, step in zip(params["kernels"], params["steps"], strict=True):
            x = jax.nn.relu(x @ (kernel.astype(jnp.float32) * step)) + x
        return x @ params["head"]

    generator = np.random.default_rng(0)

    def kernel():
        return generator.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)

    def step():
        return generator.uniform(0.5, 1.5, WIDTH).astype(np.float32) / (64 * math.sqrt(WIDTH))

    params = {
        "first": kernel(),
        "first_step": step(),
        "kernels": [kernel(), kernel()],
        "steps": [step(), step()],
        "head": drawn({"kernel": shape_of(WIDTH, CLASSES)})["kernel"],
    }
    return of_function("quantised", function, params, VECTOR, **options)


def constants(**options: Any) -> Model:
    """A large numpy table and a jax one, closed over: a codebook by which inputs are replaced, and a kernel."""
    generator = np.random.default_rng(0)
    codebook = generator.standard_normal((256, WIDTH)).astype(np.float32)
    kernel = jnp.asarray(generator.standard_normal((WIDTH, 256)).astype(np.float32) / math.sqrt(WIDTH))

    def function(params, x):
        distance = jnp.sum((x[:, None] - codebook) ** 2, axis=-1)
        nearest = jnp.asarray(codebook)[jnp.argmin(distance, axis=-1)]
        hidden = jax.nn.gelu((nearest + x @ params["mix"]) @ kernel)
        return hidden @ codebook + params["bias"]

    shapes = {"mix": shape_of(WIDTH, WIDTH), "bias": shape_of(WIDTH)}
    return of_function("constants", function, drawn(shapes), VECTOR, **options)


def noisy(**options: Any) -> Model:
    """Random numbers from a key in the program, and a key that is a param: splits, normals, a choice."""

    def function(params, x):
        first, second = jax.random.split(jax.random.wrap_key_data(params["key"]))
        x = jnp.tanh(x @ params["up"] + jax.random.normal(first, (WIDTH,)))
        kept = jax.random.bernoulli(second, 0.7, x.shape[1:])
        return jnp.where(kept, x / 0.7, 0) @ params["down"] + jax.random.uniform(jax.random.key(3), (CLASSES,))

    shapes = {"up": shape_of(WIDTH, WIDTH), "down": shape_of(WIDTH, CLASSES)}
    params = {**drawn(shapes), "key": np.array([0, 42], np.uint32)}
    return of_function("noisy", function, params, VECTOR, **options)


def gaussian_process(**options: Any) -> Model:
    """A Cholesky factor of the params, and a triangular and a general solve: calls of LAPACK on CPU."""

    def function(params, x):
        def covariance(a, b):
            return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / WIDTH)

        points = params["points"]
        factor = jnp.linalg.cholesky(covariance(points, points) + 0.1 * jnp.eye(24))
        cross = covariance(x, points)
        half = jax.scipy.linalg.solve_triangular(factor, cross.T, lower=True)
        mean = cross @ jax.scipy.linalg.cho_solve((factor, True), params["values"])
        small = jnp.einsum("bi,bj->bij", mean, mean) + 2 * jnp.eye(3)
        return {
            "mean": mean,
            "variance": 1.1 - jnp.sum(half**2, axis=0),
            "solved": jnp.linalg.solve(small, mean[..., None]),
        }

    shapes = {"points": shape_of(24, WIDTH), "values": shape_of(24, 3)}
    return of_function("gaussian_process", function, drawn(shapes), VECTOR, **options)


class NormedNet(nnx.Module):
    """Batch norms by their running averages, dropout that does nothing, a list of blocks in a child, tied ends."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(WIDTH, rngs=rngs) for _ in range(3)])
        self.ups = nnx.List([nnx.Linear(WIDTH, 64, rngs=rngs) for _ in range(3)])
        self.downs = nnx.List([nnx.Linear(64, WIDTH, rngs=rngs) for _ in range(3)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, *, ids):
        x = self.embed(ids)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + self.dropout(down(jax.nn.gelu(up(norm(x)))))
        return self.embed.attend(x)


def normed(**options: Any) -> Model:
    module = nnx.eval_shape(lambda: NormedNet(nnx.Rngs(0)))
    params = drawn(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    options.setdefault("batch_sizes", BATCH_SIZES)
    return Model.from_nnx("normed", module, params, inputs=IDS, **options)


STRANGERS: dict[str, Callable[..., Model]] = {
    factory.__name__: factory
    for factory in (
        lstm,
        tied,
        state_space,
        odd_einsums,
        fourier,
        unet,
        mixer,
        mobilenet,
        recommender,
        two_towers,
        equilibrium,
        branches,
        ranking,
        ragged,
        cache,
        quantised,
        constants,
        noisy,
        gaussian_process,
        normed,
    )
}
