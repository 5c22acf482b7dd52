"""Names of modules: nnx modules trace without their paths, so they are given name scopes as linen modules have them.

A merged module belongs to one trace, so its parts may be given subclasses of their classes whose methods open
`jax.named_scope`s. The user's module and its classes stay as they are. A path ("encoder", "layers", 3) becomes the
scope "encoder/layers_3"; another method than `__call__` adds its name ("embed.attend"), both as linen does.
"""

import contextvars
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxserve.model.modules import Path, join_indices

# Path of the module whose method is being traced: scopes nest, so an inner one names only what the outer lacks.
_ACTIVE: contextvars.ContextVar[Path] = contextvars.ContextVar("jaxserve_active_module", default=())


class ModuleNames:
    """Gives the modules of one architecture their name scopes; keeps the classes that it made for the next trace."""

    def __init__(self) -> None:
        self._classes: dict[tuple[type, Path], type] = {}

    def name(self, root: nnx.Module) -> None:
        """Names every module below `root`, which must belong to the caller."""
        for keys, node in list(nnx.iter_graph(root)):
            path = join_indices(keys)
            if path and isinstance(node, nnx.Module):
                self._name(node, path)

    def _name(self, node: nnx.Module, path: Path) -> None:
        base = type(node)
        if (base, path) not in self._classes:
            methods: dict[str, Any] = {name: _scoped(method, name, path) for name, method in _methods(base).items()}
            methods["__module__"] = base.__module__
            try:
                made = types.new_class(base.__name__, (base,), exec_body=lambda namespace: namespace.update(methods))
            except TypeError:  # a class that cannot be subclassed just so: its modules stay without names
                made = base
            self._classes[base, path] = made
        named = self._classes[base, path]
        if named.__dictoffset__ == base.__dictoffset__ and named.__basicsize__ == base.__basicsize__:
            object.__setattr__(node, "__class__", named)


def _methods(base: type) -> dict[str, Callable[..., Any]]:
    """What a module's author wrote: `__call__` and the public methods, but nothing of `nnx.Module` itself."""
    found: dict[str, Callable[..., Any]] = {}
    for owner in base.__mro__:
        if owner in nnx.Module.__mro__:
            continue
        for name, value in vars(owner).items():
            if inspect.isfunction(value) and (name == "__call__" or not name.startswith("_")):
                found.setdefault(name, value)
    return found


def _scoped(method: Callable[..., Any], name: str, path: Path) -> Callable[..., Any]:
    scope = path if name == "__call__" else (*path[:-1], f"{path[-1]}.{name}")

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = _ACTIVE.get()
        if active == path:  # one method of a module that calls another
            return method(self, *args, **kwargs)
        inner = scope[len(active) :] if path[: len(active)] == active else scope
        token = _ACTIVE.set(path)
        try:
            with jax.named_scope("/".join(inner)):
                return method(self, *args, **kwargs)
        finally:
            _ACTIVE.reset(token)

    return call
