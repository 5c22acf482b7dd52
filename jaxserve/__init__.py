"""Serve many Flax models on few accelerators within latency deadlines.

The names below are the stable ones. Each is imported when it is first used, so a client needs neither jax nor flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxserve import errors
    from jaxserve.client import AsyncClient, Client
    from jaxserve.engine import Engine
    from jaxserve.model import Model, TensorSpec
    from jaxserve.placement import plan
    from jaxserve.plans import ParallelConfig, Placement, Profile
    from jaxserve.runtime import parallelize, profile
    from jaxserve.simulator import simulate
    from jaxserve.workload import Workload

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "jaxserve.client",
    "Client": "jaxserve.client",
    "Engine": "jaxserve.engine",
    "Model": "jaxserve.model",
    "ParallelConfig": "jaxserve.plans",
    "Placement": "jaxserve.plans",
    "Profile": "jaxserve.plans",
    "TensorSpec": "jaxserve.model",
    "Workload": "jaxserve.workload",
    "parallelize": "jaxserve.runtime",
    "plan": "jaxserve.placement",
    "profile": "jaxserve.runtime",
    "simulate": "jaxserve.simulator",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Engine",
    "Model",
    "ParallelConfig",
    "Placement",
    "Profile",
    "TensorSpec",
    "Workload",
    "__version__",
    "errors",
    "parallelize",
    "plan",
    "profile",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("jaxserve.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'jaxserve' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
