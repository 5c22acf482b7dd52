"""How much memory the values of a stage take on each of its devices, as estimated without compiling it.

What is fused into a kernel never lies in memory: only the results of equations that end one do (`work`). Such a result
lives until the last kernel that reads it, directly or through what is fused. A stage keeps what it takes to its end, as
the caller holds it, and what it gives.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

from jaxserve.parallel.atoms import nbytes, variables
from jaxserve.parallel.layout import Spec, shards
from jaxserve.parallel.plan import StagePlan
from jaxserve.parallel.work import work


def specs_of_values(plan: StagePlan) -> dict[core.Var, Spec]:
    """The spec of every value that the stage takes or makes."""
    jaxpr = plan.stage.program.jaxpr
    specs = dict(zip(plan.stage.arguments.takes, plan.takes, strict=True))
    for place, step in plan.steps.items():
        specs.update(zip(jaxpr.eqns[place].outvars, step.results, strict=True))
    return specs


def peak_bytes(plan: StagePlan) -> float:
    """Bytes on each device, besides weights, at the moment when the stage needs most."""
    jaxpr = plan.stage.program.jaxpr
    specs = specs_of_values(plan)
    sizes = {var: nbytes(var) / shards(plan.mesh_shape, spec) for var, spec in specs.items()}
    taken = set(plan.stage.arguments.takes)
    kernels = [each.kernels > 0 for each in work(jaxpr.eqns, free=plan.stage.fixed)]
    given = set(variables(jaxpr.outvars))
    last = _last_uses(jaxpr.eqns, kernels, given)
    ends: dict[int, list[core.Var]] = collections.defaultdict(list)
    for var, place in last.items():
        if var in sizes and var not in taken:
            ends[place].append(var)
    live = peak = sum(sizes[var] for var in taken)
    for place, eqn in enumerate(jaxpr.eqns):
        live += sum(sizes[var] for var in eqn.outvars if var in last and var in sizes)
        peak = max(peak, live)
        live -= sum(sizes[var] for var in ends[place])
    return peak


def _last_uses(eqns: Sequence[core.JaxprEqn], kernels: Sequence[bool], given: set[Any]) -> Mapping[core.Var, int]:
    """Of every value that lies in memory, the place of the last kernel that reads it; beyond all for what is given."""
    behind: dict[core.Var, frozenset[core.Var]] = {}  # of what is fused, the values in memory that it is made of
    last: dict[core.Var, int] = {}

    def read(atom: Any, place: int) -> None:
        for var in behind.get(atom, (atom,)):
            last[var] = max(last.get(var, place), place)

    for place, eqn in enumerate(eqns):
        operands = list(variables(eqn.invars))
        if kernels[place]:
            for atom in operands:
                read(atom, place)
            last.update((var, place) for var in eqn.outvars)
        else:
            sources = frozenset().union(*(behind.get(atom, frozenset((atom,))) for atom in operands))
            behind.update((var, sources) for var in eqn.outvars)
    for var in given:
        read(var, len(eqns))
    return last
