"""What strategies are called, for operations whose one axis of the mesh splits a dimension of an operand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxserve.parallel.intra_op import Step
from jaxserve.parallel.loops import rule_of
from jaxserve.parallel.names import Dimensions, strategy
from jaxserve.parallel.rules import NONE, rule

BATCH, LENGTH = 4, 6
X = ("batch", "length", 8)


def jaxpr_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.make_jaxpr(function)(*arguments).jaxpr


def step_of(factors: tuple[int, ...], results: tuple[tuple[int, ...], ...]) -> Step:
    return Step(place=0, factors=factors, before=(), after=(), seconds=0.0, operands=(), results=results)


def name(
    jaxpr: Any,
    primitive: str,
    split: tuple[int, int],
    *,
    names: tuple[int | str, ...],
    weights: int,
    scatter: int = NONE,
) -> str:
    """Of the last such operation, with dimension `split[1]` of its operand `split[0]` over one axis."""
    *fixed, entering = (*jaxpr.invars[1 : 1 + weights], jaxpr.invars[0])
    dimensions = Dimensions(jaxpr.eqns, {entering: names}, set(fixed), batch_size=BATCH)
    eqn = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == primitive][-1]
    factor = rule_of(eqn).operands[split[0]][split[1]]
    (found,) = strategy(eqn, step_of((factor,), ((scatter,),)), dimensions)
    return found


DENSE = jaxpr_of(lambda x, w: x @ w, (BATCH, LENGTH, 8), (8, 16))
MERGED = jaxpr_of(lambda x, w: x.reshape(-1, 8) @ w, (BATCH, LENGTH, 8), (8, 16))
DISPATCH = jaxpr_of(
    lambda x, gate, w: jnp.einsum(
        "ebd,edf->ebf", jnp.einsum("ble,bld->ebd", jnp.einsum("bld,de->ble", x, gate), x), w
    ).sum(),
    (BATCH, LENGTH, 8),
    (8, 2),
    (2, 8, 16),
)


def _attention(x: Any, w: Any) -> Any:
    heads = (x @ w).reshape(BATCH, LENGTH, 2, 4)
    scores = jnp.einsum("bqhd,bkhd->bhqk", heads, heads)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), heads)


ATTENTION = jaxpr_of(_attention, (BATCH, LENGTH, 8), (8, 8))
SCORES = jaxpr_of(
    lambda x, w: jnp.einsum("bqhd,bkhd->bhqk", *[(x @ w).reshape(BATCH, LENGTH, 2, 4)] * 2), (BATCH, LENGTH, 8), (8, 8)
)
IMAGE = jaxpr_of(
    lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    (BATCH, 8, 8, 4),
    (3, 3, 4, 16),
)


@pytest.mark.parametrize(
    ("jaxpr", "split", "weights", "expected"),
    [
        (DENSE, (1, 1), 1, "column"),
        (DENSE, (1, 0), 1, "row"),
        (DENSE, (0, 0), 1, "batch"),
        (DENSE, (0, 1), 1, "sequence"),
        (MERGED, (0, 0), 1, "batch"),  # contiguous parts of [batch * length] are parts of the batch
        (SCORES, (0, 0), 1, "batch"),
        (SCORES, (0, 1), 1, "sequence"),
        (SCORES, (0, 2), 1, "heads"),
        (SCORES, (0, 3), 1, "contracted"),
        (DENSE, (1, 1), 0, "features"),  # neither is a weight
        (DISPATCH, (0, 0), 2, "expert"),
        (DISPATCH, (0, 1), 2, "batch"),
        (DISPATCH, (1, 1), 2, "row"),
    ],
)
def test_products(jaxpr: Any, split: tuple[int, int], weights: int, expected: str) -> None:
    assert name(jaxpr, "dot_general", split, names=X, weights=weights) == expected


def test_the_experts_of_a_weight_name_those_of_the_values_sent_to_them() -> None:
    dimensions = Dimensions(DISPATCH.eqns, {DISPATCH.invars[0]: X}, set(DISPATCH.invars[1:]), batch_size=BATCH)
    sent = [eqn for eqn in DISPATCH.eqns if eqn.primitive.name == "dot_general"][1]
    found = {dimensions.name(sent.outvars[0], dim) for dim in range(3)}
    assert found == {"expert", "batch", None}


def test_attention_keeps_the_names_through_softmax() -> None:
    last = [eqn for eqn in ATTENTION.eqns if eqn.primitive.name == "dot_general"][-1]
    dimensions = Dimensions(ATTENTION.eqns, {ATTENTION.invars[0]: X}, {ATTENTION.invars[1]}, batch_size=BATCH)
    its_rule = rule(last)
    every = {factor for dims in its_rule.operands for factor in dims}
    found = sorted(strategy(last, step_of((factor,), ((NONE,),)), dimensions)[0] for factor in every)
    assert found == ["batch", "contracted", "features", "heads", "sequence"]


@pytest.mark.parametrize(
    ("split", "expected"), [((0, 0), "batch"), ((0, 3), "row"), ((1, 3), "column"), ((1, 2), "row")]
)
def test_convolutions(split: tuple[int, int], expected: str) -> None:
    found = name(IMAGE, "conv_general_dilated", split, names=("batch", 8, 8, 4), weights=1)
    assert found == expected


@pytest.mark.parametrize(
    ("split", "expected"), [((0, 0), "vocabulary"), ((0, 1), "column"), ((1, 0), "batch"), ((1, 1), "sequence")]
)
def test_look_ups(split: tuple[int, int], expected: str) -> None:
    closed = jax.make_jaxpr(lambda ids, table: table[ids])(
        jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32), jax.ShapeDtypeStruct((32, 8), jnp.float32)
    )
    assert name(closed.jaxpr, "gather", split, names=("batch", "length"), weights=1) == expected


SMOOTHED = jaxpr_of(
    lambda x, w: jax.lax.scan(lambda held, row: (held * w + row, held), jnp.zeros((LENGTH, 8)), x),
    (BATCH, LENGTH, 8),
    (8,),
)


@pytest.mark.parametrize(("split", "expected"), [((2, 1), "sequence"), ((2, 2), "features"), ((0, 0), "features")])
def test_loops(split: tuple[int, int], expected: str) -> None:
    """A loop splits what its body does; a weight that values follow along is not what names it."""
    assert name(SMOOTHED, "scan", split, names=("batch", "length", 8), weights=1) == expected


def test_reduce_scatter_is_said_and_axes_are_named_one_by_one() -> None:
    eqn = DENSE.eqns[-1]
    inner, outer, batch = rule(eqn).operands[1][0], rule(eqn).operands[1][1], rule(eqn).operands[0][0]
    dimensions = Dimensions(DENSE.eqns, {DENSE.invars[0]: X}, {DENSE.invars[1]}, batch_size=BATCH)
    assert strategy(eqn, step_of((batch, inner), ((0, 1),)), dimensions) == ("batch", "row + reduce-scatter")
    assert strategy(eqn, step_of((inner, outer), ((NONE, 2),)), dimensions) == ("row", "column")
    assert strategy(eqn, step_of((NONE, NONE), ((NONE, NONE),)), dimensions) == ("replicated", "replicated")


def test_a_first_dimension_of_the_size_of_the_batch_is_it_where_names_got_lost() -> None:
    jaxpr = jaxpr_of(lambda x, w: jnp.linalg.cholesky(x) @ w, (BATCH, 8, 8), (8, 16))
    assert name(jaxpr, "dot_general", (0, 0), names=(BATCH, 8, 8), weights=1) == "batch"
    assert name(jaxpr, "dot_general", (0, 1), names=(BATCH, 8, 8), weights=1) == "sequence"
