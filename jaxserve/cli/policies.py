"""Options by which requests are scheduled, as commands share them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from jaxserve.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def parse_shares(text: str) -> dict[str, float]:
    """The weights of tenants: `equal`, or `a=3,b=1`.

    Raises:
        ConfigError: it is neither.
    """
    shares: dict[str, float] = {}
    for part in [] if text == "equal" else text.split(","):
        tenant, equals, weight = part.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            equals = ""
            value = 0.0
        if not equals or tenant in shares:
            raise ConfigError(
                f"--shares is {text!r}, but must be `equal`, or a weight for each tenant, each once, as in `a=3,b=1`; "
                f"those who are not named have 1"
            )
        shares[tenant] = value
    return shares


def policy_options(command: _Command) -> _Command:
    """Adds the options of priorities and tenants, `max_overtakings` and `shares`."""
    for option in (
        click.option(
            "--shares", metavar="SHARES", help="Share among tenants: `equal`, or by weights, as in `a=3,b=1`."
        ),
        click.option(
            "--max-overtakings",
            default=0,
            metavar="N",
            help="How often a request may be overtaken by ones of higher priority; 0: priorities do not count.",
        ),
    ):
        command = option(command)
    return command
