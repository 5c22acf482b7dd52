"""The rules of primitives are those by which XLA splits them: no collectives but the sums that a rule tells."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.parallel import rules
from jaxserve.parallel.hlo import collectives
from jaxserve.parallel.loops import rule_of as rule
from jaxserve.parallel.nodes import HEAVY
from jaxserve.parallel.rules import NONE


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A function whose program has the equation, and what it takes: shapes of float32, or arrays."""

    primitive: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def case(primitive: str, function: Callable[..., Any], *arguments: Any) -> Case:
    return Case(primitive, function, arguments)


def ids(*shape: int, below: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, below, shape).astype(np.int32)


def positive(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)


def bits(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 31, shape).astype(np.int32)


FLAGS = np.array([[True, False, True], [False, True, True]])
WAVES = (np.random.default_rng(0).standard_normal((2, 3)) + 1j).astype(np.complex64)
ONE = {
    "abs": jnp.abs,
    "acos": lax.acos,
    "acosh": lax.acosh,
    "asin": lax.asin,
    "asinh": lax.asinh,
    "atan": lax.atan,
    "atanh": lax.atanh,
    "bessel_i0e": lax.bessel_i0e,
    "bessel_i1e": lax.bessel_i1e,
    "cbrt": lax.cbrt,
    "ceil": lax.ceil,
    "convert_element_type": lambda x: x.astype(jnp.bfloat16),
    "copy": jnp.copy,
    "cos": lax.cos,
    "cosh": lax.cosh,
    "digamma": lax.digamma,
    "erf": lax.erf,
    "erf_inv": lax.erf_inv,
    "erfc": lax.erfc,
    "exp": lax.exp,
    "exp2": lax.exp2,
    "expm1": lax.expm1,
    "floor": lax.floor,
    "integer_pow": lambda x: x**3,
    "is_finite": lax.is_finite,
    "lgamma": lax.lgamma,
    "log": lax.log,
    "log1p": lax.log1p,
    "logistic": lax.logistic,
    "neg": lax.neg,
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 10),
    "round": lax.round,
    "rsqrt": lax.rsqrt,
    "sign": lax.sign,
    "sin": lax.sin,
    "sinh": lax.sinh,
    "sqrt": lax.sqrt,
    "square": lax.square,
    "stop_gradient": lax.stop_gradient,
    "tan": lax.tan,
    "tanh": lax.tanh,
}
TWO = {
    "add": lax.add,
    "atan2": lax.atan2,
    "complex": lax.complex,
    "div": lax.div,
    "eq": lax.eq,
    "ge": lax.ge,
    "gt": lax.gt,
    "igamma": lax.igamma,
    "igammac": lax.igammac,
    "le": lax.le,
    "lt": lax.lt,
    "max": lax.max,
    "min": lax.min,
    "mul": lax.mul,
    "ne": lax.ne,
    "nextafter": lax.nextafter,
    "pow": lax.pow,
    "rem": lax.rem,
    "sub": lax.sub,
}
INTEGERS = {
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "shift_left": lax.shift_left,
    "shift_right_arithmetic": lax.shift_right_arithmetic,
    "shift_right_logical": lax.shift_right_logical,
    "xor": lax.bitwise_xor,
}


def convolution(**options: Any) -> Callable[..., Any]:
    return lambda image, kernel: lax.conv_general_dilated(
        image,
        kernel,
        options.get("strides", (1, 1)),
        options.get("padding", "SAME"),
        dimension_numbers=options.get("numbers", ("NHWC", "HWIO", "NHWC")),
        feature_group_count=options.get("groups", 1),
        batch_group_count=options.get("batch_groups", 1),
    )


def einsum(text: str) -> Callable[..., Any]:
    return functools.partial(jnp.einsum, text)


def pooled(reduce: Callable[..., Any], start: float) -> Callable[..., Any]:
    return lambda x: lax.reduce_window(x, start, reduce, (1, 2, 1), (1, 2, 1), "VALID")


CASES = (
    *(case(name, function, positive(3) / 4 + 1) for name, function in ONE.items()),
    *(case(name, function, positive(3), positive(3)) for name, function in TWO.items()),
    *(case(name, function, bits(3), bits(3)) for name, function in INTEGERS.items()),
    *(case(name, function, WAVES) for name, function in {"conj": lax.conj, "real": lax.real, "imag": lax.imag}.items()),
    case("not", lax.bitwise_not, FLAGS),
    case("clz", lax.clz, bits(2, 3)),
    case("population_count", lax.population_count, bits(2, 3)),
    case("polygamma", lax.polygamma, positive(2, 3), positive(2, 3)),
    case("regularized_incomplete_beta", lax.betainc, positive(2), positive(2), positive(2) / 4),
    case("add", lambda x: x + 1, (1, 4)),
    case("add", lambda x, y: jnp.add(x, y), (2, 1, 3), (2, 5, 3)),
    case("mul", lambda x, y: jnp.multiply(x, y), (), (6,)),
    case("max", lambda x: jnp.maximum(x, 0), ()),
    case("clamp", lambda x: lax.clamp(-0.5, x, 0.5), (4, 3)),
    case("clamp", lax.clamp, (4, 3), (4, 3), (4, 3)),
    case("select_n", lambda x, y: jnp.where(FLAGS, x, y), (2, 3), (2, 3)),
    case("select_n", lambda x, y: lax.select_n(x[0, 0] > 0, x, y), (2, 3), (2, 3)),
    case("iota", lambda: lax.broadcasted_iota(np.int32, (4, 3), 1)),
    case("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (2, 3, 4)), (3, 4)),
    case("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (2, 3, 4)), (3, 1)),
    case("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (2, 3)), ()),
    case("reshape", lambda x: x.reshape(4, 6), (4, 2, 3)),
    case("reshape", lambda x: x.reshape(4, 2, 3), (4, 6)),
    case("reshape", lambda x: x.reshape(2, 1, 12), (1, 2, 3, 4)),
    case("reshape", lambda x: x.reshape(6, 4), (4, 6)),
    case("reshape", lambda x: x.reshape(3, 8), (6, 4)),
    case("reshape", lambda x: x.reshape(2, 2, 15), (4, 3, 5)),
    case("reshape", lambda x: x.reshape(-1), (1, 1)),
    case("broadcast_in_dim", lambda x: jnp.expand_dims(x, 1), (4, 3)),
    case("squeeze", lambda x: lax.squeeze(x, (0, 2)), (1, 4, 1, 3)),
    case("transpose", lambda x: x.transpose(2, 0, 1), (2, 3, 4)),
    case("reduce_sum", lambda x: x.sum(1), (4, 6, 1)),
    case("reduce_sum", lambda x: x.sum(), (4, 3)),
    case("reduce_max", lambda x: x.max(0), (4, 6)),
    case("reduce_min", lambda x: x.min((0, 2)), (2, 3, 4)),
    case("reduce_prod", lambda x: x.prod(1), (2, 4)),
    case("reduce_and", lambda x: (x > 0).all(1), (2, 4)),
    case("reduce_or", lambda x: (x > 0).any(1), (2, 4)),
    case("argmax", lambda x: x.argmax(1), (4, 6)),
    case("argmin", lambda x: x.argmin(0), (4, 6)),
    case("cumsum", lambda x: jnp.cumsum(x, 1), (4, 6)),
    case("cumprod", lambda x: lax.cumprod(x, 0, reverse=True), (4, 6)),
    case("cummax", lambda x: lax.cummax(x, 1), (4, 6)),
    case("cummin", lambda x: lax.cummin(x, 1), (4, 6)),
    case("cumlogsumexp", lambda x: lax.cumlogsumexp(x, 1), (4, 6)),
    case("rev", lambda x: x[:, ::-1], (4, 6)),
    case("sort", lambda x: jnp.sort(x, 1), (4, 6)),
    case("sort", lambda x, y: lax.sort((x, y), dimension=0, num_keys=1), (4, 6), (4, 6)),
    case("top_k", lambda x: lax.top_k(x, 2), (4, 6)),
    case("slice", lambda x: x[:, 1:5], (4, 6)),
    case("slice", lambda x: lax.slice(x, (0, 0), (4, 6), (1, 2)), (4, 6)),
    case("pad", lambda x: jnp.pad(x, ((0, 0), (1, 2))), (4, 6)),
    case("pad", lambda x: lax.pad(x, 0.0, ((0, 0, 0), (1, -1, 0))), (4, 6)),
    case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (0, i), (4, 2)), (4, 6), np.int32(3)),
    case("dynamic_update_slice", lambda x, y, i: lax.dynamic_update_slice(x, y, (0, i)), (4, 6), (4, 2), np.int32(3)),
    case("concatenate", lambda x, y: jnp.concatenate([x, y], 1), (4, 6), (4, 2)),
    case("split", lambda x: lax.split(x, (2, 4), 1), (4, 6)),
    case("stack", lambda x, y: jnp.stack([x, y], 1), (4, 6), (4, 6)),
    case("unstack", lambda x: jnp.unstack(x, axis=1), (4, 2)),
    case("tile", lambda x: jnp.tile(x, (1, 2)), (4, 6)),
    case("reduce_window_max", pooled(lax.max, -np.inf), (4, 6, 2)),
    case("reduce_window_min", pooled(lax.min, np.inf), (4, 6, 2)),
    case("reduce_window_sum", pooled(lax.add, 0.0), (4, 6, 2)),
    case("reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 1), "SAME"), (4, 6)),
    case("dot_general", lambda x, y: x @ y, (4, 6), (6, 2)),
    case("dot_general", lambda x, y: x @ y, (1, 4, 6), (6, 3)),
    case("dot_general", einsum("bqhd,bkhd->bhqk"), (2, 3, 4, 6), (2, 5, 4, 6)),
    case("dot_general", einsum("egcm,emh->egch"), (4, 2, 3, 6), (4, 6, 2)),
    case("dot_general", einsum("gsec,gsm->egcm"), (2, 4, 4, 3), (2, 4, 6)),
    case("dot_general", lambda x, y: x @ y, (4,), (4,)),
    case("conv_general_dilated", convolution(), (2, 6, 6, 4), (3, 3, 4, 2)),
    case("conv_general_dilated", convolution(strides=(2, 2), padding="VALID"), (1, 8, 8, 3), (2, 2, 3, 6)),
    case("conv_general_dilated", convolution(groups=4), (2, 6, 6, 4), (3, 3, 1, 8)),
    case("conv_general_dilated", convolution(groups=2), (1, 6, 6, 8), (3, 3, 4, 4)),
    case("conv_general_dilated", convolution(numbers=("NCHW", "OIHW", "NCHW")), (2, 4, 6, 6), (2, 4, 3, 3)),
    case("conv_general_dilated", convolution(batch_groups=2), (4, 6, 6, 2), (3, 3, 2, 4)),
    case("gather", lambda x, i: x[i], (6, 4), ids(2, 3, below=6)),
    case("gather", lambda x, i: x[i], (6,), ids(4, below=6)),
    case("gather", lambda x, i: x[:, i], (4, 6), ids(2, below=6)),
    case("gather", lambda x, i: jnp.take_along_axis(x, i, 1), (4, 6), ids(4, 2, below=6)),
    case("gather", lambda x, i: jnp.take_along_axis(x, i, 1), (4, 6, 2), ids(4, 1, 1, below=6)),
    case("gather", lambda x, i: x[i, i], (6, 6), ids(4, below=6)),
    case("scatter", lambda x, i, y: x.at[i].set(y), (6, 4), np.array([4, 1], np.int32), (2, 4)),
    case("scatter-add", lambda x, i, y: x.at[:, i].add(y), (4, 6), ids(2, below=6), (4, 2)),
    case("scan", lambda x, w: lax.scan(lambda c, _: (jnp.tanh(c @ w), c.sum(1)), x, length=3), (4, 6), (6, 6)),
    case("scan", lambda xs: lax.scan(lambda c, x: (c + x, x * c), xs[0], xs), (3, 4, 6)),
    case("while", lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x)), (4, 6)),
    case("cond", lambda x, y: lax.cond(y[0] > 0, jnp.sin, lambda x: jnp.cumsum(x, 1), x), (4, 6), (1,)),
    case("ragged_dot_general", lax.ragged_dot, (6, 4), (3, 4, 2), np.array([1, 3, 2], np.int32)),
)


def equation(given: Case):
    """The case's equation, and the arrays that it takes."""
    arrays = [
        np.random.default_rng(place).standard_normal(each).astype(np.float32) if isinstance(each, tuple) else each
        for place, each in enumerate(given.arguments)
    ]
    jaxpr = jax.make_jaxpr(given.function)(*arrays)
    values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    values.update(zip(jaxpr.jaxpr.invars, arrays, strict=True))
    return _find(jaxpr.jaxpr, values, given.primitive)


def _find(jaxpr, values, primitive):
    def read(atom):
        return atom.val if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == primitive:
            return eqn, operands
        if "jaxpr" in eqn.params:
            inner = eqn.params["jaxpr"]
            found = _find(inner.jaxpr, dict(zip(inner.jaxpr.invars, operands, strict=True)), primitive)
            if found is not None:
                return found
        results = bound(eqn)(*operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return None


def bound(eqn):
    def run(*operands):
        found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        return list(found) if eqn.primitive.multiple_results else [found]

    return run


def ways(its):
    """Every factor that can be split, and into how many: as many as there are devices for."""
    for factor, size in enumerate(its.sizes):
        counts = [count for count in range(2, len(jax.devices()) + 1) if size % count == 0]
        if factor not in its.whole and counts and size:
            yield factor, counts[-1]


def check(eqn, operands, factors, shape):
    """Splits an equation by these factors, one for each axis of a mesh, and compares results and collectives."""
    its = rule(eqn)
    axes = ("x", "y")[: len(shape)]
    mesh = Mesh(
        np.array(jax.devices()[: math.prod(shape)]).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes)
    )

    def sharding(dims):
        split = [tuple(axis for axis, factor in zip(axes, factors, strict=True) if factor == each) for each in dims]
        return NamedSharding(mesh, PartitionSpec(*(each or None for each in split)))

    shardings = tuple(map(sharding, its.operands))
    jitted = jax.jit(bound(eqn), in_shardings=shardings, out_shardings=list(map(sharding, its.results)))
    compiled = jitted.lower(*operands).compile()
    found = compiled(*map(jax.device_put, operands, shardings))
    for one, other in zip(found, bound(eqn)(*operands), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.complex64), np.asarray(other, np.complex64), rtol=1e-5, atol=1e-5)
    # Functions by iteration stop when all devices are done: one flag, in their loop.
    kinds = {each.kind for each in collectives(compiled.as_text()) if not (each.in_loop and each.nbytes == 1)}
    expected = {"all_reduce"} if its.summed & set(factors) else set()
    assert kinds == expected, f"factors {factors} of {its} over {shape}"


@pytest.mark.parametrize("given", CASES, ids=lambda given: given.primitive)
def test_xla_splits_an_operation_by_its_rule(given):
    eqn, operands = equation(given)
    its = rule(eqn)
    assert its.known
    for factor, count in ways(its):
        check(eqn, operands, (factor,), (count,))


@pytest.mark.parametrize(
    "given",
    [each for each in CASES if each.primitive in HEAVY and not isinstance(each.arguments[0], np.ndarray)],
    ids=lambda given: given.primitive,
)
def test_xla_splits_a_heavy_operation_by_two_factors(given):
    eqn, operands = equation(given)
    its = rule(eqn)
    even = [factor for factor, size in enumerate(its.sizes) if factor not in its.whole and size > 0 and size % 2 == 0]
    for pair in itertools.combinations(even, 2):
        check(eqn, operands, pair, (2, 2))


@pytest.mark.parametrize(
    "given",
    [
        case("cholesky", lambda x: lax.linalg.cholesky(x @ x.T), (4, 4)),
        case("while", lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), (4, 6)),
        case("cond", lambda x, y: lax.cond(y[0] > 0, lambda x: x.T @ x, lambda x: x[:6] * 2, x), (8, 6), (1,)),
    ],
    ids=lambda given: given.primitive,
)
def test_what_has_no_rule_is_kept_whole(given):
    eqn, _ = equation(given)
    its = rule(eqn)
    assert not its.known
    assert its.whole == set(range(len(its.sizes)))
    atoms = (*eqn.invars, *eqn.outvars)
    assert [len(dims) for dims in (*its.operands, *its.results)] == [len(atom.aval.shape) for atom in atoms]


def test_what_has_an_effect_is_kept_whole():
    def function(x):
        io_callback(print, None, x, ordered=True)
        return x

    eqn, _ = equation(case("io_callback", function, (4,)))
    assert eqn.effects
    assert not rule(eqn).known


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_arrays_have_rules(shape):
    eqn, _ = equation(case("reshape", lambda x: x.reshape(-1), shape))
    assert rule(eqn).results == ((NONE,),)


def test_every_rule_has_a_case():
    # `add_any` is made by differentiation alone.
    loops = {"cond", "scan", "while"}
    assert {given.primitive for given in CASES} | {"add_any"} == rules.ELEMENTWISE | set(rules._MAKERS) | loops
