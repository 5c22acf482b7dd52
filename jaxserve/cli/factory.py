"""Models named on a command line as `module:attribute`."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from jaxserve.cli.named import find
from jaxserve.errors import ConfigError, JaxserveError
from jaxserve.model import Model


def load_models(named: str) -> list[Model]:
    """The models that `module:attribute` stands for: a `Model`, a sequence of them, or a function that returns either.

    The module is looked for in the working directory first.

    Raises:
        ConfigError: there is no such module or attribute, or it holds something else.
    """
    value = find(named, example="jaxserve.models:minilm", wanted="model", is_wanted=_is_model_or_models)
    if callable(value) and not isinstance(value, Model):
        value = _call(value, named)
    models = [value] if isinstance(value, Model) else value
    if not _are_models(models):
        raise ConfigError(
            f"{named!r} is a {type(value).__name__}, but must be a jaxserve.Model, a list of them, or a function "
            f"without arguments that returns either"
        )
    return list(models)


def _are_models(value: Any) -> TypeGuard[Sequence[Model]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Model) for each in value)


def _is_model_or_models(value: Any) -> bool:
    return isinstance(value, Model) or _are_models(value)


def _call(factory: Any, named: str) -> Any:
    try:
        return factory()
    except JaxserveError:
        raise
    except Exception as error:  # the user's function may raise anything; it is a fault of the argument
        raise ConfigError(f"{named!r} raised {type(error).__name__}: {error}") from error
