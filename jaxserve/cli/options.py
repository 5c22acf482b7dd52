"""Flags made of the settings of `jaxserve serve`; and which value holds: a flag's, the file's, or the default."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import click
from click.core import ParameterSource

from jaxserve.cli.settings import ServeSettings
from jaxserve.config import checked, read_toml

_MODELS = "MODULE:ATTRIBUTE"


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an argument or a flag for every setting, `--config` and `--check`.

    The command is called with `settings`, a `ServeSettings`, and `check`, a bool.
    """

    @functools.wraps(command)
    def settled(*, config: Path | None, check: bool, **flags: Any) -> Any:
        context = click.get_current_context()
        given = {
            name: value
            for name, value in flags.items()
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        }
        return command(settings=settle(config, given), check=check)

    decorated: Callable[..., Any] = settled
    hints = get_type_hints(ServeSettings)
    for field in reversed(dataclasses.fields(ServeSettings)):
        decorated = _option(field, hints[field.name])(decorated)
    for option in (
        click.option("--check", is_flag=True, help="Only look whether everything is right, and do not serve."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A TOML file of these settings, http_port = 8501 for --http-port 8501; flags go before it.",
        ),
    ):
        decorated = option(decorated)
    return decorated


def settle(config: Path | None, flags: Mapping[str, object]) -> ServeSettings:
    """The settings that hold.

    Paths in the file are relative to the file. Where `port` is 0 and another port is not given, that one is 0, too.

    Args:
        config: the file; None for none.
        flags: those that were given, by the names of their settings.

    Raises:
        ConfigError: something is unknown, of a wrong type, out of range, or does not go with something else.
    """
    values: dict[str, Any] = {}
    if config is not None:
        for name, value in checked(ServeSettings, read_toml(config), source=str(config)).items():
            values[name] = config.parent / value.expanduser() if isinstance(value, Path) else value
    values |= checked(ServeSettings, flags, named=flag_of)
    if values.get("port") == 0:
        values = {"http_port": 0, "grpc_port": 0} | values
    return ServeSettings(**values)


def flag_of(name: str) -> str:
    """What stands on a command line for a setting."""
    return _MODELS if name == "models" else f"--{name.replace('_', '-')}"


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if field.name == "models":
        return click.argument("models", metavar=f"[{_MODELS}]", required=False)
    metadata, flag = field.metadata, flag_of(field.name)
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=field.default, help=metadata["help"])
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    choices = metadata.get("choices")
    return click.option(
        flag,
        # A port is a number or `off`: its own reader takes it as a text.
        type=str if "read" in metadata else click.Path(path_type=Path) if kind is Path else kind,
        default=field.default,
        show_default=field.default is not None,
        metavar=metadata["metavar"] or ("|".join(choices) if choices else "N" if kind in (int, float) else None),
        help=metadata["help"],
    )
