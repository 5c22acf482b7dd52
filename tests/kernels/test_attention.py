"""The fused kernel against its plain-JAX twin in Pallas' GPU interpreter, its lowering, and the choice of one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxserve_kernels import attention as module
from jaxserve_kernels.attention import Regime, attention, attention_reference, fused_attention

# Compiled as a whole: one program a call takes a third of the time of one for each operation.
reference = jax.jit(attention_reference, static_argnames="causal")
kernel = jax.jit(functools.partial(fused_attention, interpret=True), static_argnames="causal")

TOLERANCE = {"float32": 5e-5, "bfloat16": 3e-2, "float16": 4e-3}

# batch, length, heads, head_dim; causal. One block and several, ragged ends, one token, head_dim that no tile divides.
# The interpreter takes a second for each, so not every combination is here.
CASES = [
    ((1, 64, 2, 64), False),
    ((2, 70, 1, 20), True),
    ((1, 129, 1, 48), True),
    ((2, 1, 2, 128), False),
    ((1, 130, 1, 32), False),
]


def inputs(shape: tuple[int, ...], dtype: str, *, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Query, key, value and a mask whose last row sees nothing."""
    rng = np.random.default_rng(seed)
    query, key, value = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
    mask = rng.random(shape[:2]) < 0.7
    if shape[0] > 1:
        mask[-1] = False
    return query, key, value, jnp.asarray(mask)


def attention_in_float64(query, key, value, mask, *, causal: bool) -> np.ndarray:
    """The definition, query by query."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    out = np.zeros_like(query)
    for b, q, h in np.ndindex(query.shape[:3]):
        seen = np.flatnonzero(np.asarray(mask[b]) & (np.arange(key.shape[1]) <= q if causal else True))
        if seen.size:
            scores = key[b, seen, h] @ query[b, q, h] / math.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, q, h] = weights / weights.sum() @ value[b, seen, h]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 3, 5), (1, 1, 1, 8), (2, 33, 2, 16)])
def test_reference_is_the_definition(shape, causal):
    query, key, value, mask = inputs(shape, "float32")
    found = reference(query, key, value, mask, causal=causal)
    np.testing.assert_allclose(found, attention_in_float64(query, key, value, mask, causal=causal), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_no_mask_is_a_mask_of_ones(causal):
    query, key, value, mask = inputs((2, 9, 3, 5), "float32")
    everything = reference(query, key, value, jnp.ones_like(mask), causal=causal)
    np.testing.assert_allclose(attention_reference(query, key, value, causal=causal), everything, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "causal"), CASES)
def test_kernel_is_the_reference(shape, dtype, causal):
    query, key, value, mask = inputs(shape, dtype)
    found = kernel(query, key, value, mask, causal=causal)
    exact = reference(*(x.astype(jnp.float32) for x in (query, key, value)), mask, causal=causal)
    assert found.dtype == query.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=TOLERANCE[dtype])


def test_kernel_takes_queries_and_keys_of_different_lengths():
    query = inputs((1, 5, 1, 16), "float32")[0]
    _, key, value, mask = inputs((1, 70, 1, 16), "float32", seed=1)
    found = kernel(query, key, value, mask)
    np.testing.assert_allclose(found, reference(query, key, value, mask), atol=TOLERANCE["float32"])


def test_a_row_that_sees_nothing_is_zero():
    query, key, value, mask = inputs((2, 5, 1, 16), "float32")
    assert not reference(query, key, value, mask)[1].any()
    assert not kernel(query, key, value, mask)[1].any()


def test_scores_far_from_zero_do_not_overflow():
    query, key, value, mask = inputs((1, 9, 1, 16), "float32")
    found = kernel(query * 1e3, key, value, mask)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found, reference(query * 1e3, key, value, mask), atol=0.05)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [48, 128])
def test_kernel_lowers_for_cuda_without_a_gpu(head_dim, dtype, causal):
    array = jax.ShapeDtypeStruct((2, 130, 3, head_dim), dtype)
    mask = jax.ShapeDtypeStruct((2, 130), jnp.bool_)

    def run(query, key, value, mask):
        return fused_attention(query, key, value, mask, causal=causal)

    lowered = jax.jit(run).trace(array, array, array, mask).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


def test_no_regime_is_entered_without_a_measurement():
    assert module.MEASURED_FASTER == ()


def lower_attention(length: int, *, dtype: str = "float32", causal: bool = False, platform: str = "cuda") -> str:
    array = jax.ShapeDtypeStruct((1, length, 2, 16), dtype)

    def run(query, key, value):
        return attention(query, key, value, causal=causal)

    return jax.jit(run).trace(array, array, array).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("call", "fused"),
    [
        ({"length": 64}, True),
        ({"length": 128}, True),
        ({"length": 129}, False),
        ({"length": 63}, False),
        ({"length": 64, "dtype": "float16"}, False),
        ({"length": 64, "causal": True}, False),
        ({"length": 64, "platform": "cpu"}, False),
    ],
)
def test_the_kernel_is_used_inside_its_measured_regimes(monkeypatch, call, fused):
    here = jax.devices()[0].device_kind
    regime = Regime(device_kind=here, dtype="float32", head_dim=16, causal=False, min_length=64, max_length=128)
    monkeypatch.setattr(module, "MEASURED_FASTER", (regime,))
    assert ("mosaic_gpu" in lower_attention(**call)) == fused


def test_a_regime_of_another_device_changes_nothing(monkeypatch):
    regime = Regime(device_kind="other", dtype="float32", head_dim=16, causal=False, min_length=1, max_length=999)
    monkeypatch.setattr(module, "MEASURED_FASTER", (regime,))
    assert "mosaic_gpu" not in lower_attention(64)


BAD = [
    ({"query": jnp.zeros((1, 2, 3))}, "query is float32"),
    ({"query": jnp.zeros((1, 2, 3, 4), jnp.int32)}, "query is int32"),
    (
        {"key": jnp.zeros((1, 2, 3, 5))},
        r"key is float32\[1, 2, 3, 5\]; needed beside this query: float32\[1, 2, 3, 4\]",
    ),
    ({"value": jnp.zeros((1, 7, 3, 4))}, r"value is float32\[1, 7, 3, 4\]"),
    ({"value": jnp.zeros((1, 2, 3, 4), jnp.float16)}, "value is float16"),
    ({"mask": jnp.ones((1, 3), bool)}, r"mask is bool\[1, 3\]; needed: bool\[1, 2\]"),
    ({"mask": jnp.ones((1, 2), jnp.int32)}, "mask is int32"),
    ({"query": jnp.zeros((1, 5, 3, 4)), "causal": True}, "causal attention of 5 queries over 2 keys"),
]


@pytest.mark.parametrize("function", [attention_reference, fused_attention, attention])
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_what_does_not_fit_is_refused(function, bad, message):
    arguments = {name: jnp.zeros((1, 2, 3, 4)) for name in ("query", "key", "value")} | bad
    with pytest.raises(ValueError, match=message):
        function(**arguments)


def test_too_large_a_head_is_refused_by_the_kernel_only():
    query = jnp.zeros((1, 2, 1, 129))
    with pytest.raises(ValueError, match="head_dim is 129, but the fused kernel holds 128"):
        fused_attention(query, query, query)
    assert attention(query, query, query).shape == query.shape
