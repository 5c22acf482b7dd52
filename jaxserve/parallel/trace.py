"""From a model to the flat program of one bucket: every call inlined, every equation with the path of its module.

How it is made flat, and which loops are unrolled, is told in `jaxserve.model.flat`: a model checks its cuts by it too.
Other loops and branches stay whole; their bodies run as one operation.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxserve.model import Bucket, Model
from jaxserve.model.flat import Atom, flatten_program
from jaxserve.model.modules import Path
from jaxserve.parallel.atoms import fixed_vars


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
    def fixed(self) -> set[core.Var]:
        """The variables that depend on no input and on no effect: params, constants and what is made of them."""
        return fixed_vars((*self.params, *self.constants), self.eqns)

    @property
    def outputs(self) -> Sequence[Atom]:
        """One variable or literal for each output, in the order of the model's outputs."""
        return self.jaxpr.outvars


def calls_back(jaxpr: core.Jaxpr) -> bool:
    """Whether a program, or one inside it, calls Python while it runs."""
    return any(
        "callback" in eqn.primitive.name or eqn.primitive.name == "debug_print" or any(map(calls_back, _inner(eqn)))
        for eqn in jaxpr.eqns
    )


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
    closed = model.trace(bucket)
    params = len(jax.tree.leaves(model.abstract_params))
    program = flatten_program(closed, params=params)
    return Graph(
        jaxpr=closed.jaxpr.replace(
            constvars=list(program.constants), eqns=list(program.eqns), outvars=list(program.outputs)
        ),
        paths=tuple(program.paths),
        params=tuple(closed.jaxpr.invars[:params]),
        inputs=tuple(closed.jaxpr.invars[params:]),
        constants=program.constants,
        batch_size=bucket.batch_size,
    )
