"""Functions of a trace become models: many functions stand for one model's users."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.workload import Floats, Ints

Deal = Literal["stripe", "round_robin"]


def deal_functions(function: Ints, *, models: int, deal: Deal) -> Ints:
    """The model of each entry of `function`, int32 [entries].

    Functions without an entry are left out; of the f others, in their order, the i-th goes to model i mod `models`
    (`stripe`) or to model `models` * i // f (`round_robin`), as AlpaServe's traces are made. The names are AlpaServe's.

    Raises:
        ConfigError: fewer functions than models, no models, or another `deal`.
    """
    if deal not in get_args(Deal):
        raise ConfigError(f"deal is {deal!r}, but must be one of {get_args(Deal)}")
    used = np.unique(function)
    if not 0 < models <= len(used):
        raise ConfigError(
            f"{len(used)} functions with arrivals are dealt to {models} models, but each model needs one; "
            f"give from 1 to {len(used)} models, or a longer range of time"
        )
    order = np.arange(len(used))
    model_of = order % models if deal == "stripe" else models * order // len(used)
    return model_of[np.searchsorted(used, function)].astype(np.int32)


def slo_of_each(slo_s: float | Sequence[float] | Floats, *, models: int) -> Floats:
    """SLO of each model, float64 [models], from one of all or from one of each.

    Raises:
        ConfigError: another number of SLOs.
    """
    given = np.asarray(slo_s, np.float64)
    if given.shape not in ((), (models,)):
        raise ConfigError(f"slo_s has shape {given.shape}, but there are {models} models; give one SLO, or one of each")
    return np.array(np.broadcast_to(given, (models,)))


def check_range(start_s: float, end_s: float) -> None:
    """Raises `ConfigError` unless 0 <= start < end."""
    if not 0 <= start_s < end_s:
        raise ConfigError(f"from {start_s} s to {end_s} s was asked for, but 0 <= start < end must hold")
