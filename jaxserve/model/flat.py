"""A traced program made flat: calls opened, loops over stacked layers unrolled, each equation with its module's path.

Equations are rewritten, not traced again, so that the name scopes survive from which module paths are read: an equation
inside a call or a loop has its scopes relative to it.

A `scan` is unrolled where it runs over params: its iterations are layers, each with its row of every stacked param. The
modules in its body get the number of the row, as those of a list of layers have it: "layers/attention" becomes
"layers_3/attention". A scan over time, whose params are the same at each step, stays whole, as do `while` and `cond`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxserve.model.modules import Path, called_jaxpr, module_path, scan_counts, scope_of, walk

Atom = Any  # a core.Var or a core.Literal

MOST_ITERATIONS = 512
"""A longer scan stays whole: no model has more layers, so it runs over something else, such as a table's rows."""

_UNNAMED = "scan"
"""Where a loop's body has no one module, "scan_3" stands for what is outside of its modules."""

_DROPPED = frozenset({"name", "sharding_constraint"})
"""What `jax.ad_checkpoint.checkpoint_name` leaves, which names a value for a policy of `remat` and does nothing; and
constraints on the devices that the module was written for, which are not those that it is served on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatProgram:
    """The equations of a program and of everything that it calls.

    Attributes:
        eqns: in the order in which they run.
        paths: for each equation, the path of its module.
        outputs: a variable or literal for each output.
        constants: arrays that the program closed over, by their variable.
    """

    eqns: Sequence[core.JaxprEqn]
    paths: Sequence[Path]
    outputs: Sequence[Atom]
    constants: Mapping[core.Var, Any]


def flatten_program(program: core.ClosedJaxpr, *, params: int) -> FlatProgram:
    """The flat form of a program whose first `params` arguments are leaves of a model's params."""
    jaxpr = program.jaxpr
    flattener = _Flattener(jaxpr.invars[:params])
    outputs = flattener.call(program, jaxpr.invars, _Place(stack=None, path=()))
    return FlatProgram(
        eqns=flattener.eqns, paths=flattener.paths, outputs=outputs, constants=flattener.origins.constants
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a jaxpr is called from.

    Attributes:
        stack: name stack of the calling equation.
        path: module path that it stands for.
        row: number of the iteration, where no name below `path` has got it yet.
        unnamed: the name that gets it where there is none.
    """

    stack: Any
    path: Path
    row: str | None = None
    unnamed: str = _UNNAMED

    def of(self, eqn: core.JaxprEqn) -> Any:
        """The whole name stack of an equation here."""
        stack = eqn.source_info.name_stack
        return stack if self.stack is None else self.stack + stack

    def module(self, names: Path) -> Path:
        """The whole path of these names, or of the loop itself where there are none."""
        if self.row is None:
            return (*self.path, *names)
        first, *rest = names or (self.unnamed,)
        return (*self.path, f"{first}_{self.row}", *rest)

    def enter(self, eqn: core.JaxprEqn, names: Path, row: int | None = None, unnamed: str = _UNNAMED) -> "_Place":
        """The place of what an equation here calls, or of one iteration of it."""
        path, rows = self.path, [] if row is None else [str(row)]
        if names:
            path = self.module(names)
        elif self.row is not None:
            rows.insert(0, self.row)
        if row is None:
            unnamed = self.unnamed
        return _Place(stack=self.of(eqn), path=path, row="_".join(rows) or None, unnamed=unnamed)


class _Origins:
    """Which variables are params or made of params alone, and how."""

    def __init__(self, params: Sequence[core.Var]) -> None:
        self.constants: dict[core.Var, Any] = {}
        self._constant_vars: dict[int, core.Var] = {}
        self._fixed: set[core.Var] = set(params)
        self._of_params: set[core.Var] = set(params)
        self._makers: dict[core.Var, core.JaxprEqn] = {}

    def constant(self, value: Any, var: core.Var) -> core.Var:
        """A variable for an array that was closed over: the same one wherever the same array is met."""
        known = self._constant_vars.setdefault(id(value), core.Var(var.aval))
        self.constants[known] = value
        self._fixed.add(known)
        return known

    def add(self, eqn: core.JaxprEqn) -> None:
        """Takes note of an equation."""
        variables = [atom for atom in eqn.invars if not isinstance(atom, core.Literal)]
        if not eqn.effects and self._fixed.issuperset(variables):
            self._fixed.update(eqn.outvars)
            if not self._of_params.isdisjoint(variables):
                self._of_params.update(eqn.outvars)
                self._makers.update((var, eqn) for var in eqn.outvars)

    def of_params(self, atom: Atom) -> bool:
        """Whether the atom is made of params and constants alone."""
        return not isinstance(atom, core.Literal) and atom in self._of_params

    def maker(self, atom: Atom) -> core.JaxprEqn | None:
        """The equation that makes it of params and constants alone."""
        return None if isinstance(atom, core.Literal) else self._makers.get(atom)


class _Flattener:
    """Collects the equations of a jaxpr and of everything that it calls."""

    def __init__(self, params: Sequence[core.Var]) -> None:
        self.eqns: list[core.JaxprEqn] = []
        self.paths: list[Path] = []
        self.origins = _Origins(params)
        self._first_rows: dict[Any, core.Jaxpr] = {}

    def call(self, called: Any, arguments: Sequence[Atom], place: _Place) -> list[Atom]:
        """Appends the equations of an open or closed jaxpr, called with these atoms; the atoms of its results."""
        jaxpr: core.Jaxpr = getattr(called, "jaxpr", called)
        values: dict[core.Var, Atom] = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, value in zip(jaxpr.constvars, getattr(called, "consts", ()), strict=True):
            values[var] = self.origins.constant(value, var)

        def read(atom: Atom) -> Atom:
            return atom if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            invars = [read(atom) for atom in eqn.invars]
            inner = called_jaxpr(eqn)
            if eqn.primitive.name in _DROPPED:
                results = invars
            elif inner is not None:
                results = self.call(inner, invars, place.enter(eqn, scope_of(eqn)))
            elif self._runs_over_params(eqn, invars):
                wanted = _read_by(jaxpr, eqn.outvars)
                results = self._unroll(eqn, invars, wanted, place)
            else:
                results = [core.Var(var.aval) for var in eqn.outvars]
                self._append(eqn, invars, results, place.of(eqn), place.module(module_path(eqn)))
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _append(self, eqn: core.JaxprEqn, invars: list[Atom], outvars: list[core.Var], stack: Any, path: Path) -> None:
        source_info = eqn.source_info.replace(name_stack=stack)
        made = eqn.replace(invars=invars, outvars=outvars, source_info=source_info)
        self.origins.add(made)
        self.eqns.append(made)
        self.paths.append(path)

    def _runs_over_params(self, eqn: core.JaxprEqn, invars: Sequence[Atom]) -> bool:
        if eqn.primitive.name != "scan" or not 0 < eqn.params["length"] <= MOST_ITERATIONS:
            return False
        stacked = invars[sum(scan_counts(eqn)) :]
        return any(map(self.origins.of_params, stacked))

    def _unroll(self, eqn: core.JaxprEqn, invars: Sequence[Atom], wanted: Sequence[bool], place: _Place) -> list[Atom]:
        """Appends every iteration; the atoms of the scan's results, those that are not wanted are any atoms."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        consts, carried = scan_counts(eqn)
        constants, carry = invars[:consts], list(invars[consts : consts + carried])
        stacked = invars[consts + carried :]
        names = {path[0] for path in walk(getattr(body, "jaxpr", body)) if path}
        unnamed = names.pop() if len(names) == 1 else _UNNAMED
        rows: list[list[Atom]] = [[] for _ in eqn.outvars[carried:]]
        order = range(length)[:: -1 if eqn.params["reverse"] else 1]
        for row in order:
            here = place.enter(eqn, scope_of(eqn), row, unnamed)
            parts = [self._row(atom, row, here) for atom in stacked]
            results = self.call(body, [*constants, *carry, *parts], here)
            carry = results[:carried]
            for collected, atom in zip(rows, results[carried:], strict=True):
                collected.append(atom)
        here = place.enter(eqn, scope_of(eqn))
        results = [
            self._stack(collected[:: order.step], here) if is_wanted else core.Var(var.aval)
            for collected, var, is_wanted in zip(rows, eqn.outvars[carried:], wanted[carried:], strict=True)
        ]
        return [*carry, *results]

    def _row(self, atom: Atom, row: int, place: _Place) -> Atom:
        """One row of an array: where params were stacked or cast only for the loop, the param itself or its cast."""
        maker = self.origins.maker(atom)
        if maker is None:
            return self._slice(atom, row, place)
        name, operand, params = maker.primitive.name, cast(Atom, maker.invars[0]), maker.params
        if name == "stack" and params["axis"] == 0:
            return maker.invars[row]
        if name == "concatenate" and params["dimension"] == 0:
            piece = 0
            while row >= (count := cast(Atom, maker.invars[piece]).aval.shape[0]):
                row, piece = row - count, piece + 1
            return self._row(maker.invars[piece], row, place)
        if name in ("broadcast_in_dim", "reshape") and atom.aval.shape == (1, *operand.aval.shape):
            return operand  # of this shape nothing can be broadcast but along the new first axis
        if name == "convert_element_type":
            part = self._row(operand, row, place)
            result = core.Var(self._indexing(atom).outvars[0].aval)
            self._append(maker, [part], [result], place.stack, place.module(()))
            return result
        return self._slice(atom, row, place)

    def _slice(self, atom: Atom, row: int, place: _Place) -> Atom:
        first = self._indexing(atom)
        bounds = {"start_indices": row, "limit_indices": row + 1}
        eqns = [
            eqn.replace(
                params=eqn.params
                | {name: (bound, *eqn.params[name][1:]) for name, bound in bounds.items() if name in eqn.params}
            )
            for eqn in first.eqns
        ]
        return self.call(first.replace(eqns=eqns), [atom], place)[0]

    def _indexing(self, atom: Atom) -> core.Jaxpr:
        """How row 0 is taken of an array like this."""
        kind = (atom.aval.shape, atom.aval.dtype)
        if kind not in self._first_rows:
            shape = jax.ShapeDtypeStruct(*kind)
            self._first_rows[kind] = jax.make_jaxpr(lambda x: jax.lax.index_in_dim(x, 0, keepdims=False))(shape).jaxpr
        return self._first_rows[kind]

    def _stack(self, rows: Sequence[Atom], place: _Place) -> Atom:
        shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in rows]
        return self.call(jax.make_jaxpr(lambda *rows: jnp.stack(rows))(*shapes), rows, place)[0]


def _read_by(jaxpr: core.Jaxpr, variables: Sequence[core.Var]) -> list[bool]:
    """For each of the variables, whether the jaxpr reads it."""
    read = {atom for eqn in jaxpr.eqns for atom in eqn.invars if not isinstance(atom, core.Literal)}
    read.update(atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal))
    return [var in read for var in variables]
