"""Whole workloads that are made up."""

from collections.abc import Sequence

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.arrivals import check_gamma, gamma, merge, shifting
from jaxserve.workload.checks import check_positive
from jaxserve.workload.popularity import split as split_rate
from jaxserve.workload.workload import Floats, Workload


def slo_from_latency(latency_s: Sequence[float] | Floats, *, scale: float) -> Floats:
    """SLO of each model, float64 [models]: `scale` times its latency, the SLO scale.

    Raises:
        ConfigError: a latency or scale that is not greater than 0.
    """
    for latency in latency_s:
        check_positive(latency_s=float(latency))
    check_positive(scale=scale)
    return scale * np.asarray(latency_s, np.float64)


def synthetic(
    *,
    model_names: Sequence[str],
    slo_s: float | Sequence[float] | Floats,
    rate: float,
    cv: float,
    duration_s: float,
    split: str = "uniform",
    shift_s: float | None = None,
    rng: np.random.Generator,
) -> Workload:
    """Gamma arrivals at many models.

    Args:
        model_names: the models, the most popular first.
        slo_s: seconds from arrival to deadline: of every model, or of each.
        rate: requests per second, all models together.
        cv: coefficient of variation of each model's gaps; 1 is a Poisson process.
        duration_s: arrivals are in [0, duration_s).
        split: how the rate is divided: `uniform` or `power-law:EXPONENT`.
        shift_s: seconds after which the models' rates are dealt anew, again and again; they stay where it is None.
        rng: source of every draw.

    Raises:
        ConfigError: an argument that makes no sense; the message names it.
    """
    check_positive(rate=rate, cv=cv, duration_s=duration_s)
    slos: list[float] = np.asarray(slo_s, np.float64).reshape(-1).tolist()
    if np.ndim(slo_s) == 0:
        slos *= len(model_names)
    if len(slos) != len(model_names):
        raise ConfigError(f"{len(slos)} SLOs were given for {len(model_names)} models; give one, or one of each")
    check_gamma(rate=rate, cv=cv, duration_s=duration_s, models=len(model_names))
    rates = split_rate(split, rate, models=len(model_names))
    if shift_s is not None:
        arrivals = shifting(rates=rates, cv=cv, period_s=shift_s, duration_s=duration_s, rng=rng)
    else:
        arrivals = [gamma(rate=float(each), cv=cv, duration_s=duration_s, rng=rng) for each in rates]
    return merge(arrivals, model_names=model_names, slo_s=slos)
