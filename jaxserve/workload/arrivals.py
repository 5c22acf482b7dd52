"""Arrival processes. Every random draw comes from the generator that is passed in."""

from collections.abc import Sequence

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.checks import check_positive, check_requests, check_windows
from jaxserve.workload.workload import Floats, Workload

_FEWER = "lower the rate or the duration"


def deterministic(*, rate: float, duration_s: float, first_s: float = 0.0) -> Floats:
    """Arrival times, float64 [n], 1 / `rate` seconds apart from `first_s` on, in [first_s, duration_s): a CV of 0.

    Raises:
        ConfigError: a rate or duration that is not greater than 0, too many requests, or a negative `first_s`.
    """
    check_positive(rate=rate, duration_s=duration_s)
    check_requests(rate * duration_s, _FEWER)
    if not 0 <= first_s < np.inf:
        raise ConfigError(f"first_s is {first_s}, but must be finite and not negative")
    arrivals = first_s + np.arange(max(0, int(np.ceil((duration_s - first_s) * rate)))) / rate
    return arrivals[arrivals < duration_s]


def poisson(*, rate: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times, float64 [n], of a Poisson process of `rate` requests per second in [0, duration_s).

    Raises:
        ConfigError: a rate or duration that is not greater than 0, or too many requests.
    """
    check_positive(rate=rate, duration_s=duration_s)
    check_requests(rate * duration_s, _FEWER)
    return np.sort(rng.random(rng.poisson(rate * duration_s)) * duration_s)


def gamma(*, rate: float, cv: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times, float64 [n], of a Gamma renewal process in [0, duration_s).

    Gaps are Gamma distributed with mean 1 / `rate` seconds and coefficient of variation `cv`: shape 1 / cv^2, scale
    cv^2 / rate (AlpaServe, OSDI'23, section 6.1). A CV of 1 is a Poisson process, larger ones are burstier. The
    process begins with a gap from 0, as if a request had come just before; it therefore brings (cv^2 - 1) / 2 requests
    more than rate * duration_s on average, early on (Cox, Renewal Theory, 1962).

    Raises:
        ConfigError: a rate, CV or duration that is not greater than 0, or too many requests.
    """
    check_positive(rate=rate, cv=cv, duration_s=duration_s)
    check_gamma(rate=rate, cv=cv, duration_s=duration_s)
    expected = rate * duration_s
    chunk = int(expected + 4 * cv * np.sqrt(expected) + 16)
    arrivals: list[Floats] = []
    last_s = 0.0
    while last_s < duration_s:
        part = last_s + np.cumsum(rng.gamma(1 / cv**2, cv**2 / rate, size=chunk))
        arrivals.append(part)
        last_s = float(part[-1])
    merged = np.concatenate(arrivals)
    return merged[merged < duration_s]


def check_gamma(*, rate: float, cv: float, duration_s: float, models: int = 1) -> None:
    """Raises `ConfigError` where `gamma` would bring too many requests to models of this rate together."""
    first_ones = max(0.0, cv * cv - 1) / 2
    check_requests(rate * duration_s + models * first_ones, "lower the rate, the duration or the CV")


def shifting(
    *, rates: Sequence[float] | Floats, cv: float, period_s: float, duration_s: float, rng: np.random.Generator
) -> list[Floats]:
    """Arrival times of models whose popularity changes: `rates` is dealt to them anew every `period_s`.

    The first period has the rates as they are given, each later one a random permutation of them. A model's arrivals
    are one Gamma renewal process on a clock that runs as fast as its rate: a gap that spans a shift passes at the old
    rate before it and at the new one behind it.

    Args:
        rates: requests per second of each model, [models].
        cv: coefficient of variation of the gaps.
        period_s: seconds between shifts.
        duration_s: arrivals are in [0, duration_s).
        rng: source of the permutations and the gaps.

    Raises:
        ConfigError: a rate, CV, period or duration that is not greater than 0, too many requests or periods.
    """
    for rate in rates:
        check_positive(rate=float(rate))
    check_positive(cv=cv, period_s=period_s, duration_s=duration_s)
    check_windows(period_s, duration_s, models=len(rates))
    base = np.asarray(rates, np.float64)
    edges_s = np.append(np.arange(0.0, duration_s, period_s), duration_s)
    dealt = np.stack([base, *(rng.permutation(base) for _ in edges_s[2:])])
    passed = np.cumsum(dealt * np.diff(edges_s)[:, None], axis=0)
    arrivals: list[Floats] = []
    for model in range(len(base)):
        clock = np.concatenate(([0.0], passed[:, model]))
        on_clock = gamma(rate=1.0, cv=cv, duration_s=float(clock[-1]), rng=rng)
        at_s = np.interp(on_clock, clock, edges_s)
        arrivals.append(at_s[at_s < duration_s])
    return arrivals


def merge(arrivals: Sequence[Floats], *, model_names: Sequence[str], slo_s: Sequence[float]) -> Workload:
    """One workload of many models' arrivals: `arrivals[i]` and `slo_s[i]` belong to `model_names[i]`.

    Raises:
        ConfigError: not as many names or SLOs as arrays of arrivals.
    """
    if not len(arrivals) == len(model_names) == len(slo_s):
        raise ConfigError(
            f"{len(arrivals)} arrays of arrivals, {len(model_names)} model names and {len(slo_s)} SLOs were given, "
            f"but each model needs one of each"
        )
    times = np.concatenate(arrivals) if arrivals else np.zeros(0)
    models = np.repeat(np.arange(len(arrivals)), [len(each) for each in arrivals])
    order = np.argsort(times, kind="stable")
    return Workload(
        arrival_s=times[order],
        model=models[order].astype(np.int32),
        model_names=tuple(model_names),
        slo_s=np.asarray(slo_s, np.float64)[models[order]],
    )
