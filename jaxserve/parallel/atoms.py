"""What is asked of the variables and literals of a program everywhere."""

import math
from collections.abc import Iterable
from typing import Any

from jax.extend import core

from jaxserve.model.flat import Atom


def shape(atom: Atom) -> tuple[int, ...]:
    """The shape of the array that an atom stands for; empty for what has none."""
    return tuple(getattr(atom.aval, "shape", ()))


def nbytes(atom: Atom) -> int:
    """Bytes of the array that an atom stands for; tokens of effects have none."""
    return math.prod(shape(atom)) * getattr(getattr(atom.aval, "dtype", None), "itemsize", 0)


def variables(atoms: Iterable[Atom]) -> Iterable[core.Var]:
    """Those that are no literals."""
    return (atom for atom in atoms if not isinstance(atom, core.Literal))


def fixed_vars(given: Iterable[core.Var], eqns: Iterable[core.JaxprEqn]) -> set[core.Var]:
    """Given variables (params and constants), and those that depend on them alone and on no effect."""
    fixed: set[Any] = set(given)
    for eqn in eqns:
        if not eqn.effects and all(var in fixed for var in variables(eqn.invars)):
            fixed.update(eqn.outvars)
    return fixed
