"""Options by which requests are scheduled, as commands share them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from jaxserve.errors import ConfigError
from jaxserve.scheduling import DISPATCHES

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


def engine_options(command: _Command) -> _Command:
    """Adds the options of an engine that bear on scheduling; the command gets them by the engine's own names."""
    for option in (
        click.option(
            "--stuck-after-s", default=10.0, show_default=True, help="A stage that runs for longer may be stuck."
        ),
        click.option(
            "--spare-bytes", type=float, metavar="N", help="What the placement's spares may take of each device."
        ),
        click.option("--max-queue", default=10_000, show_default=True, help="How many requests may wait for a group."),
        click.option("--max-batch", type=int, metavar="N", help="The largest batch; by default what models have."),
        click.option("--overhead-s", default=0.0, help="Seconds that an answer costs beyond its stages."),
        click.option(
            "--dispatch",
            default="earliest-finish",
            show_default=True,
            help=f"How a group is chosen: {', '.join(DISPATCHES)}.",
        ),
    ):
        command = option(command)
    return policy_options(command)
