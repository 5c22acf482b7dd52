"""Recorded traffic as Gamma renewal processes, window by window (AlpaServe, OSDI'23, section 6.1).

**Which windows.** Short windows follow traffic whose popularity shifts; long ones know the rates better. Where the
length is not given, it is the one under which the trace is most probable, among the whole trace and a few lengths;
likewise whether a model has one CV throughout or one in each window. For windows w of models m, the score is

    sum log L(r_wm, k_wm)  +  sum log E_wm  -  1/2 sum log(1 + n)

L is the likelihood of a stationary renewal process in the window: r S(first) prod f(gap) S(last), with the density f
and the survival function S of the gaps (Cox, Renewal Theory, 1962). E is what is left of it when the rate is not the
best one but averaged over the prior that is fitted to all rates (`prior.RatePrior.log_evidence`). The last term is what
the Bayesian information criterion takes for each CV, n the requests that it is estimated from. Windows must beat the
whole trace by 5 nats. Where there would be more windows of models than requests, most would be empty: such lengths are
not tried.

**Since when.** A trace begins at 0, or with its first request where that is later than the trace is long from there on:
times may be those of a calendar.

The criterion itself, 1/2 log(all requests) for each rate as well, sees no shifts in bursty traffic: a CV of 4 leaves 60
requests the say of 4, but they are fined as part of 13,000. Measured on 12 draws each of 200 s, 32 models, 64 requests
per second, rates by a power law dealt anew every 60 s: with exponent 1 and CV 4 the criterion saw shifts in none, the
score above sees those of 60 s in all, likewise with exponent 0.5 and with a CV of 1 or 2; with a CV of 8 it sees them
in 8, takes them in 3 for shifts every 30 s, and sees none in 1. In steady traffic of CV 1, 4 or 8 it sees none.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.cells import Cells, cells_of
from jaxserve.workload.checks import check_positive, check_windows
from jaxserve.workload.fitted import FEWEST, Fitted
from jaxserve.workload.prior import effective, fit_prior
from jaxserve.workload.renewal import fit_cv
from jaxserve.workload.special import gamma_survival, log_gamma
from jaxserve.workload.workload import Floats, Workload

_CANDIDATES_S = (3600.0, 1800.0, 600.0, 300.0, 120.0, 60.0, 30.0)
_SHIFT = 0.5  # rates that differ by less, from window to window, are better taken as one
_STRONG = 5.0  # nats by which windows must be more probable than the whole trace: they are many, one of them is lucky


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    window_s: float
    rate: Floats
    cv: Floats
    score: float


def fit(
    workload: Workload,
    *,
    window_s: float | None = None,
    one_cv: bool | None = None,
    duration_s: float | None = None,
    most_cv: float = 20.0,
    floor_s: float = 1e-6,
) -> Fitted:
    """The rate and CV of each window of each model.

    A rate is the count / the window's length; without requests it is 0. CVs are of maximum likelihood
    (`renewal.fit_cv`); 1 or 2 requests tell none and are taken as Poisson, CV 1.

    Args:
        workload: at least one request.
        window_s: length of the windows; chosen as this module says where it is None.
        one_cv: whether a model has the same CV in all windows; chosen likewise where it is None.
        duration_s: how long the trace is, from 0 on; where it is None, it ends one mean gap of the whole trace behind
            the last request, and begins as this module says.
        most_cv: cap on the CVs.
        floor_s: gaps that are at most so long count as simultaneous (0.001 of the shortest mean gap where that is
            less): their exact length says nothing that serving could tell.

    Raises:
        ConfigError: no requests, a duration that does not hold them all, a number that is not greater than 0, or too
            many windows.
    """
    if not len(workload):
        raise ConfigError("the workload has no requests to fit; give one that has")
    first_s, last_s = float(workload.arrival_s[0]), float(workload.arrival_s[-1])
    start_s = first_s if duration_s is None and first_s > last_s - first_s else 0.0
    if duration_s is None:
        duration_s = (last_s - start_s) * (1 + 1 / len(workload)) or 1.0
    check_positive(duration_s=duration_s, most_cv=most_cv, floor_s=floor_s)
    if duration_s <= last_s - start_s:
        raise ConfigError(f"duration_s is {duration_s}, but a request arrives at {last_s} s; give a longer one")
    models = len(workload.model_names)
    if window_s is not None:
        check_positive(window_s=window_s)
        check_windows(window_s, duration_s, models=models)
    shortest_s = duration_s * models / len(workload)
    candidates_s = [duration_s, *(each for each in _CANDIDATES_S if shortest_s <= each < duration_s)]
    lengths = candidates_s if window_s is None else [window_s]
    floor_s = min(floor_s, duration_s / int(np.bincount(workload.model).max()) / 1000)
    best = max(
        (
            each
            for length_s in lengths
            for each in _candidates(
                cells_of(workload, window_s=length_s, duration_s=duration_s, floor_s=floor_s, start_s=start_s),
                window_s=length_s,
                one_cv=(False, True) if one_cv is None else (one_cv,),
                most_cv=most_cv,
            )
        ),
        key=lambda each: each.score,
    )
    return Fitted(
        model_names=workload.model_names,
        window_s=best.window_s,
        duration_s=duration_s,
        rate=best.rate,
        cv=best.cv,
        start_s=start_s,
        **_terms(workload),
    )


def _candidates(cells: Cells, *, window_s: float, one_cv: Iterable[bool], most_cv: float) -> Iterable[_Candidate]:
    rate = cells.count / cells.length_s
    for one in one_cv:
        cv = _cvs(cells, one_cv=one, most_cv=most_cv)
        events, exposure_s = effective(cells.count, cv, cells.length_s)
        evidence = fit_prior(events, exposure_s, least_spread=_SHIFT).log_evidence(events, exposure_s)
        fitted_from = cells.count.sum(axis=0) if one else cells.count
        doubt = _STRONG if len(rate) > 1 else 0.0
        score = _log_likelihood(cells, rate, cv) + evidence.sum() - 0.5 * np.log1p(fitted_from).sum() - doubt
        yield _Candidate(window_s=window_s, rate=rate, cv=cv, score=float(score))


def _cvs(cells: Cells, *, one_cv: bool, most_cv: float) -> Floats:
    """CV of each cell, [windows, models], from its own gaps or from those of all windows of its model."""
    shape = cells.count.shape if one_cv else (1, cells.count.size)
    count, censored, log_gap = (each.reshape(shape) for each in (cells.count, cells.censored, cells.log_gap))
    total = count.sum(axis=0)
    told = (total >= FEWEST) & (count.max(axis=0) > 1)
    mean_gap_s = cells.length_s.reshape(shape) / np.maximum(count, 1)
    spread = (count * np.log(mean_gap_s) - log_gap).sum(axis=0)
    cv = np.ones(shape[1])
    cv[told] = fit_cv(
        count=count[:, told],
        spread=spread[told] / total[told],
        censored=censored.sum(axis=0)[told] / total[told],
        most=most_cv,
    )
    return np.broadcast_to(cv, shape).reshape(cells.count.shape)


def _log_likelihood(cells: Cells, rate: Floats, cv: Floats) -> float:
    """Log of r S(first) prod f(gap) S(last), summed over cells; a gap below the floor counts as P(floor) / floor."""
    has = cells.count > 0
    shape, rate, first_s, last_s = cv[has] ** -2, rate[has], cells.first_s[has], cells.last_s[has]
    count, censored, length_s = cells.count[has], cells.censored[has], cells.length_s[has]
    scale = 1 / (rate * shape)
    across_s = first_s + last_s  # the one gap of the ring that is not one of the window
    log_gap = cells.log_gap[has] - np.log(np.maximum(across_s, cells.floor_s))
    below = censored - (across_s <= cells.floor_s)
    inside = (
        (shape - 1) * log_gap
        - (length_s - across_s) / scale
        - (count - 1) * (shape * np.log(scale) + log_gamma(shape))
        - below * np.log(shape)
    )
    ends = np.log(np.maximum(gamma_survival(shape, np.stack((first_s, last_s)) / scale), 1e-300)).sum(axis=0)
    return float((inside + ends + np.log(rate)).sum())


def _terms(workload: Workload) -> dict[str, Any]:
    """SLO, priority and tenant of each model's requests, or of one where all are alike, as `Fitted` has them.

    A model without requests has those of all.
    """
    order = np.argsort(workload.model, kind="stable")
    starts = np.searchsorted(workload.model[order], np.arange(1, len(workload.model_names)))
    terms = {"slo_s": workload.slo_s, "priority": workload.priority, "tenant": workload.tenant}
    used = {name: values for name, values in terms.items() if name == "slo_s" or values.any()}
    pooled = [[part if part.size else values for part in np.split(values[order], starts)] for values in used.values()]
    alike = [all((part == part[0]).all() for part in parts) for parts in zip(*pooled, strict=True)]
    kept = [tuple(part[:1] if one else part for part, one in zip(parts, alike, strict=True)) for parts in pooled]
    return {**dict(zip(used, kept, strict=True)), "tenant_names": workload.tenant_names}
