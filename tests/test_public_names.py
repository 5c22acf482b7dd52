"""The names that other programs call: present, documented, and free of jax where a client imports them."""

import inspect
import subprocess
import sys

import pytest

import jaxserve

# Released names. Adding one is a feature; taking one away breaks other people's programs.
PUBLIC = (
    "AsyncClient",
    "Client",
    "Engine",
    "Model",
    "ParallelConfig",
    "Placement",
    "Profile",
    "TensorSpec",
    "Workload",
    "errors",
    "parallelize",
    "plan",
    "profile",
    "simulate",
)


def own_members(owner: type) -> list[tuple[str, object]]:
    """The public methods and properties that a class of this project defines itself or inherits from one of ours."""
    found = {}
    for base in reversed(owner.__mro__):
        if base.__module__.split(".")[0] == "jaxserve":
            found.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    return [
        (name, value)
        for name, value in sorted(found.items())
        if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there_and_documented(name):
    value = getattr(jaxserve, name)
    assert name in jaxserve.__all__
    assert name in dir(jaxserve)
    assert inspect.getdoc(value), f"jaxserve.{name} has no docstring"
    if inspect.isclass(value):
        bare = [member for member, held in own_members(value) if not inspect.getdoc(held)]
        assert not bare, f"jaxserve.{name} has members without a docstring: {bare}"


def test_nothing_else_is_public():
    assert sorted(name for name in jaxserve.__all__ if name != "__version__") == sorted(PUBLIC)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jaxserve.no_such_name  # pyright: ignore[reportAttributeAccessIssue]


def test_every_error_is_documented_and_in_one_tree():
    kinds = [kind for _, kind in inspect.getmembers(jaxserve.errors, inspect.isclass) if issubclass(kind, Exception)]
    assert kinds
    for kind in kinds:
        assert issubclass(kind, jaxserve.errors.JaxserveError)
        assert inspect.getdoc(kind)


@pytest.mark.parametrize(
    "statement",
    [
        "import jaxserve",
        "import jaxserve.client",
        "from jaxserve import AsyncClient, Client, ParallelConfig, Placement, Profile, Workload, errors",
        "from jaxserve import plan, simulate",
    ],
)
def test_a_client_does_not_import_jax(statement):
    heavy = "sorted({'jax', 'jaxlib', 'flax'} & set(sys.modules))"
    program = f"import sys; {statement}; loaded = {heavy}; sys.exit(f'imported {{loaded}}' if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
