"""What arguments must be, said in one way."""

import math
import reprlib

from jaxserve.errors import ConfigError
from jaxserve.plans import is_text
from jaxserve.request import LONGEST_TENANT

MOST_REQUESTS = 50_000_000  # some 60 bytes each while they are drawn; a day of 2019 has more calls than that
MOST_WINDOWS = 20_000_000  # of all models together
MOST_CV = 1000.0

_MEND = {
    "rate": "; for a model without traffic give no arrivals",
    "cv": "; for regular arrivals use `deterministic`",
}


def check_positive(**values: float) -> None:
    """Raises `ConfigError` for the first of the named values that is not finite and greater than 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}, but must be finite and greater than 0{_MEND.get(name, '')}")


def check_tenant_name(tenant: str) -> None:
    """Raises `ConfigError` for the name of a tenant that is too long, or that no file can hold."""
    if len(tenant) > LONGEST_TENANT or not is_text(tenant):
        raise ConfigError(
            f"tenant is {reprlib.repr(tenant)}, of {len(tenant)} characters, but must be text of at most "
            f"{LONGEST_TENANT}, without NUL and lone surrogates"
        )


def check_requests(expected: float, mend: str) -> None:
    """Raises `ConfigError`, with what to do, where more requests are expected than can be kept."""
    if not expected <= MOST_REQUESTS:
        raise ConfigError(f"about {expected:.3g} requests would be drawn, but {MOST_REQUESTS:g} are the most; {mend}")


def check_windows(window_s: float, duration_s: float, *, models: int = 1) -> None:
    """Raises `ConfigError` where there are more windows of `window_s` than can be kept."""
    if duration_s / window_s * models > MOST_WINDOWS:
        of_models = f" for {models} models" if models > 1 else ""
        raise ConfigError(
            f"{duration_s:.4g} s in windows of {window_s:g} s{of_models} are too many windows to keep; "
            f"make them at least {1.05 * duration_s * models / MOST_WINDOWS:.2g} s long"
        )
