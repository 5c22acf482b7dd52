"""How one rate of requests is divided among models."""

import numpy as np

from jaxserve.errors import ConfigError
from jaxserve.workload.checks import check_positive
from jaxserve.workload.workload import Floats


def split_uniform(rate: float, *, models: int) -> Floats:
    """Requests per second of each model, float64 [models]: equal parts of `rate`.

    Raises:
        ConfigError: no models, or a rate that is not greater than 0.
    """
    return split_power_law(rate, models=models, exponent=0.0)


def split_power_law(rate: float, *, models: int, exponent: float) -> Floats:
    """Requests per second of each model, float64 [models]: parts of `rate` proportional to (i + 1)^-exponent.

    AlpaServe divides synthetic traffic so, with an exponent of 0.5 (OSDI'23, section 6).

    Raises:
        ConfigError: no models, a rate that is not greater than 0, or an exponent that is negative or not finite.
    """
    check_positive(rate=rate)
    if models < 1:
        raise ConfigError(f"models is {models}, but a rate is divided among at least 1")
    if not 0 <= exponent < np.inf:
        raise ConfigError(f"exponent is {exponent}, but must be finite and not negative")
    weights = np.arange(1, models + 1, dtype=np.float64) ** -exponent
    return rate * weights / weights.sum()


def split(how: str, rate: float, *, models: int) -> Floats:
    """Requests per second of each model, float64 [models], for `how`: `uniform` or `power-law:EXPONENT`.

    Raises:
        ConfigError: another `how`, or what the split itself refuses.
    """
    kind, _, exponent = how.partition(":")
    try:
        if how == "uniform":
            return split_uniform(rate, models=models)
        if kind == "power-law":
            return split_power_law(rate, models=models, exponent=float(exponent))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
    raise ConfigError(f"split is {how!r}, but must be 'uniform' or 'power-law:EXPONENT', such as 'power-law:0.5'")
