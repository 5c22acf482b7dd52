"""Multi-head attention with a key mask: a fused Pallas kernel, its plain-JAX reference, and the choice between them.

    s[b, h, q, k] = <query[b, q, h, :], key[b, k, h, :]> / sqrt(head_dim)         where key k is visible to query q
    out[b, q, h]  = sum_k softmax_k(s) value[b, k, h, :]                          over the visible keys

Key k is visible to query q where `mask[b, k]` holds and, with `causal`, k <= q. A query that sees no key gets zeros,
from the reference and from the kernel alike: a padding row never becomes NaN.

**The kernel** is FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 1): one program per (head, block of queries,
batch row) walks the keys in blocks and keeps the running maximum m, the running sum l and the unnormalised output o:

    m' = max(m, max_k s);  p = exp(s - m');  l' = l exp(m - m') + sum_k p;  o' = o exp(m - m') + p value

and o / l at the end. m starts at a large finite negative number, so that exp(s - m) of a masked s = -inf is 0 and never
that of inf - inf. The copies of the next keys and values run while the tensor cores work on these: two slots of each.

Why Mosaic GPU, and why like this:

- Pallas' Triton backend is deprecated since JAX 0.11, so a new kernel is for Mosaic GPU. `wgmma` needs a Hopper GPU.
- Warpgroup semantics infer every register layout, so the body names none and runs as it is in Pallas' GPU interpreter
  on a CPU. That interpreter multiplies only what lies in shared memory and is not transposed. Hence the keys come as
  [batch, heads, head_dim, length] and p goes through shared memory on its way to the second product.
- `wgmma` takes 16-bit operands. float32 is split into two bfloat16 parts, x = high + low, and each product into
  high high + high low + low high, accumulated in float32: XLA's `BF16_BF16_F32_X3`, about 16 bits of mantissa.

Not measured yet: the kernel is tested in the interpreter and for lowering to CUDA, but has run on no GPU. `attention`
therefore uses the reference everywhere: `MEASURED_FASTER` is empty until `bench/attention.py` has been run on a GPU and
the regimes in which the kernel won are entered.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # it became public in jax 0.11
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

_BLOCK = 64  # queries per program, and keys per step: the rows of one wgmma
_SLOTS = 2  # blocks of keys and values in shared memory at a time
_HEAD_DIM_STEP = 16  # depth of one 16-bit wgmma
_MAX_HEAD_DIM = 128  # above, the two float32 accumulators of a warpgroup no longer fit its registers
_LOWEST_MAXIMUM = -1e30
_DTYPES = ("float32", "bfloat16", "float16")

_Carry = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """Calls that a committed measurement found faster in the kernel than in all that jax ships.

    Attributes:
        device_kind: as `jax.Device.device_kind` says it.
        dtype: of query, key and value.
        head_dim: exactly this one.
        causal: exactly this one.
        min_length: shortest sequence, in queries and in keys.
        max_length: longest sequence, in queries and in keys.
    """

    device_kind: str
    dtype: str
    head_dim: int
    causal: bool
    min_length: int
    max_length: int

    def holds(self, query: jax.Array, key: jax.Array, *, causal: bool) -> bool:
        """Whether this call lies inside."""
        return (
            self.dtype == query.dtype.name
            and self.head_dim == query.shape[-1]
            and self.causal == causal
            and all(self.min_length <= length <= self.max_length for length in (query.shape[1], key.shape[1]))
            and self.device_kind == jax.devices()[0].device_kind
        )


MEASURED_FASTER: tuple[Regime, ...] = ()
"""Where `attention` uses the kernel: the `regimes` of a run of `bench/attention.py`, entered by hand. None yet."""


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """Attention as the models call it: the kernel where it was measured faster (nowhere yet), else the reference.

    Args:
        query: [batch, queries, heads, head_dim], float32, bfloat16 or float16.
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        mask: bool [batch, keys], True where a key may be seen; None for all of them.
        causal: a query sees only the keys up to its own position; needs as many queries as keys.

    Returns:
        [batch, queries, heads, head_dim] in the dtype of `query`; zeros for a query that sees no key.

    Raises:
        ValueError: shapes or dtypes that do not fit; the message names the argument.
    """
    if any(regime.holds(query, key, causal=causal) for regime in MEASURED_FASTER):
        # The program may still be lowered for another platform than that of the first device.
        return lax.platform_dependent(
            query,
            key,
            value,
            _whole_mask(key) if mask is None else mask,
            cuda=functools.partial(fused_attention, causal=causal),
            default=functools.partial(attention_reference, causal=causal),
        )
    return attention_reference(query, key, value, mask, causal=causal)


def attention_reference(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """The same function in plain JAX; the kernel is tested against it. Arguments as `attention`."""
    _check(query, key, value, mask, causal=causal)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(query.shape[-1])
    visible = _visible(query, mask, causal=causal)
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, value, preferred_element_type=jnp.float32)
    if visible is not None:
        # The softmax of a row that is masked throughout is uniform.
        sees_any = jnp.any(visible, axis=-1, keepdims=True)
        out = jnp.where(sees_any.swapaxes(-3, -2), out, 0.0)
    return out.astype(query.dtype)


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas kernel. Arguments as `attention`; any lengths, head_dim up to 128; Hopper, or `interpret` on a CPU.

    Ragged edges: lengths are padded to a multiple of 64 and head_dim to one of 16; padded keys are masked, padded
    queries and components are cut off again. Has no derivative: it is for inference.
    """
    _check(query, key, value, mask, causal=causal)
    (batch, queries, heads, head_dim), dtype = query.shape, query.dtype
    if head_dim > _MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}, but the fused kernel holds {_MAX_HEAD_DIM}: use attention_reference")
    visible = _whole_mask(key) if mask is None else mask
    bias = _pad(jnp.where(visible, 0.0, -jnp.inf).astype(jnp.float32), {1: _BLOCK}, value=-jnp.inf)
    query, key, value = (
        jnp.concatenate(_parts(_pad(array, {1: _BLOCK, 3: _HEAD_DIM_STEP}), dtype)) for array in (query, key, value)
    )
    case = _Case(
        batch=batch,
        heads=heads,
        queries=query.shape[1],
        keys=key.shape[1],
        head_dim=query.shape[3],
        scale=1.0 / math.sqrt(head_dim),
        causal=causal,
        dtype=dtype,
    )
    out = _kernel(case, interpret=interpret)(query, key.transpose(0, 2, 3, 1), value, bias)
    return out[:, :queries, :, :head_dim]


def _check(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool) -> None:
    if query.ndim != 4 or query.dtype.name not in _DTYPES:
        raise ValueError(
            f"query is {query.dtype.name}{list(query.shape)}; needed: [batch, length, heads, head_dim] "
            f"of {', '.join(_DTYPES)}"
        )
    batch, queries, heads, head_dim = query.shape
    expected = (batch, key.shape[1] if key.ndim == 4 else "keys", heads, head_dim)
    for name, array in (("key", key), ("value", value)):
        if array.shape != expected or array.dtype != query.dtype:
            raise ValueError(
                f"{name} is {array.dtype.name}{list(array.shape)}; needed beside this query: "
                f"{query.dtype.name}[{', '.join(map(str, expected))}]"
            )
    if mask is not None and (mask.shape != key.shape[:2] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask is {mask.dtype.name}{list(mask.shape)}; needed: bool{list(key.shape[:2])}, one per key")
    if causal and queries != key.shape[1]:
        raise ValueError(f"causal attention of {queries} queries over {key.shape[1]} keys: it needs as many of each")


def _whole_mask(key: jax.Array) -> jax.Array:
    return jnp.ones(key.shape[:2], jnp.bool_)


def _visible(query: jax.Array, mask: jax.Array | None, *, causal: bool) -> jax.Array | None:
    """Bool [batch or 1, 1, queries or 1, keys]; None where every key is visible to every query."""
    past = jnp.tri(query.shape[1], dtype=jnp.bool_)[None, None] if causal else None
    if mask is None:
        return past
    return mask[:, None, None, :] if past is None else mask[:, None, None, :] & past


def _pad(array: jax.Array, multiples: dict[int, int], *, value: float = 0.0) -> jax.Array:
    """Pads each named axis at its end to a multiple."""
    amounts = [(0, -size % multiples.get(axis, 1)) for axis, size in enumerate(array.shape)]
    return jnp.pad(array, amounts, constant_values=value)


def _parts(array: jax.Array, dtype: jnp.dtype) -> list[jax.Array]:
    """The 16-bit arrays whose sum is `array` to the precision of `dtype`."""
    if dtype != jnp.float32:
        return [array.astype(dtype)]
    high = array.astype(jnp.bfloat16)
    return [high, (array - high.astype(jnp.float32)).astype(jnp.bfloat16)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is fixed when the kernel is traced. Lengths and head_dim are padded.

    Attributes:
        batch: rows; part p of row b stands at index `p * batch + b` of query, key and value.
        heads: grid axis.
        queries: multiple of `_BLOCK`.
        keys: multiple of `_BLOCK`.
        head_dim: multiple of `_HEAD_DIM_STEP`.
        scale: of the scores.
        causal: whether a query sees only the keys up to its own position.
        dtype: of the output.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    scale: float
    causal: bool
    dtype: jnp.dtype

    @property
    def operand(self) -> jnp.dtype:
        """What the tensor cores are fed with."""
        return jnp.dtype(jnp.bfloat16) if self.dtype == jnp.float32 else self.dtype

    @property
    def parts(self) -> int:
        """16-bit operands per float."""
        return 2 if self.dtype == jnp.float32 else 1

    def scratch(self) -> dict[str, Any]:
        """Shared memory and barriers of one program, by the names that `_Refs` has for them."""
        rows = (self.parts, _BLOCK, self.head_dim)
        operand = functools.partial(_shared, dtype=self.operand, row=self.head_dim)
        return {
            "query_block": operand(rows),
            "key_blocks": operand((_SLOTS, self.parts, self.head_dim, _BLOCK)),
            "value_blocks": operand((_SLOTS, *rows)),
            "bias_blocks": plgpu.SMEM((_SLOTS, _BLOCK), jnp.float32),
            "weight_block": operand((self.parts, _BLOCK, _BLOCK)),
            "out_block": _shared(rows[1:], self.dtype, row=self.head_dim),
            "query_arrived": plgpu.Barrier(num_arrivals=self.parts),
            "keys_arrived": plgpu.Barrier(num_arrivals=self.parts + 1, num_barriers=_SLOTS),
            "values_arrived": plgpu.Barrier(num_arrivals=self.parts, num_barriers=_SLOTS),
        }


class _Refs(NamedTuple):
    """Global memory, then shared memory and barriers. Two slots of keys, values and bias."""

    query: Any  # [parts * batch, queries, heads, head_dim]
    key: Any  # [parts * batch, heads, head_dim, keys]
    value: Any  # [parts * batch, keys, heads, head_dim]
    bias: Any  # float32 [batch, keys]: 0 where visible, else -inf
    out: Any  # [batch, queries, heads, head_dim]
    query_block: Any
    key_blocks: Any
    value_blocks: Any
    bias_blocks: Any
    weight_block: Any
    out_block: Any
    query_arrived: Any
    keys_arrived: Any
    values_arrived: Any


def _shared(shape: tuple[int, ...], dtype: jnp.dtype, *, row: int) -> Any:
    """Shared memory in the tiling that copies and wgmma both use without bank conflicts.

    Args:
        shape: the last dimension is a multiple of a tile's width.
        dtype: any float.
        row: the width is the largest that divides this many; both operands of a wgmma must have the same.
    """
    bits = jnp.finfo(dtype).bits
    swizzle = plgpu.find_swizzle(row * bits)
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle))
    )


def _kernel(case: _Case, *, interpret: bool) -> Callable[..., jax.Array]:
    """The kernel of the first four of `_Refs`."""

    def fused_attention_kernel(*arrays: Any, **scratch: Any) -> None:
        _run(case, _Refs(*arrays, **scratch))

    return plgpu.kernel(
        fused_attention_kernel,
        out_type=jax.ShapeDtypeStruct((case.batch, case.queries, case.heads, case.head_dim), case.dtype),
        grid=(case.heads, case.queries // _BLOCK, case.batch),
        grid_names=("heads", "queries", "batch"),
        scratch_types=case.scratch(),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=InterpretGPUParams() if interpret else False,
    )


def _run(case: _Case, refs: _Refs) -> None:
    """One program: one block of queries of one head of one row, over all its keys."""
    head, row = lax.axis_index("heads"), lax.axis_index("batch")
    first_query = lax.axis_index("queries") * _BLOCK
    here = pl.ds(first_query, _BLOCK)
    steps = lax.axis_index("queries") + 1 if case.causal else case.keys // _BLOCK
    for part in range(case.parts):
        source = refs.query.at[part * case.batch + row, here, head]
        plgpu.copy_gmem_to_smem(source, refs.query_block.at[part], refs.query_arrived)
    for step in range(min(_SLOTS, case.keys // _BLOCK)):
        pl.when(step < steps)(functools.partial(_fetch, case, refs, step))
    plgpu.barrier_wait(refs.query_arrived)

    def attend(step: jax.Array, carry: _Carry) -> _Carry:
        carry = _attend(case, refs, first_query, step, carry)
        pl.when(step + _SLOTS < steps)(functools.partial(_fetch, case, refs, step + _SLOTS))
        return carry

    nothing = (
        jnp.zeros((_BLOCK, case.head_dim), jnp.float32),
        jnp.full((_BLOCK,), _LOWEST_MAXIMUM, jnp.float32),
        jnp.zeros((_BLOCK,), jnp.float32),
    )
    out, _, total = lax.fori_loop(0, steps, attend, nothing)
    out = out / lax.broadcast_in_dim(jnp.where(total > 0, total, 1.0), out.shape, (0,))
    refs.out_block[...] = out.astype(case.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(refs.out_block, refs.out.at[row, here, head])
    plgpu.wait_smem_to_gmem(0)


def _fetch(case: _Case, refs: _Refs, step: jax.Array | int) -> None:
    """Starts the copies of the keys, their bias and their values of one step."""
    head, row = lax.axis_index("heads"), lax.axis_index("batch")
    slot, here = lax.rem(step, _SLOTS), pl.ds(step * _BLOCK, _BLOCK)
    keys_arrived, values_arrived = refs.keys_arrived.at[slot], refs.values_arrived.at[slot]
    plgpu.copy_gmem_to_smem(refs.bias.at[row, here], refs.bias_blocks.at[slot], keys_arrived)
    for part in range(case.parts):
        index = part * case.batch + row
        plgpu.copy_gmem_to_smem(refs.key.at[index, head, :, here], refs.key_blocks.at[slot, part], keys_arrived)
        plgpu.copy_gmem_to_smem(refs.value.at[index, here, head], refs.value_blocks.at[slot, part], values_arrived)


def _attend(case: _Case, refs: _Refs, first_query: jax.Array, step: jax.Array, carry: _Carry) -> _Carry:
    """Takes one block of keys into the unnormalised output, the running maximum (of log2) and the running sum."""
    out, maximum, total = carry
    slot, square = lax.rem(step, _SLOTS), (_BLOCK, _BLOCK)
    plgpu.barrier_wait(refs.keys_arrived.at[slot])
    scores = _multiply(refs.query_block, refs.key_blocks.at[slot], case.parts, square)
    # In units of log2, since the hardware's exponential is exp2.
    scores = scores * (case.scale * math.log2(math.e)) + lax.broadcast_in_dim(refs.bias_blocks[slot], square, (1,))
    if case.causal:
        query, key = (lax.broadcasted_iota(jnp.int32, square, axis) for axis in (0, 1))
        scores = jnp.where(query + first_query >= key + step * _BLOCK, scores, -jnp.inf)
    new_maximum = jnp.maximum(maximum, scores.max(axis=1))
    correction = jnp.exp2(maximum - new_maximum)
    weights = jnp.exp2(scores - lax.broadcast_in_dim(new_maximum, square, (0,)))
    for part, weights_part in enumerate(_parts(weights, case.dtype)):
        refs.weight_block[part] = weights_part
    plgpu.commit_smem()
    plgpu.barrier_wait(refs.values_arrived.at[slot])
    update = _multiply(refs.weight_block, refs.value_blocks.at[slot], case.parts, (_BLOCK, case.head_dim))
    out = out * lax.broadcast_in_dim(correction, out.shape, (0,)) + update
    return out, new_maximum, total * correction + weights.sum(axis=1)


def _multiply(left: Any, right: Any, parts: int, shape: tuple[int, int]) -> jax.Array:
    """float32 `left @ right` on the tensor cores; both are shared memory [parts, rows, columns]."""
    # The small terms first; low * low is below the last bit that counts.
    pairs = ((0, 0),) if parts == 1 else ((1, 0), (0, 1), (0, 0))

    def product(accumulator: Any) -> jax.Array:
        for i, j in pairs:
            plgpu.wgmma(accumulator, left.at[i], right.at[j])
        return accumulator[...]

    return pl.run_scoped(product, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
