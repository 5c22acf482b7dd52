"""From a plan to what jax compiles: a stage's program with the shardings of its operations written into it.

XLA propagates what is stated, and lays out the rest in its own way. Stating only the arguments gave several times the
bytes of the plan on a 2 x 4 mesh; stating the results of heavy operations too, half more on 2 x 2; of all results,
up to a third more. With the operands that collectives bring as well, the zoo's programs send what was planned, and at
most 9 % more on meshes of two axes (ResNet 20 %), as `jaxserve explain --check` shows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Constraints = Mapping[int, Sequence[PartitionSpec]]  # by the place of an equation, a spec for each of its results


def constrained(
    program: core.ClosedJaxpr, constraints: Constraints, mesh: Mesh, *, arrivals: Constraints | None = None
) -> Callable[..., list[Any]]:
    """A function that runs a program, to be traced.

    Args:
        program: what it runs.
        constraints: on the results of some of its equations.
        mesh: that the specs are of.
        arrivals: on the operands of some; what XLA would rather lay out in its own way is laid out as planned.
    """
    jaxpr = program.jaxpr
    arriving = arrivals or {}

    def constrain(values: Sequence[Any], specs: Sequence[PartitionSpec] | None) -> Sequence[Any]:
        if specs is None:
            return values
        return [
            jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))
            if isinstance(value, jax.Array)
            else value
            for value, spec in zip(values, specs, strict=True)
        ]

    def run(*arguments: Any) -> list[Any]:
        values: dict[core.Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for place, eqn in enumerate(jaxpr.eqns):
            with eqn.ctx.manager, jax.named_scope(str(eqn.source_info.name_stack)):
                operands = constrain([read(atom) for atom in eqn.invars], arriving.get(place))
                found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = found if eqn.primitive.multiple_results else [found]
            values.update(zip(eqn.outvars, constrain(results, constraints.get(place)), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return run
