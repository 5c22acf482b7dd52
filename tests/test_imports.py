"""Imports only look back: no edge to a later room, no cycle between modules, other packages only where they belong.

The sources are read, not run, so an import counts wherever it stands: at the top, inside a function, under
`TYPE_CHECKING` or as a literal handed to `importlib.import_module`.
"""

import ast
import dataclasses
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxserve"

# The order in which imports may run: a room imports itself and the rooms above it. `metrics` comes before `engine`
# because the engine counts; `__init__` and `__main__` come last because they import all the others.
ROOMS = (
    "errors",
    "request",
    "plans",
    "config",
    "model",
    "scheduling",
    "workload",
    "simulator",
    "placement",
    "parallel",
    "runtime",
    "models",
    "cluster",
    "metrics",
    "engine",
    "protocols",
    "server",
    "client",
    "cli",
    "__init__",
    "__main__",
)

# Third-party packages that only these rooms may import. What is missing here is free for all.
ONLY_IN = {
    "flax": {"model", "models"},
    "jaxserve_kernels": {"models"},
    "orbax": {"model", "runtime"},
    "safetensors": {"model", "models", "runtime"},
    "tokenizers": {"models"},
    "click": {"cli", "__main__"},
    "matplotlib": {"cli"},
    "rich": {"cli"},
    "uvloop": {"protocols", "server", "client", "cli"},
    "msgpack": {"protocols"},
    "numba": {"simulator"},
    "aiohttp": {"server"},
    "grpc": {"server"},
    "prometheus_client": {"server"},
    "opentelemetry": {"server"},
    "google": {"protocols", "server"},
    "pythonjsonlogger": {"cli"},
    "llvmlite": {"simulator"},
    "jax": {"model", "parallel", "runtime", "models", "cluster", "engine", "cli"},
}

# Rooms that decide: they take the time as an argument, never await, never open anything.
PURE = {"errors", "request", "scheduling", "workload", "simulator", "placement"}
IMPURE_MODULES = {"asyncio", "socket", "subprocess", "threading", "concurrent", "random", "jax"}
THREADED = {"jaxserve.placement.search"}  # one chain of the search on each core; they share nothing

# A plain `pip install jaxserve` does not need these: a function may import them (`MissingExtra` where one is absent).
OPTIONAL = {"safetensors", "tokenizers", "orbax", "matplotlib", "opentelemetry"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement: `module` imports `target` at `line`, inside a function or not."""

    module: str
    target: str
    line: int
    deferred: bool

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: imports {self.target}"


def module_names() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(module: str, source: str, *, is_package: bool, known: set[str]) -> Iterator[Import]:
    """The imports of one module, each resolved to the module that it reaches."""

    def resolve(node: ast.AST) -> list[str]:
        match node:
            case ast.Import(names=names):
                return [alias.name for alias in names]
            case ast.ImportFrom(module=name, names=names, level=level):
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - level + 1], *filter(None, [name])]) if level else str(name)
                reached = [f"{base}.{alias.name}" for alias in names]
                return [target if target in known else base for target in reached]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                return [name if not name.startswith(".") else module.split(".")[0] + name]
            case _:
                return []

    def visit(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
        for target in dict.fromkeys(resolve(node)):
            yield Import(module=module, target=target, line=getattr(node, "lineno", 0), deferred=deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred=inside)

    yield from visit(ast.parse(source), deferred=False)


def all_imports() -> list[Import]:
    known = set(MODULES)
    return [
        found
        for name, path in MODULES.items()
        for found in imports_of(name, path.read_text("utf-8"), is_package=path.name == "__init__.py", known=known)
    ]


IMPORTS = all_imports()
INSIDE = [found for found in IMPORTS if found.target.split(".")[0] == "jaxserve"]
OUTSIDE = [found for found in IMPORTS if found.target.split(".")[0] != "jaxserve"]


def back_edges(imports: list[Import]) -> list[str]:
    """Imports of a later room."""
    return [
        f"{found}: {room_of(found.target)!r} comes after {room_of(found.module)!r}"
        for found in imports
        if ROOMS.index(room_of(found.target)) > ROOMS.index(room_of(found.module))
    ]


def cycle(imports: list[Import]) -> list[str]:
    """One cycle between modules, or nothing."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        graph.setdefault(found.module, set()).add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_is_in_a_room():
    strangers = {room_of(name) for name in MODULES} - set(ROOMS)
    assert not strangers, f"rooms without a place in the order of imports: {sorted(strangers)}"


def test_contributing_lists_the_rooms_in_this_order():
    rows = re.findall(r"^\| (`.*`) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert tuple(name for row in rows for name in re.findall(r"`(\w+)`", row)) == ROOMS


def test_no_back_edge():
    assert not back_edges(INSIDE)


def test_no_cycle():
    assert not cycle(INSIDE)


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_package_is_imported_only_in_its_rooms(package):
    wrong = [
        str(found)
        for found in OUTSIDE
        if found.target.split(".")[0] == package and room_of(found.module) not in ONLY_IN[package]
    ]
    assert not wrong


def test_pure_rooms_do_no_io():
    wrong = [
        str(found)
        for found in OUTSIDE
        if room_of(found.module) in PURE and found.target.split(".")[0] in IMPURE_MODULES
        if not (found.module in THREADED and found.target.split(".")[0] == "concurrent")
    ]
    assert not wrong


def test_the_scheduler_reads_no_clock():
    wrong = [str(found) for found in OUTSIDE if room_of(found.module) == "scheduling" and found.target == "time"]
    assert not wrong


def test_imports_inside_functions_are_of_optional_packages():
    wrong = [
        str(found)
        for found in IMPORTS
        # The package itself loads its public names when they are first used, so that a client does not load jax.
        if found.deferred and found.module != "jaxserve" and found.target.split(".")[0] not in OPTIONAL
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("import jaxserve.plans", ["jaxserve.plans"]),
        ("from jaxserve import plans", ["jaxserve.plans"]),
        ("from jaxserve.plans import Profile", ["jaxserve.plans"]),
        ("from . import fifo", ["jaxserve.scheduling.fifo"]),
        ("from .fifo import Fifo", ["jaxserve.scheduling.fifo"]),
        ("from ..plans import Profile", ["jaxserve.plans"]),
        ("def f():\n    import jaxserve.engine", ["jaxserve.engine"]),
        ("if TYPE_CHECKING:\n    from jaxserve.engine import Engine", ["jaxserve.engine"]),
        ("import importlib\nx = importlib.import_module('jaxserve.engine')", ["importlib", "jaxserve.engine"]),
    ],
)
def test_imports_are_found_wherever_they_stand(source, targets):
    known = {"jaxserve.plans", "jaxserve.engine", "jaxserve.scheduling.fifo"}
    found = imports_of("jaxserve.scheduling.core", source, is_package=False, known=known)
    assert [each.target for each in found] == targets


def test_a_back_edge_and_a_cycle_are_seen():
    def edge(module: str, target: str) -> Import:
        return Import(module=module, target=target, line=1, deferred=False)

    assert back_edges([edge("jaxserve.plans", "jaxserve.engine")]) == [
        "jaxserve.plans, line 1: imports jaxserve.engine: 'engine' comes after 'plans'"
    ]
    assert not back_edges([edge("jaxserve.engine", "jaxserve.plans")])
    assert set(cycle([edge("jaxserve.a", "jaxserve.b"), edge("jaxserve.b", "jaxserve.a")])) == {
        "jaxserve.a",
        "jaxserve.b",
    }
