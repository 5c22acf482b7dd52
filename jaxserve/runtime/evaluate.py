"""Computing on the host what a weight is derived by, when a model is loaded.

Rows of stacked params and other views are taken by numpy, which copies nothing and compiles nothing; XLA would compile
a program for each row. The rest runs operation by operation, so that what layers have in common is compiled once.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxserve.parallel.atoms import variables


def host_device() -> Any:
    """The device that is the host itself; jax's first one, where it was told to keep no CPU backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def evaluate(program: core.ClosedJaxpr, arguments: Sequence[Any]) -> Any:
    """The one result of a program without effects, as a numpy array (maybe a view of an argument) or on the host."""
    jaxpr = program.jaxpr
    values: dict[core.Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    with jax.default_device(host_device()):
        for eqn in jaxpr.eqns:
            taken = list(dict.fromkeys(variables(eqn.invars)))
            operands = [values[var] for var in taken]
            results = _view(eqn, operands)
            if results is None:
                one = jaxpr.replace(constvars=[], invars=taken, outvars=eqn.outvars, eqns=[eqn])
                results = core.jaxpr_as_fun(core.ClosedJaxpr(one, []))(*operands)
            values.update(zip(eqn.outvars, results, strict=True))
    return values[jaxpr.outvars[0]]


def _view(eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[np.ndarray[Any, Any]] | None:
    """The results where they are views of an operand, or None."""
    if len(operands) != 1 or len(eqn.invars) != 1 or jnp.issubdtype(operands[0].dtype, jax.dtypes.extended):
        return None
    array, params = np.asarray(operands[0]), eqn.params
    result: Any = eqn.outvars[0].aval
    match eqn.primitive.name:
        case "slice":
            bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
            strides = params["strides"] or (1,) * array.ndim
            return [array[tuple(slice(*each, step) for each, step in zip(bounds, strides, strict=True))]]
        case "unstack":
            return list(np.moveaxis(array, params["axis"], 0))
        case "squeeze" | "reshape":
            return [array.reshape(result.shape)]
        case "transpose":
            return [array.transpose(params["permutation"])]
        case _:
            return None
