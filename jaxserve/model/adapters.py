"""What differs between linen modules, nnx modules and plain functions: how they are called, which params they need.

An adapter is made with its params' source. `apply` is a pure function of (params, inputs), and every equation that it
traces carries the path of its module as a name scope: linen does so by itself, nnx modules are named here.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve.errors import ModelError
from jaxserve.model.naming import ModuleNames
from jaxserve.model.params import ParamSource, Shape, flatten, leaf_paths, nest, open_source, read_on_host

Inputs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A module or function as a pure function of params and inputs.

    Attributes:
        apply: called as `apply(params, inputs)`.
        params: abstract params, of the structure that `apply` takes.
        source: where the params are read from.
        source_paths: for each leaf of `params`, in order, its path in the source.
    """

    apply: Callable[[Any, Inputs], Any]
    params: Any
    source: ParamSource
    source_paths: tuple[str, ...]


def adapt_linen(
    module: Any, params: Any, inputs: Mapping[str, Shape], *, apply_kwargs: Mapping[str, Any], method: Any
) -> Adapter:
    """A `flax.linen` module; `inputs` are abstract ones, to find out which params it needs."""
    if not callable(getattr(module, "init", None)) or not callable(getattr(module, "apply", None)):
        raise ModelError(f"module is a {type(module).__name__}, but must be a flax.linen.Module with init and apply")
    source, tree = open_source(params, lambda given: flax.core.meta.unbox(flax.core.unfreeze(given)))
    if not isinstance(tree, Mapping):
        raise ModelError(f"params are a {type(tree).__name__}, but must be a dict as module.init returns it")
    bare = "params" not in tree
    variables = {"params": tree} if bare else dict(tree)

    def apply(variables: Any, inputs: Inputs) -> Any:
        return module.apply(variables, **inputs, **apply_kwargs, method=method)

    expected = _linen_variables(module, inputs, apply_kwargs, method)
    if expected is not None:
        wanted = {path: leaf for path, leaf in flatten(expected).items() if path.startswith("params/")}
        kept = [name for name in variables if name == "params" or name in expected]
        unknown = sorted(set(variables) - set(kept))
        if unknown:
            raise ModelError(f"params hold the collection {unknown[0]!r}, but the module has {sorted(expected)} only")
        given = flatten(variables)
        # Of other collections a module may find its own way without, so only what it was given is compared.
        wanted |= {path: leaf for path, leaf in flatten(expected).items() if path in given}
        _compare(given, wanted)
    paths = tuple(path.removeprefix("params/") if bare else path for path in leaf_paths(variables))
    return Adapter(apply=apply, params=variables, source=source, source_paths=paths)


# Arguments of linen's `apply` itself; the others go to the module's method, so `init` needs them too.
_APPLY_ONLY = frozenset({"rngs", "mutable", "capture_intermediates"})


def _linen_variables(
    module: Any, inputs: Mapping[str, Shape], apply_kwargs: Mapping[str, Any], method: Any
) -> Mapping[str, Any] | None:
    """The variables that `init` would make, or None where the module cannot be initialized by these arguments."""
    kwargs = {name: value for name, value in apply_kwargs.items() if name not in _APPLY_ONLY}

    def init(inputs: Inputs) -> Any:
        return module.init(jax.random.key(0), **inputs, **kwargs, method=method)

    try:
        made = jax.eval_shape(init, dict(inputs))
    except Exception:
        # `init` may need more than serving does (say, labels). Tracing `apply`, which comes next, decides.
        return None
    return flax.core.meta.unbox(flax.core.unfreeze(made))


def adapt_nnx(module: Any, params: Any, *, apply_kwargs: Mapping[str, Any], method: Any) -> Adapter:
    """A `flax.nnx` module, concrete or abstract. It is served in evaluation mode and is not changed itself."""
    if not isinstance(module, nnx.Module):
        raise ModelError(f"module is a {type(module).__name__}, but must be a flax.nnx.Module")
    graphdef, random, state = nnx.split(module, nnx.RngState, ...)
    variables = nnx.to_flat_state(state)
    own = nest({_state_path(keys): _value(leaf) for keys, leaf in variables})
    source, _ = open_source(own if params is None else params, lambda tree: tree)
    expected = {_state_path(keys): Shape(_value(leaf).shape, _value(leaf).dtype) for keys, leaf in variables}
    # files of other tools may hold the `.value` of each variable beside its name
    given = {path if path in expected else path.removesuffix("/value"): path for path in source.shapes}
    for keys, _ in nnx.to_flat_state(random):  # seeds of dropout and the like: nobody needs them to serve
        given.pop(_state_path(keys), None)
    _compare({path: source.shapes[raw] for path, raw in given.items()}, expected)
    abstract = nest({path: source.shapes[given[path]] for path in expected})
    # Only shapes are kept, so that the module's own arrays do not outlive the module.
    empty = [(keys, _with_value(leaf, expected[_state_path(keys)])) for keys, leaf in variables]
    seeds = [(keys, _with_value(leaf, Shape(leaf.shape, leaf.dtype))) for keys, leaf in nnx.to_flat_state(random)]
    names = ModuleNames()

    def apply(params: Any, inputs: Inputs) -> Any:
        leaves = flatten(params)
        filled = [(keys, _with_value(leaf, leaves[_state_path(keys)])) for keys, leaf in empty]
        seeded = [(keys, _with_value(leaf, _seed(_value(leaf)))) for keys, leaf in seeds]
        merged = nnx.merge(graphdef, nnx.from_flat_state(filled), nnx.from_flat_state(seeded))
        merged.eval()
        names.name(merged)
        call = functools.partial(method, merged) if callable(method) else getattr(merged, method or "__call__")
        return call(**inputs, **apply_kwargs)

    paths = tuple(given[path] for path in leaf_paths(abstract))
    return Adapter(apply=apply, params=abstract, source=source, source_paths=paths)


def _state_path(keys: Sequence[Any]) -> str:
    return "/".join(map(str, keys))


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _with_value(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _seed(shape: Shape) -> jax.Array:
    """A fixed random state of this shape, made inside the program."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)


def adapt_function(
    function: Any, params: Any, inputs: Mapping[str, Shape], *, apply_kwargs: Mapping[str, Any]
) -> Adapter:
    """A plain function of (params, **inputs), or of the inputs alone where no params are given."""
    call = _with_params(function, params, {**inputs, **apply_kwargs})
    source, tree = open_source(() if params is None else params, lambda tree: tree)

    def apply(params: Any, inputs: Inputs) -> Any:
        return call(params, **inputs, **apply_kwargs)

    return Adapter(apply=apply, params=tree, source=source, source_paths=leaf_paths(tree))


def adapt_host_function(
    function: Any, params: Any, inputs: Mapping[str, Shape], *, apply_kwargs: Mapping[str, Any]
) -> Adapter:
    """A plain function of numpy arrays. Its params are at hand at once, and jax never sees them."""
    call = _with_params(function, params, {**inputs, **apply_kwargs})
    if isinstance(params, str | os.PathLike):
        source, tree = open_source(params, lambda tree: tree)
        paths = leaf_paths(tree)
        params = jax.tree.structure(tree).unflatten(read_on_host(source, paths))
    elif callable(params):
        params = params()
    source, tree = open_source(() if params is None else params, lambda tree: tree)

    def apply(_: Any, inputs: Inputs) -> Any:
        return call(params, **inputs, **apply_kwargs)

    return Adapter(apply=apply, params=tree, source=source, source_paths=leaf_paths(tree))


def _with_params(function: Any, params: Any, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The function as one that takes params in any case."""
    if not callable(function):
        raise ModelError(f"function is a {type(function).__name__}, but must be callable")
    if params is None and _takes_only(function, arguments):
        return lambda _, **inputs: function(**inputs)
    return function


def _takes_only(function: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError):
        return False
    return True


def _compare(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses params that are not those of the module; the message names the leaves."""
    for path, leaf in given.items():
        if path in expected and tuple(leaf.shape) != tuple(expected[path].shape):
            raise ModelError(
                f"params leaf {path!r} has shape {tuple(leaf.shape)}, but the module needs "
                f"{tuple(expected[path].shape)}; give the params of this configuration"
            )
        if path in expected and _kind(leaf) != _kind(expected[path]):
            raise ModelError(
                f"params leaf {path!r} is of {leaf.dtype}, but the module's is of {expected[path].dtype}; "
                f"give the params of this module"
            )
    missing = [path for path in expected if path not in given]
    extra = [path for path in given if path not in expected]
    parts = [f"lack {_some(missing)}"] if missing else []
    parts += [f"have {_some(extra)}, which the module does not use"] if extra else []
    if parts:
        raise ModelError(f"the params {' and '.join(parts)}; give exactly those of the module")


def _kind(leaf: Any) -> str:
    """What sort of numbers: a bfloat16 weight may stand for a float32 one, an int32 one may not."""
    sorts = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
    return next((sort.__name__ for sort in sorts if jnp.issubdtype(leaf.dtype, sort)), str(leaf.dtype))


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(map(repr, paths[:3]))
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
