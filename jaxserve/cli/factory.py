"""Models named on a command line as `module:attribute`."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

from jaxserve.errors import ConfigError, JaxserveError
from jaxserve.model import Model


def load_models(named: str) -> list[Model]:
    """The models that `module:attribute` stands for: a `Model`, a sequence of them, or a function that returns either.

    The module is looked for in the working directory first.

    Raises:
        ConfigError: there is no such module or attribute, or it holds something else.
    """
    module_name, colon, attribute = named.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{named!r} is not MODULE:ATTRIBUTE; give something like jaxserve.models:minilm")
    value: Any = _import(module_name)
    looked_at = module_name
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = ", ".join(_candidates(value, module_name)[:20]) or "nothing that could be a model"
            raise ConfigError(f"{looked_at!r} has no {part!r}; it has {names}")
        value = getattr(value, part)
        looked_at += (":" if looked_at == module_name else ".") + part
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


def _candidates(value: Any, module_name: str) -> list[str]:
    """Names in a module, or of an object in it, that may be meant: models, and functions that are the module's own."""

    def is_candidate(each: Any) -> bool:
        if isinstance(each, Model) or _are_models(each):
            return True
        return inspect.isfunction(each) and f"{each.__module__}.".startswith(f"{module_name}.")

    named: dict[str, Any] = getattr(value, "__dict__", {})
    return [name for name, each in named.items() if not name.startswith("_") and is_candidate(each)]


def _import(module_name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ConfigError(
                f"there is no module {error.name!r}; run from the directory that holds it, or install it"
            ) from error
        raise ConfigError(f"{module_name!r} cannot be imported: {error}") from error
    except JaxserveError:
        raise
    except Exception as error:  # the user's module may raise anything; it is a fault of the argument
        raise ConfigError(f"{module_name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _call(factory: Any, named: str) -> Any:
    try:
        return factory()
    except JaxserveError:
        raise
    except Exception as error:  # likewise
        raise ConfigError(f"{named!r} raised {type(error).__name__}: {error}") from error
