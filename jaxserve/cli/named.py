"""Objects named on a command line as `module:attribute`."""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from jaxserve.errors import ConfigError, JaxserveError


def find(named: str, *, example: str, wanted: str, is_wanted: Callable[[Any], bool]) -> Any:
    """The object that `module:attribute` stands for. The module is looked for in the working directory first.

    Args:
        named: the module and the attribute.
        example: one that would do, for a message.
        wanted: what it should be, in a word or two, for a message.
        is_wanted: whether an object may be meant; a message lists such, and the functions of the module.

    Raises:
        ConfigError: there is no such module or attribute.
    """
    module_name, colon, attribute = named.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{named!r} is not MODULE:ATTRIBUTE; give something like {example}")
    value = _import(module_name)
    looked_at = module_name
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = ", ".join(_candidates(value, module_name, is_wanted)[:20]) or f"nothing that could be a {wanted}"
            raise ConfigError(f"{looked_at!r} has no {part!r}; it has {names}")
        value = getattr(value, part)
        looked_at += (":" if looked_at == module_name else ".") + part
    return value


def _candidates(value: Any, module_name: str, is_wanted: Callable[[Any], bool]) -> list[str]:
    """Names in a module, or of an object in it, that may be meant: what is wanted, and the module's own functions."""

    def is_candidate(each: Any) -> bool:
        return is_wanted(each) or (inspect.isfunction(each) and f"{each.__module__}.".startswith(f"{module_name}."))

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
