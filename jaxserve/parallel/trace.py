"""From a model to the flat program of one bucket: every call inlined, every equation with the path of its module.

Calls are inlined by rewriting their equations, not by tracing again, so that module names survive: an equation inside a
call has its name scopes relative to the call. Loops and branches stay whole; their bodies run as one operation.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxserve.model import Bucket, Model
from jaxserve.model.modules import Path, called_jaxpr, module_path
from jaxserve.model.params import Shape
from jaxserve.model.signature import numpy_dtype

Atom = Any  # a core.Var or a core.Literal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """The flat program of one model at one bucket.

    Attributes:
        jaxpr: takes the leaves of the params and the inputs, returns the outputs; constants are its `constvars`.
        paths: for each equation, the path of its module.
        params: one variable for each leaf of the model's params.
        inputs: one variable for each input, in the order of the model's inputs.
        constants: arrays that the model closed over, by their variable.
        batch_size: the bucket's batch size.
    """

    jaxpr: core.Jaxpr
    paths: tuple[Path, ...]
    params: tuple[core.Var, ...]
    inputs: tuple[core.Var, ...]
    constants: Mapping[core.Var, Any]
    batch_size: int

    @property
    def eqns(self) -> Sequence[core.JaxprEqn]:
        """The equations, in the order in which they were traced."""
        return self.jaxpr.eqns

    @property
    def outputs(self) -> Sequence[Atom]:
        """One variable or literal for each output, in the order of the model's outputs."""
        return self.jaxpr.outvars


def calls_back(jaxpr: core.Jaxpr) -> bool:
    """Whether a program, or one inside it, calls Python while it runs."""
    return any("callback" in eqn.primitive.name or any(map(calls_back, _inner(eqn))) for eqn in jaxpr.eqns)


def _inner(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs among an equation's params: bodies of loops, branches, calls."""
    found: list[core.Jaxpr] = []
    for param in eqn.params.values():
        for value in param if isinstance(param, tuple | list) else (param,):
            value = getattr(value, "jaxpr", value)  # of a closed one
            if isinstance(value, core.Jaxpr):
                found.append(value)
    return found


def trace(model: Model, bucket: Bucket) -> Graph:
    """The flat program of a model at a bucket."""
    names = tuple(model.inputs)
    leaves, structure = jax.tree.flatten(model.abstract_params)

    def flat(leaves: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        returned = model.apply(structure.unflatten(leaves), dict(zip(names, values, strict=True)))
        return jax.tree.leaves(returned)

    shapes = [Shape(spec.resolve(bucket.sizes), numpy_dtype(spec.dtype)) for spec in model.inputs.values()]
    closed = jax.make_jaxpr(flat)(leaves, shapes)
    inliner = _Inliner()
    constants = [inliner.constant(value, var) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)]
    outputs = inliner.inline(closed.jaxpr, constants, closed.jaxpr.invars, outer=None, path=())
    flat_jaxpr = closed.jaxpr.replace(constvars=list(inliner.constants), eqns=inliner.eqns, outvars=outputs)
    return Graph(
        jaxpr=flat_jaxpr,
        paths=tuple(inliner.paths),
        params=tuple(closed.jaxpr.invars[: len(leaves)]),
        inputs=tuple(closed.jaxpr.invars[len(leaves) :]),
        constants=inliner.constants,
        batch_size=bucket.batch_size,
    )


class _Inliner:
    """Collects the equations of a jaxpr and of everything that it calls."""

    def __init__(self) -> None:
        self.eqns: list[core.JaxprEqn] = []
        self.paths: list[Path] = []
        self.constants: dict[core.Var, Any] = {}
        self._constant_vars: dict[int, core.Var] = {}

    def constant(self, value: Any, var: core.Var) -> core.Var:
        """A variable for an array that was closed over: the same one wherever the same array is met."""
        known = self._constant_vars.setdefault(id(value), core.Var(var.aval))
        self.constants[known] = value
        return known

    def inline(
        self, jaxpr: core.Jaxpr, constants: Sequence[Atom], arguments: Sequence[Atom], *, outer: Any, path: Path
    ) -> list[Atom]:
        """Appends the equations of `jaxpr`, called with these atoms, and returns the atoms of its results.

        `outer` is the name stack of the calling equation, `path` the module path that it stands for.
        """
        values: dict[core.Var, Atom] = dict(zip(jaxpr.constvars, constants, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Atom) -> Atom:
            return atom if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            stack = eqn.source_info.name_stack if outer is None else outer + eqn.source_info.name_stack
            inner_path = (*path, *module_path(eqn))
            called = called_jaxpr(eqn)
            invars = [read(atom) for atom in eqn.invars]
            if called is not None:
                results = self._call(called, invars, stack, inner_path)
            else:
                results = [core.Var(var.aval) for var in eqn.outvars]
                source_info = eqn.source_info.replace(name_stack=stack)
                self.eqns.append(eqn.replace(invars=invars, outvars=results, source_info=source_info))
                self.paths.append(inner_path)
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _call(self, called: Any, arguments: Sequence[Atom], stack: Any, path: Path) -> list[Atom]:
        if not isinstance(called, core.ClosedJaxpr):
            return self.inline(called, (), arguments, outer=stack, path=path)
        inner = called.jaxpr
        constants = [self.constant(value, var) for var, value in zip(inner.constvars, called.consts, strict=True)]
        return self.inline(inner, constants, arguments, outer=stack, path=path)


def flops(eqn: core.JaxprEqn) -> float:
    """Floating-point operations of an equation, near enough to compare stages.

    One for each number of its results, but 2 mnk for products; a `while` body counts once, of branches the dearest.
    """
    name, params = eqn.primitive.name, eqn.params
    results = float(sum(math.prod(_shape(var)) for var in eqn.outvars))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * results * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(eqn.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * results * math.prod(kernel) / outputs
    inner = [sum(flops(each) for each in getattr(body, "jaxpr", body).eqns) for body in core.jaxprs_in_params(params)]
    if not inner:
        return results
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(atom: Atom) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())
