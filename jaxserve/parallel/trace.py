"""From a model to the flat program of one bucket: every call inlined, every equation with the path of its module.

How it is made flat, and which loops are unrolled, is told in `jaxserve.model.flat`: a model checks its cuts by it too.
Other loops and branches stay whole; their bodies run as one operation.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxserve.model import Bucket, Model
from jaxserve.model.flat import Atom, flatten_program
from jaxserve.model.modules import Path
from jaxserve.model.params import Shape
from jaxserve.model.signature import numpy_dtype


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """The flat program of one model at one bucket.

    Attributes:
        jaxpr: takes the leaves of the params and the inputs, returns the outputs; constants are its `constvars`.
        paths: for each equation, the path of its module.
        params: one variable for each leaf of the model's params; once hoisted, for each of its weights.
        inputs: one variable for each input, in the order of the model's inputs.
        constants: arrays that the model closed over, by their variable.
        batch_size: the bucket's batch size.
        emptied: modules of which no equation is left, and the place before which their first one stood.
    """

    jaxpr: core.Jaxpr
    paths: tuple[Path, ...]
    params: tuple[core.Var, ...]
    inputs: tuple[core.Var, ...]
    constants: Mapping[core.Var, Any]
    batch_size: int
    emptied: Mapping[Path, int] = dataclasses.field(default_factory=dict)

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
    program = flatten_program(closed, params=len(leaves))
    return Graph(
        jaxpr=closed.jaxpr.replace(
            constvars=list(program.constants), eqns=list(program.eqns), outvars=list(program.outputs)
        ),
        paths=tuple(program.paths),
        params=tuple(closed.jaxpr.invars[: len(leaves)]),
        inputs=tuple(closed.jaxpr.invars[len(leaves) :]),
        constants=program.constants,
        batch_size=bucket.batch_size,
    )


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
