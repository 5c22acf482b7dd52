"""What arguments must be, said in one way."""

import math

from jaxserve.errors import ConfigError

_MEND = {
    "rate": "; for a model without traffic give no arrivals",
    "cv": "; for regular arrivals use `deterministic`",
}


def check_positive(**values: float) -> None:
    """Raises `ConfigError` for the first of the named values that is not finite and greater than 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}, but must be finite and greater than 0{_MEND.get(name, '')}")
