"""Which modules a traced program has: read from the name scopes of its equations."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core

from jaxserve.errors import ModelError

Path = tuple[str, ...]

# Primitives that only call a jaxpr, and the parameter that holds it. Their equations may stand in the caller's place.
CALLS = {
    "call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_jvp_call_jaxpr": "fun_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def called_jaxpr(eqn: Any) -> Any:
    """The jaxpr (open or closed) that an equation calls, or None where it is more than a call."""
    return eqn.params.get(CALLS.get(eqn.primitive.name, ""))


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many operands of a `scan` are constants of its body, and how many are carried; the others are its steps'."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()  # since jax 0.11
    return len(list(constants.vals)), len(list(carried.vals))


def scope_of(eqn: Any) -> Path:
    """The module path of an equation, relative to the jaxpr that it stands in; transformations leave no trace in it."""
    stack = eqn.source_info.name_stack.stack
    scopes = [entry.name for entry in stack if type(entry).__name__ == "Scope"]
    return tuple(name for scope in scopes for name in scope.split("/"))


def module_path(eqn: Any) -> Path:
    """As `scope_of`; a loop or branch also stands for the module that its whole body is, as by linen's `nn.scan`."""
    scope = scope_of(eqn)
    if called_jaxpr(eqn) is not None:
        return scope
    paths = [path for body in core.jaxprs_in_params(eqn.params) for path in walk(body)]
    return (*scope, *_common(paths)) if paths else scope


def _common(paths: Sequence[Path]) -> Path:
    steps = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return tuple(names[0] for names in steps)


def walk(jaxpr: Any, outer: Path = ()) -> Iterator[Path]:
    """The module path of every equation, those inside calls, loops and branches too."""
    for eqn in jaxpr.eqns:
        yield (*outer, *module_path(eqn))
        called = called_jaxpr(eqn)
        for inner in [called] if called is not None else core.jaxprs_in_params(eqn.params):
            yield from walk(getattr(inner, "jaxpr", inner), (*outer, *scope_of(eqn)))


def check_cuts(eqns: Sequence[core.JaxprEqn], paths: Sequence[Path], cuts: Sequence[str]) -> None:
    """Refuses a cut that names no module of a flat program, several, or one inside a loop that stays whole.

    Raises:
        ModelError: the message lists the modules that there are.
    """
    where: dict[Path, str | None] = {}
    for eqn, path in zip(eqns, paths, strict=True):
        where.update((path[:depth], None) for depth in range(1, len(path) + 1))
        for body in core.jaxprs_in_params(eqn.params):
            outer = path[: len(path) - len(module_path(eqn)) + len(scope_of(eqn))]
            for inner in walk(body, outer):
                for depth in range(1, len(inner) + 1):
                    where.setdefault(inner[:depth], eqn.primitive.name)
    for cut in cuts:
        module = match_module(cut, where)
        if where[module] is not None:
            raise ModelError(
                f"cut {cut!r} lies inside a `{where[module]}`, which runs as one operation; cut before or after it, or "
                f"write the loop out in Python"
            )


def match_module(name: str, modules: Any) -> Path:
    """The one module whose path ends in these names: "layers_3", "encoder/layers_3" or "encoder/layers/3".

    A row of modules, where no one module has its name, stands for the first of them: "layers" for "layers_0".

    Raises:
        ModelError: no module does, or several do.
    """
    wanted = join_indices(name.split("/"))
    first = (*wanted[:-1], f"{wanted[-1]}_0")
    found = [path for path in modules if path[-len(wanted) :] == wanted]
    found = found or [path for path in modules if path[-len(first) :] == first]
    if not found:
        known = sorted({"/".join(path) for path in modules})
        raise ModelError(f"cut {name!r} names no module; the modules are {', '.join(known) or '(none: name some)'}")
    if len(found) > 1:
        raise ModelError(f"cut {name!r} names {', '.join('/'.join(path) for path in found)}; give a longer path")
    return found[0]


def join_indices(keys: Sequence[Any]) -> Path:
    """The names of a graph path, an index joined to the name before it: ("layers", 3) is ("layers_3",)."""
    names: list[str] = []
    for key in keys:
        if names and str(key).isdecimal():
            names[-1] = f"{names[-1]}_{key}"
        else:
            names.append(str(key))
    return tuple(names)
