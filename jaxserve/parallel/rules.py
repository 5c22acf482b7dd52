"""How the dimensions of an operation belong together: one rule for each primitive.

A rule names the *factors* of an operation, as Shardy does (openxla.org/shardy): the index variables of its
einsum, so to say. A matrix product has three, `m`, `n` and `k`. Each dimension of an operand or a result follows one
factor, or none. To shard an operation is to give factors to the axes of a mesh:

- a factor that operands and results share splits the work, at no cost;
- a *summed* factor (the `k` of a product) splits the work too, but leaves partial results on the devices, so an
  all-reduce, or a reduce-scatter, must follow;
- a *whole* factor cannot be split (the dimension that a sort runs along): operands must be gathered there.

Where dimensions are merged or split by a reshape, a dimension follows its most significant factor only: of a dimension
`[heads * features]` contiguous shards are shards of `heads`. An operation without a rule has only whole factors: it is
replicated, and so it stays correct.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from jaxserve.parallel.atoms import shape

Dims = tuple[int, ...]  # for each dimension of an array the factor that it follows, or NONE

NONE = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The factors of one operation.

    Attributes:
        sizes: of each factor: what the number of its shards must divide.
        operands: for each operand, the factor of each dimension.
        results: for each result likewise.
        summed: factors that the results are sums (or maxima, or the like) over.
        whole: factors that cannot be split.
        known: False where the primitive has no rule.
    """

    sizes: tuple[int, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    summed: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()
    known: bool = True


class _Factors:
    """Numbers the factors of a rule while it is made."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.summed: set[int] = set()
        self.whole: set[int] = set()

    def new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def new_summed(self, size: int) -> int:
        self.summed.add(len(self.sizes))
        return self.new(size)

    def new_whole(self, size: int) -> int:
        self.whole.add(len(self.sizes))
        return self.new(size)

    def each(self, shape: Sequence[int]) -> Dims:
        """A new factor for each dimension."""
        return tuple(self.new(size) for size in shape)

    def each_whole(self, shape: Sequence[int]) -> Dims:
        return tuple(self.new_whole(size) for size in shape)

    def rule(self, operands: Sequence[Dims], results: Sequence[Dims], *, known: bool = True) -> Rule:
        return Rule(
            sizes=tuple(self.sizes),
            operands=tuple(operands),
            results=tuple(results),
            summed=frozenset(self.summed),
            whole=frozenset(self.whole),
            known=known,
        )


Shapes = tuple[tuple[int, ...], ...]
_Maker = Callable[[dict[str, Any], Shapes, Shapes], Rule]


def rule(eqn: core.JaxprEqn) -> Rule:
    """The rule of an equation; one with whole factors only where its primitive has none."""
    operands = tuple(shape(atom) for atom in eqn.invars)
    results = tuple(shape(var) for var in eqn.outvars)
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return _elementwise(operands, results)
    maker = _MAKERS.get(name)
    return opaque(eqn) if maker is None or eqn.effects else maker(eqn.params, operands, results)


def opaque(eqn: core.JaxprEqn) -> Rule:
    """The rule of an operation that has none: nothing can be split."""
    return _opaque(tuple(shape(atom) for atom in eqn.invars), tuple(shape(var) for var in eqn.outvars))


def _opaque(operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    return factors.rule(
        [factors.each_whole(each) for each in operands], [factors.each_whole(each) for each in results], known=False
    )


@functools.lru_cache(maxsize=4096)
def _elementwise(operands: Shapes, results: Shapes) -> Rule:
    """Results of one shape; an operand may be a scalar, or have size 1 where the result has more."""
    factors = _Factors()
    dims = factors.each(results[0])
    return factors.rule(
        [
            tuple(factor if size == factors.sizes[factor] else NONE for factor, size in zip(dims, operand, strict=True))
            if operand
            else ()
            for operand in operands
        ],
        [dims] * len(results),
    )


def _broadcast(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    dims = factors.each(results[0])
    operand = tuple(
        dims[place] if size == results[0][place] else NONE
        for size, place in zip(operands[0], params["broadcast_dimensions"], strict=True)
    )
    return factors.rule([operand, *(() for _ in operands[1:])], [dims])


def _reshape(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    if params.get("dimensions") is not None:
        return _opaque(operands, results)
    before, after = [NONE] * len(operands[0]), [NONE] * len(results[0])
    for group, other in _reshape_groups(operands[0], results[0]):
        common = math.gcd(operands[0][group[0]], results[0][other[0]])
        factor = factors.new(common)
        before[group[0]] = after[other[0]] = factor
    return factors.rule([tuple(before), *(() for _ in operands[1:])], [tuple(after)])


def _reshape_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions, sizes of 1 left out, that hold equally many elements before and after."""
    left = [place for place, size in enumerate(before) if size != 1]
    right = [place for place, size in enumerate(after) if size != 1]
    if math.prod(before) == 0:
        return []
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        group, other = [left[i]], [right[j]]
        count, target = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while count != target:
            if count < target:
                group.append(left[i])
                count *= before[left[i]]
                i += 1
            else:
                other.append(right[j])
                target *= after[right[j]]
                j += 1
        groups.append((group, other))
    return groups


def _transpose(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    dims = factors.each(operands[0])
    return factors.rule([dims], [tuple(dims[place] for place in params["permutation"])])


def _squeeze(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    gone = {place % len(operands[0]) for place in params["dimensions"]}
    dims = tuple(NONE if place in gone else factors.new(size) for place, size in enumerate(operands[0]))
    return factors.rule([dims], [tuple(factor for place, factor in enumerate(dims) if place not in gone)])


def _reduce(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    axes = set(params["axes"])
    dims = tuple(
        factors.new_summed(size) if place in axes else factors.new(size) for place, size in enumerate(operands[0])
    )
    kept = tuple(factor for place, factor in enumerate(dims) if place not in axes)
    return factors.rule([dims] * len(operands), [kept] * len(results))


def _reduce_index(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    axes = set(params["axes"])
    dims = tuple(
        factors.new_whole(size) if place in axes else factors.new(size) for place, size in enumerate(operands[0])
    )
    return factors.rule([dims], [tuple(factor for place, factor in enumerate(dims) if place not in axes)])


def _along(*names: str) -> _Maker:
    """Operands and results of one shape; nothing may be split along the dimensions that these params name."""

    def make(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
        factors = _Factors()
        whole: set[int] = set()
        for name in names:
            value = params[name]
            whole.update(place % len(operands[0]) for place in (value if isinstance(value, tuple | list) else (value,)))
        dims = tuple(
            factors.new_whole(size) if place in whole else factors.new(size) for place, size in enumerate(operands[0])
        )
        return factors.rule([dims] * len(operands), [dims] * len(results))

    return make


def _gathered(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    """XLA computes it on whole operands only, though it could be split: `top_k` even where just its rows are split."""
    factors = _Factors()
    return factors.rule([factors.each_whole(each) for each in operands], [factors.each_whole(each) for each in results])


def _where_full(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    """`slice`, `pad`, `dynamic_slice`, `reduce_window`...: a dimension that keeps its size may be split.

    A dimension whose size a pad, a window or a stride keeps by chance is kept whole by `_touched`.
    """
    factors = _Factors()
    touched = _touched(params, len(operands[0]))
    source: list[int] = []
    target: list[int] = []
    for place, (before, after) in enumerate(zip(operands[0], results[0], strict=True)):
        if before == after and place not in touched:
            factor = factors.new(before)
            source.append(factor)
            target.append(factor)
        else:
            source.append(factors.new_whole(before))
            target.append(factors.new_whole(after))
    return factors.rule([tuple(source), *((NONE,) * len(each) for each in operands[1:])], [tuple(target)])


def _touched(params: dict[str, Any], rank: int) -> set[int]:
    """Dimensions that are padded, windowed or strided."""
    touched: set[int] = set()
    for name, neutral in (
        ("padding_config", (0, 0, 0)),
        ("padding", (0, 0)),
        ("window_dimensions", 1),
        ("window_strides", 1),
        ("base_dilation", 1),
        ("window_dilation", 1),
        ("strides", 1),
    ):
        value = params.get(name)
        if value is not None:
            touched.update(place for place in range(rank) if value[place] != neutral)
    return touched


def _dynamic_update_slice(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    target = tuple(
        factors.new(size) if size == update else factors.new_whole(size)
        for size, update in zip(operands[0], operands[1], strict=True)
    )
    update = tuple(
        NONE if factor in factors.whole else factor for factor, size in zip(target, operands[1], strict=True)
    )
    return factors.rule([target, update, *(() for _ in operands[2:])], [target])


def _concatenate(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    axis = params["dimension"]
    dims = [factors.new(size) for size in results[0]]
    sides: list[Dims] = []
    for operand in operands:
        side = list(dims)
        side[axis] = factors.new_whole(operand[axis])
        sides.append(tuple(side))
    factors.whole.add(dims[axis])
    return factors.rule(sides, [tuple(dims)])


def _split(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    axis = params["axis"]
    dims = [factors.new(size) for size in operands[0]]
    factors.whole.add(dims[axis])
    sides: list[Dims] = []
    for result in results:
        side = list(dims)
        side[axis] = factors.new_whole(result[axis])
        sides.append(tuple(side))
    return factors.rule([tuple(dims)], sides)


def _stack(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    dims = list(factors.each(operands[0]))
    side = tuple(dims)
    dims.insert(params["axis"], factors.new_whole(results[0][params["axis"]]))
    return factors.rule([side] * len(operands), [tuple(dims)])


def _unstack(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    side = factors.each(results[0])
    dims = list(side)
    dims.insert(params["axis"], factors.new_whole(operands[0][params["axis"]]))
    return factors.rule([tuple(dims)], [side] * len(results))


def _iota(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    factors = _Factors()
    return factors.rule([() for _ in operands], [factors.each(results[0])])


def _dot(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    factors = _Factors()
    left, right = [NONE] * len(operands[0]), [NONE] * len(operands[1])
    result: list[int] = []
    for place, other in zip(left_batch, right_batch, strict=True):
        left[place] = right[other] = factors.new(operands[0][place])
        result.append(left[place])
    for place, other in zip(left_sum, right_sum, strict=True):
        left[place] = right[other] = factors.new_summed(operands[0][place])
    for side, shape_ in ((left, operands[0]), (right, operands[1])):
        for place, factor in enumerate(side):
            if factor == NONE:
                side[place] = factors.new(shape_[place])
                result.append(side[place])
    return factors.rule([tuple(left), tuple(right)], [tuple(result)])


def _convolution(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    numbers = params["dimension_numbers"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    factors = _Factors()
    left, right = list(factors.each_whole(operands[0])), list(factors.each_whole(operands[1]))
    result = list(factors.each_whole(results[0]))
    if params["batch_group_count"] == 1:
        left[lhs[0]] = result[out[0]] = factors.new(operands[0][lhs[0]])
        groups = params["feature_group_count"]
        if groups == 1:
            left[lhs[1]] = right[rhs[1]] = factors.new_summed(operands[0][lhs[1]])
            right[rhs[0]] = result[out[1]] = factors.new(operands[1][rhs[0]])
        elif operands[1][rhs[1]] == 1:  # contiguous runs of features belong to one group; XLA splits no wider groups
            left[lhs[1]] = right[rhs[0]] = result[out[1]] = factors.new(groups)
    return factors.rule([tuple(left), tuple(right)], [tuple(result)])


def _gather(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    numbers = params["dimension_numbers"]
    sizes = params["slice_sizes"]
    factors = _Factors()
    source = list(factors.each_whole(operands[0]))
    result = [NONE] * len(results[0])
    batching = tuple(numbers.operand_batching_dims)
    window = [place for place in range(len(sizes)) if place not in {*numbers.collapsed_slice_dims, *batching}]
    for place, target in zip(window, numbers.offset_dims, strict=True):
        if sizes[place] == operands[0][place] and place not in numbers.start_index_map:
            source[place] = factors.new(sizes[place])
            result[target] = source[place]
        else:
            result[target] = factors.new_whole(results[0][target])
    indices: list[int] = []
    places = [place for place in range(len(results[0])) if place not in set(numbers.offset_dims)]
    for place, target in enumerate(places):
        factor = factors.new(operands[1][place])
        indices.append(factor)
        result[target] = factor
        if place in numbers.start_indices_batching_dims:
            source[batching[numbers.start_indices_batching_dims.index(place)]] = factor
    indices.append(factors.new_whole(operands[1][-1]))
    looked_up = numbers.start_index_map
    if len(looked_up) == 1 and sizes[looked_up[0]] == 1 and looked_up[0] in numbers.collapsed_slice_dims:
        # rows of a table: each device looks up those that it has, and zeros are summed with what it has not
        source[looked_up[0]] = factors.new_summed(operands[0][looked_up[0]])
    return factors.rule([tuple(source), tuple(indices)], [tuple(result)])


def _scatter(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    """Only the dimensions of whole windows may be split."""
    numbers = params["dimension_numbers"]
    factors = _Factors()
    target = list(factors.each_whole(operands[0]))
    updates = list(factors.each_whole(operands[2]))
    outside = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [place for place in range(len(target)) if place not in outside]
    for place, update in zip(window, numbers.update_window_dims, strict=True):
        full = operands[0][place] == operands[2][update]
        if full and place not in numbers.scatter_dims_to_operand_dims:
            target[place] = updates[update] = factors.new(operands[0][place])
    return factors.rule([tuple(target), factors.each_whole(operands[1]), tuple(updates)], [tuple(target)])


def _ragged_dot(params: dict[str, Any], operands: Shapes, results: Shapes) -> Rule:
    """[m, k] x [groups, k, n] -> [m, n] with n split or k summed; other forms are replicated."""
    numbers = params["ragged_dot_dimension_numbers"]
    (left_sum, right_sum), batch = numbers.dot_dimension_numbers
    plain = len(operands[0]) == 2 and len(operands[1]) == 3 and not any(batch)
    if not plain or list(numbers.lhs_ragged_dimensions) != [0] or list(numbers.rhs_group_dimensions) != [0]:
        return _opaque(operands, results)
    if list(left_sum) != [1] or list(right_sum) != [1]:
        return _opaque(operands, results)
    factors = _Factors()
    rows, groups = factors.new_whole(operands[0][0]), factors.new_whole(operands[1][0])
    inner, columns = factors.new_summed(operands[0][1]), factors.new(operands[1][2])
    rest = [factors.each_whole(each) for each in operands[2:]]
    return factors.rule([(rows, inner), (groups, inner, columns), *rest], [(rows, columns)])


# Primitives that compute each element of their result from the elements of the operands at the same place.
ELEMENTWISE = frozenset(
    (
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bessel_i0e",
        "bessel_i1e",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "complex",
        "conj",
        "convert_element_type",
        "copy",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "igamma",
        "igammac",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "polygamma",
        "population_count",
        "pow",
        "real",
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    )
)

_MAKERS: dict[str, _Maker] = {
    "argmax": _reduce_index,
    "argmin": _reduce_index,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "cumlogsumexp": _along("axis"),
    "cummax": _along("axis"),
    "cummin": _along("axis"),
    "cumprod": _along("axis"),
    "cumsum": _along("axis"),
    "dot_general": _dot,
    "dynamic_slice": _where_full,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "pad": _where_full,
    "ragged_dot_general": _ragged_dot,
    "reduce_and": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_or": _reduce,
    "reduce_prod": _reduce,
    "reduce_sum": _reduce,
    "reduce_window_max": _where_full,
    "reduce_window_min": _where_full,
    "reduce_window_sum": _where_full,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "scatter": _scatter,
    "scatter-add": _scatter,
    "slice": _where_full,
    "sort": _along("dimension"),
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _where_full,
    "top_k": _gathered,
    "transpose": _transpose,
    "unstack": _unstack,
}
