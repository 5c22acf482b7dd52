"""Arrival processes. Every random draw comes from the generator that is passed in."""

from collections.abc import Sequence

import numpy as np

from jaxserve.workload.workload import Floats, Workload


def gamma(*, rate: float, cv: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times, float64 [n], of a Gamma renewal process in [0, duration_s).

    Gaps are Gamma distributed with mean 1 / `rate` seconds and coefficient of variation `cv`: shape 1 / cv^2, scale
    cv^2 / rate (AlpaServe, OSDI'23, section 6.1). A CV of 1 is a Poisson process, larger ones are burstier.

    Raises:
        ValueError: a rate, CV or duration that is not greater than 0.
    """
    for name, value in (("rate", rate), ("cv", cv), ("duration_s", duration_s)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}, but must be finite and greater than 0")
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


def merge(arrivals: Sequence[Floats], *, model_names: Sequence[str], slo_s: Sequence[float]) -> Workload:
    """One workload of many models' arrivals: `arrivals[i]` and `slo_s[i]` belong to `model_names[i]`."""
    times = np.concatenate(arrivals) if arrivals else np.zeros(0)
    models = np.repeat(np.arange(len(arrivals)), [len(each) for each in arrivals])
    order = np.argsort(times, kind="stable")
    return Workload(
        arrival_s=times[order],
        model=models[order].astype(np.int32),
        model_names=tuple(model_names),
        slo_s=np.asarray(slo_s, np.float64)[models[order]],
    )
