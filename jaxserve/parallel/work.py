"""What each equation of a program costs on one device: operations, bytes moved in memory, kernels launched.

XLA does not run equations but *kernels*: it fuses what is elementwise. Hence a model of its fusion, whose rules follow
those of XLA's GPU backend (xla/service/gpu/transforms: instruction fusion, multi-output fusion), roughly:

- A *view* (reshape, transpose, squeeze) costs nothing: products and fusions read their operands in any layout.
- An *elementwise* value (broadcasts, slices and concatenations are of this kind, too) is computed where it is used: by
  the reduction, or by the last elementwise operation, that needs it. That kernel reads what the whole chain reads.
- It is written to memory where it has to lie there: as operand of a product, a convolution, a look-up, a loop, or as an
  output. Or where that is cheaper: several kernels use it, and what it is made of is larger than itself.
- A *reduction* is the end of a fusion and writes its result. Reductions of one shape over the same axes that read the
  same arrays are one kernel, as the two sums of a layer norm are.
- Everything else is a kernel that reads its operands and writes its results: products, convolutions, look-ups (which
  read the rows that they take, not the table), sorts, calls of kernels, whatever this file does not know.
- A loop is its body's kernels, as often as it runs; of a branch the dearest; a `while` runs once.

A kernel's cost stands at the equation that ends the fusion; what is fused into it costs nothing by itself.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from jax.extend import core

from jaxserve.model.flat import Atom
from jaxserve.parallel.atoms import nbytes, shape, variables
from jaxserve.parallel.devices import Device


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VIEWS = _names("""
    bitcast_convert_type copy from_edtype layout_constraint name pvary random_unwrap random_wrap reshape reshard
    sharding_constraint squeeze stop_gradient to_edtype transpose
""")

# Elementwise kernels that move numbers and compute nothing.
_MOVES = _names("broadcast_in_dim broadcast_to concatenate convert_element_type empty iota pad rev stack tile")

# Those that read no more of their operands than they return.
_SLICES = _names("dynamic_slice slice split unstack")

_ELEMENTWISE = _names("""
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
    le le_to lgamma log log1p logistic lt lt_to max min mul mulhi ne neg nextafter not or polygamma population_count pow
    real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh
    sqrt square sub tan tanh xor zeta
""")

_REDUCTIONS = _names("""
    argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_window
    reduce_window_max reduce_window_min reduce_window_sum reduce_xor
""")

_SCATTERS = _names("scatter scatter-add scatter-mul scatter-max scatter-min scatter-sub")

_NO_ARITHMETIC = _VIEWS | _MOVES | _SLICES | {"dynamic_update_slice", "gather", "optimization_barrier", "scatter"}

# XLA's `MaxOperandsAndOutputsPerFusion` (xla/service/gpu/gpu_fusible.h).
_MOST_OPERANDS = 96

# Beyond this number of kernels that use a value it makes no difference how many there are.
_MANY_USERS = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an equation costs, unsharded.

    Attributes:
        flops: operations.
        nbytes: read from memory and written to it.
        dtype: name of the dtype that the operations are of.
        kernels: how many are launched.
        body: for a loop or a branch, what is in it: `repeats` times these make the numbers above.
        repeats: see `body`.
    """

    flops: float = 0.0
    nbytes: float = 0.0
    dtype: str = "float32"
    kernels: int = 0
    body: tuple["Work", ...] = ()
    repeats: int = 1


FREE = Work()
"""What is fused, folded, computed at load or never used."""


def seconds(work: Work, device: Device, shards: int = 1) -> float:
    """Seconds of some work on a device, where it is divided evenly among `shards` of them.

    max(flops / (peak * compute_efficiency), nbytes / (bandwidth * memory_efficiency)) / shards + kernels * overhead
    [Williams et al. 2009, "Roofline", and a launch]. Of a loop, the sum over its body.
    """
    if work.body:
        return work.repeats * sum(seconds(each, device, shards) for each in work.body)
    compute_s = work.flops / (device.peak(work.dtype) * device.compute_efficiency) if work.flops else 0.0
    memory_s = work.nbytes / (device.memory_bandwidth_bytes_per_s * device.memory_efficiency)
    return max(compute_s, memory_s) / shards + work.kernels * device.overhead_s


def work(
    eqns: Sequence[core.JaxprEqn],
    *,
    outputs: Iterable[Atom] | None = None,
    free: Collection[core.Var] = frozenset(),
) -> list[Work]:
    """What each of these equations costs in a program of them.

    Args:
        eqns: in the order in which they run.
        outputs: what must lie in memory at the end; an equation on which none of it depends costs nothing. Unless
            given, all variables that no equation reads.
        free: variables that were computed at load, as `Graph.fixed`: their equations cost nothing. Reading them does,
            unless they are a broadcast or the like of something smaller, which is then read instead.
    """
    return _Fusion(eqns, outputs, free).work()


def flops(eqn: core.JaxprEqn) -> float:
    """Operations of an equation, as XLA counts them: 2 mnk for products, one for each element of what is elementwise.

    Nothing for what only moves numbers. Of a reduction one for each element that it reads; a `scan` length times its
    body, of a `cond` the dearest branch, of a `while` the body and the condition once.
    """
    name = eqn.primitive.name
    count = _FLOPS.get(name)
    if count is not None:
        return count(eqn)
    if name in _NO_ARITHMETIC:
        return 0.0
    if name in _REDUCTIONS:
        return float(_size(eqn.invars[0]))
    if name in _SCATTERS:
        return float(_size(eqn.invars[-1]))
    bodies = _bodies(eqn)
    if bodies:
        return _repeats(eqn) * sum(flops(each) for body in bodies for each in body.eqns)
    return float(sum(map(_size, eqn.outvars)))


def _product_flops(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    dims = shape(eqn.invars[0])
    return 2.0 * _size(eqn.outvars[0]) * math.prod(dims[axis] for axis in contracted)


def _ragged_product_flops(eqn: core.JaxprEqn) -> float:
    """Each row is multiplied by the matrix of its group only."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    dims = shape(eqn.invars[0])
    result = shape(eqn.outvars[0])
    # Where the ragged dimension is summed over, the result has one matrix for each group, each of a part of the sum.
    groups = result[0] if set(numbers.lhs_ragged_dimensions) <= set(contracted) else 1
    return 2.0 * math.prod(result) / max(groups, 1) * math.prod(dims[axis] for axis in contracted)


def _convolution_flops(eqn: core.JaxprEqn) -> float:
    """Twice, for each result, the kernel's elements of one output feature: those of its feature group."""
    kernel = shape(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # Of a dilated input only every so many elements are not zero.
    return 2.0 * _size(eqn.outvars[0]) * math.prod(kernel) / max(features, 1) / math.prod(eqn.params["lhs_dilation"])


def _sort_flops(eqn: core.JaxprEqn) -> float:
    """Of each row of n elements n log2 n comparisons."""
    length = shape(eqn.invars[0])[eqn.params["dimension"]]
    return float(_size(eqn.invars[0])) * max(1.0, math.log2(max(length, 1)))


def _window_flops(eqn: core.JaxprEqn) -> float:
    return float(_size(eqn.outvars[0])) * math.prod(eqn.params["window_dimensions"])


def _kernel_flops(eqn: core.JaxprEqn) -> float:
    """Of a Pallas kernel: what its author says, else its body for each point of its grid."""
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops + estimate.transcendentals)
    grid = [size for size in eqn.params["grid_mapping"].grid if isinstance(size, int)]
    return math.prod(grid) * sum(flops(each) for body in core.jaxprs_in_params(eqn.params) for each in _open(body).eqns)


_FLOPS: dict[str, Callable[[core.JaxprEqn], float]] = {
    "conv_general_dilated": _convolution_flops,
    "dot_general": _product_flops,
    "pallas_call": _kernel_flops,
    "ragged_dot_general": _ragged_product_flops,
    "reduce_window": _window_flops,
    "reduce_window_max": _window_flops,
    "reduce_window_min": _window_flops,
    "reduce_window_sum": _window_flops,
    "sort": _sort_flops,
    "top_k": lambda eqn: float(_size(eqn.invars[0])),
}


def _bodies(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs that a loop or a call runs; of the branches of a `cond` the one with most operations."""
    bodies = [_open(body) for body in core.jaxprs_in_params(eqn.params)]
    if eqn.primitive.name == "cond":
        return [max(bodies, key=lambda body: sum(map(flops, body.eqns)))]
    return bodies


def _repeats(eqn: core.JaxprEqn) -> int:
    return int(eqn.params["length"]) if eqn.primitive.name == "scan" else 1


def _open(jaxpr: Any) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


class _Fusion:
    """Finds the kernels of a program.

    A kernel has the index of the equation that ends it. What an elementwise value is made of are its *sources*: arrays
    in memory, with the bytes that are read of each.
    """

    def __init__(
        self, eqns: Sequence[core.JaxprEqn], outputs: Iterable[Atom] | None, free: Collection[core.Var]
    ) -> None:
        self._eqns = eqns
        self._free = free
        # The variables that must lie in memory; those that anything needs; how many equations read each, and the
        # kernels into which those are fused.
        self._stored: set[core.Var] = set()
        self._readers: dict[core.Var, int] = {}
        self._users: dict[core.Var, frozenset[int]] = {}
        if outputs is None:
            read = {var for eqn in eqns for var in variables(eqn.invars)}
            outputs = [var for eqn in eqns for var in eqn.outvars if var not in read]
        self._stored.update(variables(outputs))
        self._needed = set(self._stored)
        self._sources: dict[core.Var, dict[core.Var, float]] = {}
        self._fused_flops: dict[int, float] = {}
        self._reductions: set[Any] = set()

    def work(self) -> list[Work]:
        for index in reversed(range(len(self._eqns))):
            self._find_users(index)
        return [self._cost(index, eqn) for index, eqn in enumerate(self._eqns)]

    def _find_users(self, index: int) -> None:
        """Tells the operands of an equation who uses them; consumers come before producers."""
        eqn = self._eqns[index]
        results = eqn.outvars
        if not eqn.effects and not any(var in self._needed for var in results):
            return
        operands = list(variables(eqn.invars))
        self._needed.update(operands)
        if self._is_free(eqn):
            return
        name = eqn.primitive.name
        readers = 1
        if name in _VIEWS:
            users = self._users_of(results)
            readers = self._readers.get(results[0], 0)
            if results[0] in self._stored:
                self._stored.update(operands)
        elif _fuses(name):
            stored = any(var in self._stored for var in results)
            users = frozenset({index}) if stored else self._users_of(results)
        else:
            users = frozenset({index})
            if name not in _REDUCTIONS:
                self._stored.update(operands)
        for var in dict.fromkeys(operands):
            self._readers[var] = self._readers.get(var, 0) + readers
            known = self._users.get(var, frozenset())
            if len(known) < _MANY_USERS:
                self._users[var] = known | users

    def _users_of(self, results: Iterable[core.Var]) -> frozenset[int]:
        return frozenset[int]().union(*(self._users.get(var, frozenset()) for var in results))

    def _is_free(self, eqn: core.JaxprEqn) -> bool:
        return bool(eqn.outvars) and all(var in self._free for var in eqn.outvars)

    def _cost(self, index: int, eqn: core.JaxprEqn) -> Work:
        """The equation's cost, once all before it have theirs."""
        if not eqn.effects and not any(var in self._needed for var in eqn.outvars):
            return FREE
        name = eqn.primitive.name
        if self._is_free(eqn):
            self._keep(eqn)
            return FREE
        if name in _VIEWS:
            self._sources[eqn.outvars[0]] = self._sources_of(eqn.invars)
            return FREE
        if _fuses(name):
            return self._elementwise(index, eqn)
        if name in _REDUCTIONS:
            return self._reduction(index, eqn)
        self._sources.update((var, {var: nbytes(var)}) for var in eqn.outvars)
        if name == "optimization_barrier":
            return FREE
        bodies = _bodies(eqn) if name not in _SCATTERS and name not in _FLOPS else []
        if bodies:
            return _loop(bodies, _repeats(eqn))
        return Work(flops=flops(eqn), nbytes=self._moved(eqn), dtype=_dtype(eqn), kernels=1)

    def _keep(self, eqn: core.JaxprEqn) -> None:
        """What is computed at load is read from memory, but not a broadcast of something smaller."""
        name = eqn.primitive.name
        for var in eqn.outvars:
            sources: dict[core.Var, float] = {var: nbytes(var)}
            if (name in _VIEWS or _fuses(name)) and var not in self._stored:
                smaller = self._sources_of(eqn.invars)
                sources = min(smaller, sources, key=lambda each: sum(each.values()))
            self._sources[var] = sources

    def _elementwise(self, index: int, eqn: core.JaxprEqn) -> Work:
        sources = self._sources_of(eqn.invars)
        written = float(sum(map(nbytes, eqn.outvars)))
        if eqn.primitive.name in _SLICES:
            sources = {var: min(read, written) for var, read in sources.items()}
        read = sum(sources.values())
        users = self._users_of(eqn.outvars)
        stored = any(var in self._stored for var in eqn.outvars) or len(sources) > _MOST_OPERANDS
        # Fused, each user reads the sources. Stored, they are read once, the value is written and each user reads that.
        # What one equation alone reads is a part of that one, which decides for both.
        read_often = sum(self._readers.get(var, 0) for var in eqn.outvars) > 1
        if stored or (read_often and len(users) * read > read + written + len(users) * written):
            self._sources.update((var, {var: nbytes(var)}) for var in eqn.outvars)
            return self._kernel(index, eqn, read + written)
        self._sources.update((var, sources) for var in eqn.outvars)
        user = min(users, default=index)
        self._fused_flops[user] = self._fused_flops.get(user, 0.0) + flops(eqn)
        return FREE

    def _reduction(self, index: int, eqn: core.JaxprEqn) -> Work:
        sources = self._sources_of(eqn.invars)
        self._sources.update((var, {var: nbytes(var)}) for var in eqn.outvars)
        written = float(sum(map(nbytes, eqn.outvars)))
        sibling = (shape(eqn.invars[0]), eqn.params.get("axes"), frozenset(sources))
        if eqn.params.get("axes") is not None and sibling in self._reductions:
            return dataclasses.replace(self._kernel(index, eqn, written), kernels=0)
        self._reductions.add(sibling)
        return self._kernel(index, eqn, sum(sources.values()) + written)

    def _kernel(self, index: int, eqn: core.JaxprEqn, nbytes: float) -> Work:
        """The kernel that ends with this equation."""
        fused = self._fused_flops.get(index, 0.0)
        return Work(flops=flops(eqn) + fused, nbytes=nbytes, dtype=_dtype(eqn), kernels=1)

    def _sources_of(self, atoms: Iterable[Atom]) -> dict[core.Var, float]:
        """What must be read for these, each array once."""
        found: list[dict[core.Var, float]] = []
        for var in dict.fromkeys(variables(atoms)):
            sources = self._sources.get(var)
            found.append({var: nbytes(var)} if sources is None else sources)
        if len(found) == 1:
            return found[0]  # never changed in place
        merged: dict[core.Var, float] = {}
        for sources in found:
            for var, read in sources.items():
                merged[var] = max(read, merged.get(var, 0.0))
        return merged

    def _moved(self, eqn: core.JaxprEqn) -> float:
        """Bytes that a kernel other than a fusion reads and writes."""
        name = eqn.primitive.name
        written = float(sum(map(nbytes, eqn.outvars)))
        if name == "gather":
            return written + nbytes(eqn.invars[1]) + written
        if name == "dynamic_update_slice":  # in place
            return 2.0 * nbytes(eqn.invars[1])
        if name in _SCATTERS:  # in place, and all but `scatter` read what they change
            indices, updates = (nbytes(atom) for atom in eqn.invars[1:])
            return indices + (2.0 if name == "scatter" else 3.0) * updates
        read = sum(self._sources_of(eqn.invars).values())
        if name == "sort":  # a radix sort, eight bits of the key at a time [Merrill and Grimshaw 2011]
            return (read + written) * _itemsize(eqn.invars[0])
        return read + written


def _loop(bodies: Sequence[core.Jaxpr], repeats: int) -> Work:
    """A loop's body is a program of its own: what it takes and returns lies in memory."""
    parts = tuple(
        each for body in bodies for each in work(body.eqns, outputs=body.outvars) if each.kernels or each.nbytes
    )
    total = max(parts, key=lambda each: each.flops, default=FREE)
    return Work(
        flops=repeats * sum(each.flops for each in parts),
        nbytes=repeats * sum(each.nbytes for each in parts),
        dtype=total.dtype,
        kernels=repeats * sum(each.kernels for each in parts),
        body=parts,
        repeats=repeats,
    )


def _fuses(name: str) -> bool:
    return name in _ELEMENTWISE or name in _MOVES or name in _SLICES


def _size(atom: Atom) -> int:
    return math.prod(shape(atom))


def _itemsize(array: Any) -> int:
    return array.aval.dtype.itemsize


def _dtype(eqn: core.JaxprEqn) -> str:
    """That of the operands; of several the widest, by which XLA computes."""
    atoms: Sequence[Any] = eqn.invars[:2]
    if eqn.primitive.name not in ("conv_general_dilated", "dot_general", "ragged_dot_general"):
        atoms = (*atoms, *eqn.outvars[:1])
    dtypes: list[Any] = [getattr(atom.aval, "dtype", None) for atom in atoms]
    dtypes = [dtype for dtype in dtypes if dtype is not None]
    return max(dtypes, key=lambda dtype: dtype.itemsize).name if dtypes else "float32"
