"""From a plan to what jax compiles: a stage's program with the shardings of its operations written into it.

XLA propagates what is stated. Stating only the arguments gave several times the bytes of the plan on a 2 x 4 mesh;
stating the results of heavy operations too, up to half more on 2 x 2; stating those of all, the plan's or nearly so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Constraints = Mapping[int, Sequence[PartitionSpec]]  # by the place of an equation, a spec for each of its results


def constrained(program: core.ClosedJaxpr, constraints: Constraints, mesh: Mesh) -> Callable[..., list[Any]]:
    """A function that runs a program, to be traced, with constraints on the results of some of its equations."""
    jaxpr = program.jaxpr

    def run(*arguments: Any) -> list[Any]:
        values: dict[core.Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for place, eqn in enumerate(jaxpr.eqns):
            with eqn.ctx.manager, jax.named_scope(str(eqn.source_info.name_stack)):
                found = eqn.primitive.bind(*map(read, eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
            results = found if eqn.primitive.multiple_results else [found]
            specs = constraints.get(place)
            if specs is not None:
                results = [
                    jax.lax.with_sharding_constraint(result, NamedSharding(mesh, spec))
                    for result, spec in zip(results, specs, strict=True)
                ]
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return run
