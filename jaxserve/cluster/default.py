"""Which models go on which groups where nobody says so, and whether what somebody says can be meant."""

import os
from collections.abc import Sequence
from typing import Any

from jaxserve.errors import ModelError, PlacementError
from jaxserve.model import Model
from jaxserve.plans import Group, Placement


def default_placement(models: Sequence[Model], devices: Sequence[Any]) -> Placement:
    """One group for each device, each with every model; or, where they do not all fit, each model where most is free.

    Raises:
        PlacementError: a model is larger than the memory that any device has left.
    """
    on_device = [model for model in models if not model.on_host]
    if not devices:
        raise PlacementError("there are no devices; give at least one")
    free = [_memory_bytes(device, of=len(devices)) for device in devices]
    held: list[list[str]] = [[] for _ in devices]
    if sum(model.weight_bytes for model in on_device) <= min(free):
        held = [[model.name for model in on_device] for _ in devices]
    else:
        for model in sorted(on_device, key=lambda model: model.weight_bytes, reverse=True):
            roomiest = max(range(len(devices)), key=lambda index: free[index])
            if model.weight_bytes > free[roomiest]:
                raise PlacementError(
                    f"model {model.name!r} has {model.weight_bytes:.4g} bytes of weights, but no device has more than "
                    f"{free[roomiest]:.4g} left; give a placement that cuts it into stages, or fewer models"
                )
            free[roomiest] -= model.weight_bytes
            held[roomiest].append(model.name)
    return Placement(groups=tuple(Group(devices=(index,), models=tuple(names)) for index, names in enumerate(held)))


def _memory_bytes(device: Any, *, of: int) -> float:
    """What a device may hold of weights: nine tenths of its memory; on CPU its part of half of the host's."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * stats["bytes_limit"]
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / of


def check_names(models: Sequence[Model], placement: Placement | None) -> None:
    """Refuses models that share a name, and a placement that has others or leaves one out."""
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"two models are named {name!r}; every name must be its own")
    if placement is None:
        return
    placed = {name for group in placement.groups for name in (*group.models, *group.spares)}
    for name in placed.difference(names):
        raise PlacementError(f"the placement has a model {name!r}, but the models are {', '.join(names) or 'none'}")
    for model in models:
        if model.name not in placed and not model.on_host:
            raise PlacementError(
                f"model {model.name!r} is on no group of the placement; add it to one, or leave it out"
            )
