"""Workloads made of other workloads. None of these changes its argument."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jaxserve.errors import ConfigError
from jaxserve.request import HIGHEST_PRIORITY, LOWEST_PRIORITY
from jaxserve.workload.checks import check_positive, check_tenant_name, check_windows
from jaxserve.workload.fit import fit
from jaxserve.workload.workload import Ints, Workload


def combine(workloads: Sequence[Workload]) -> Workload:
    """The requests of all `workloads`, in order of arrival; models of one name are one model, and tenants one tenant.

    Requests that arrive at one instant stay in the order of their workloads.
    """
    model_names = tuple(dict.fromkeys(name for each in workloads for name in each.model_names))
    tenant_names = tuple(dict.fromkeys(name for each in workloads for name in each.tenant_names))
    if not workloads:
        return Workload(arrival_s=np.zeros(0), model=np.zeros(0, np.int32), model_names=(), slo_s=np.zeros(0))
    arrival_s = np.concatenate([each.arrival_s for each in workloads])
    order = np.argsort(arrival_s, kind="stable")
    return Workload(
        arrival_s=arrival_s[order],
        model=np.concatenate([_places(each.model_names, model_names)[each.model] for each in workloads])[order],
        model_names=model_names,
        slo_s=np.concatenate([each.slo_s for each in workloads])[order],
        priority=_together([each.priority for each in workloads], order),
        tenant=_together([_places(each.tenant_names, tenant_names)[each.tenant] for each in workloads], order),
        tenant_names=tenant_names,
    )


def between(workload: Workload, start_s: float, end_s: float = np.inf, *, from_zero: bool = True) -> Workload:
    """The requests that arrive in [start_s, end_s), with `start_s` as the new 0 unless `from_zero` is false.

    Raises:
        ConfigError: a start that is negative or not before the end.
    """
    if not 0 <= start_s < end_s:
        raise ConfigError(f"from {start_s} s to {end_s} s was asked for, but 0 <= start < end must hold")
    first, last = np.searchsorted(workload.arrival_s, (start_s, end_s))
    return workload.take(slice(int(first), int(last)), start_s=start_s if from_zero else 0.0)


def windows(workload: Workload, window_s: float) -> tuple[Workload, ...]:
    """The workload in pieces of `window_s` seconds, each from 0 on, up to the one of the last arrival.

    Raises:
        ConfigError: a window that is not greater than 0, or too many of them.
    """
    check_positive(window_s=window_s)
    if not len(workload):
        return ()
    last_s = float(workload.arrival_s[-1])
    check_windows(window_s, last_s)
    begins_s = np.arange(int(last_s // window_s) + 3) * window_s  # the quotient is rounded, and may be one too few
    count = int(np.searchsorted(begins_s, last_s, side="right"))
    return tuple(between(workload, index * window_s, (index + 1) * window_s) for index in range(count))


def scale_rate(workload: Workload, factor: float) -> Workload:
    """The same requests, `factor` times as fast: time is compressed, the order and the CVs stay.

    Raises:
        ConfigError: a factor that is not greater than 0.
    """
    check_positive(factor=factor)
    return dataclasses.replace(workload, arrival_s=workload.arrival_s / factor)


def scale_cv(workload: Workload, factor: float, *, window_s: float | None = None, rng: np.random.Generator) -> Workload:
    """New requests like these with `factor` times their CV: the traffic is fitted and drawn again (see `fit`).

    Raises:
        ConfigError: a factor or window that is not greater than 0, or no requests.
    """
    return fit(workload, window_s=window_s).sample(rng, cv_scale=factor)


def scale_slo(workload: Workload, factor: float) -> Workload:
    """The same requests with `factor` times their SLOs.

    Raises:
        ConfigError: a factor that is not greater than 0.
    """
    check_positive(factor=factor)
    return dataclasses.replace(workload, slo_s=workload.slo_s * factor)


def with_slo(workload: Workload, slo_s: Mapping[str, float]) -> Workload:
    """The same requests with the SLO of their model in `slo_s`.

    Raises:
        ConfigError: a model that has none.
    """
    missing = [name for name in workload.model_names if name not in slo_s]
    if missing:
        raise ConfigError(f"model {missing[0]!r} has no SLO among {sorted(slo_s)}; give each model one")
    each = np.array([slo_s[name] for name in workload.model_names], np.float64)
    return dataclasses.replace(workload, slo_s=each[workload.model])


def with_priority(workload: Workload, priority: int) -> Workload:
    """The same requests, all of one priority.

    Raises:
        ConfigError: it is no whole number from -10 to 10.
    """
    if priority not in range(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1):
        raise ConfigError(
            f"priority is {priority}, but must be a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"
        )
    return dataclasses.replace(workload, priority=np.array(priority, np.int32))


def with_tenant(workload: Workload, tenant: str) -> Workload:
    """The same requests, all of one tenant; of none where that is empty.

    Raises:
        ConfigError: a name that is too long, or that no file can hold.
    """
    check_tenant_name(tenant)
    return dataclasses.replace(workload, tenant=np.zeros((), np.int32), tenant_names=(tenant,))


def rename(workload: Workload, names: Mapping[str, str]) -> Workload:
    """The same requests at models of other names; models that `names` leaves out keep theirs.

    Raises:
        ConfigError: a name that no model has, or two models of one name afterwards.
    """
    _check_known(workload, tuple(names))
    renamed = tuple(names.get(name, name) for name in workload.model_names)
    if len(set(renamed)) != len(renamed):
        raise ConfigError(f"the models would be named {renamed}, but every name must be its own")
    return dataclasses.replace(workload, model_names=renamed)


def only(workload: Workload, model_names: Sequence[str]) -> Workload:
    """The requests of some models, in the order that `model_names` gives them.

    Raises:
        ConfigError: a name that no model has.
    """
    _check_known(workload, model_names)
    indices = [workload.model_names.index(name) for name in model_names]
    return aligned(workload.take(np.isin(workload.model, indices)), model_names)


def aligned(workload: Workload, model_names: Sequence[str]) -> Workload:
    """The same requests with the models in the order of `model_names`, which may hold further ones.

    Raises:
        ConfigError: a model has requests but is not among `model_names`.
    """
    model = _places(workload.model_names, model_names)[workload.model]
    if (model < 0).any():
        name = workload.model_names[int(workload.model[np.argmax(model < 0)])]
        raise ConfigError(
            f"model {name!r} has requests, but is not among {tuple(model_names)}; add it, or leave it out"
        )
    return dataclasses.replace(workload, model=model, model_names=tuple(model_names))


def _together(parts: Sequence[Ints], order: npt.NDArray[np.intp]) -> Ints:
    """The values of all parts in a new order; one that stands for all where they are 0."""
    return np.concatenate(parts)[order] if any(part.any() for part in parts) else np.zeros((), np.int32)


def _places(names: Sequence[str], among: Sequence[str]) -> Ints:
    """The index of each name, int32 [names]; -1 where it is not there."""
    index_of = {name: index for index, name in enumerate(among)}
    return np.array([index_of.get(name, -1) for name in names], np.int32)


def _check_known(workload: Workload, names: Sequence[str]) -> None:
    for name in names:
        if name not in workload.model_names:
            raise ConfigError(f"there is no model {name!r}; choose from {workload.model_names}")
