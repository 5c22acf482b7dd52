"""The only reader of configuration files and environment variables."""

import dataclasses
import difflib
import math
import os
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jaxserve.errors import ConfigError


def cache_directory() -> Path:
    """Where compiled programs and fetched weights are kept between runs.

    `JAXSERVE_CACHE` where it is set, else `jaxserve` under `XDG_CACHE_HOME`, else `~/.cache/jaxserve`. Made on demand,
    for this user alone: compiled programs are run as they are found.

    Raises:
        ConfigError: it cannot be made or written to, or somebody else may write to it.
    """
    chosen = os.environ.get("JAXSERVE_CACHE")
    if chosen:
        return private_directory(Path(chosen))
    return private_directory(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxserve")


def plans_directory() -> Path | None:
    """Where solved plans are kept between runs: `plans` in the cache directory; None where none can be kept.

    `JAXSERVE_PLANS=off` keeps none. A cache that cannot be made or written to keeps none either: a plan is then made
    anew, which takes seconds, and nothing else needs one.
    """
    if os.environ.get("JAXSERVE_PLANS") == "off":
        return None
    try:
        return private_directory(cache_directory() / "plans")
    except ConfigError:
        return None


def private_directory(directory: Path) -> Path:
    """The directory as an absolute path, made where it is missing, for its owner only.

    Raises:
        ConfigError: it cannot be made or written to, or somebody else may write to it.
    """
    path = directory
    try:
        path = directory.expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home to put in place of ~
        raise ConfigError(
            f"the cache {str(path)!r} cannot be made ({error}); set JAXSERVE_CACHE to a directory of your own"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"the cache {str(path)!r} holds weights and programs that will be run, but others may write to it; "
            f"give a directory of your own, or take away their right to write (chmod go-w)"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the cache {str(path)!r} cannot be written to; make it writable (chmod u+wx), or set JAXSERVE_CACHE to "
            f"another directory"
        )
    return path


def client_token() -> str | None:
    """The token that a command shows to a server: `JAXSERVE_TOKEN`, where it is set."""
    return os.environ.get("JAXSERVE_TOKEN") or None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """Where whoever started this process, such as systemd, wants to hear how it is.

    Attributes:
        socket: the Unix datagram socket; one that begins with `@` is in Linux's abstract name space.
        watchdog_s: seconds within which it wants to hear something, again and again; None where it does not.
    """

    socket: str
    watchdog_s: float | None = None


def service_manager() -> ServiceManager | None:
    """What `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say; None where nobody wants to hear."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    period, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    is_ours = owner in ("", str(os.getpid()))
    return ServiceManager(
        socket=path, watchdog_s=int(period) / 1e6 if is_ours and period.isdecimal() and int(period) else None
    )


def read_toml(path: str | os.PathLike[str], *, private: bool = False) -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        path: of the file.
        private: whether it holds secrets, so that nobody but its owner may have any right to it.

    Raises:
        ConfigError: it cannot be read, is not TOML (the message names the line), or is not private.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a TOML file") from error
    if private and mode & 0o077:
        raise ConfigError(
            f"{path}: holds secrets, but others may read or change it (mode {mode & 0o777:o}); chmod 600 {path}"
        )
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: is not UTF-8; save it as UTF-8 text") from None
    except ValueError as error:  # tomllib's own error, or an int of thousands of digits
        match = _AT.search(str(error))
        line = int(match[1]) if match and match[1] else len(data.splitlines())
        raise ConfigError(
            f'{path}, line {line}: {_AT.sub("", str(error))}; write TOML, such as key = 1 or key = "text"'
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; no key needs more than a table") from None


_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

_NEEDED: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "the path of a file",
}


def checked(
    kind: type, given: Mapping[str, object], *, source: str = "", named: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """What was given for the fields of a dataclass, each as its field wants it: ints as floats, arrays as tuples.

    A field is a `bool`, `int`, `float`, `str`, `Path` or a `tuple[T, ...]` of one of these, perhaps `| None`. Its
    metadata may hold

        choices: the texts that it may be;
        at_least, above, at_most: the bounds of a number;
        infinite: present where a number may be infinite;
        secret: present where the value must not stand in a message;
        read: a function that makes the value of what was given in its place; a `ValueError` of it says what is needed.

    Args:
        kind: the dataclass.
        given: values by the names of fields.
        source: where they stand, for messages; a file, perhaps with a place in it.
        named: how a message calls a field; by default `source: name`.

    Raises:
        ConfigError: a name that no field has, a value of a wrong type or out of bounds, in one line.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        field = fields.get(name)
        if field is None:
            raise ConfigError(f"{source}: unknown key {name!r}; {suggestion(name, fields)}")
        try:
            read = field.metadata.get("read")
            values[name] = _fitting(hints[name], value, field.metadata) if read is None else read(value)
        except ConfigError:
            raise
        except ValueError as needed:
            called = f"{source}: {name}" if named is None else named(name)
            shown = f"a {type(value).__name__}" if "secret" in field.metadata else reprlib.repr(_plain(value))
            raise ConfigError(f"{called} is {shown}, but must be {needed}") from None
    return values


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say to somebody who wrote a name that is none of those known."""
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _fitting(hint: Any, value: Any, bounds: Mapping[str, Any]) -> Any:
    """The value as the type wants it; a ValueError says what that is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        [hint] = (argument for argument in arguments if argument is not type(None))
        return _fitting(hint, value, bounds)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"an array, each element {_NEEDED[arguments[0]]}")
        return tuple(_fitting(arguments[0], item, bounds) for item in value)
    if hint is Path and isinstance(value, str | Path) and "\0" not in str(value) and str(value):
        return Path(value)
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if "choices" in bounds and value not in bounds["choices"]:
        raise ValueError(f"one of {', '.join(bounds['choices'])}")
    if type(value) is not hint:
        raise ValueError(_NEEDED[hint])
    if isinstance(value, int | float) and hint is not bool and not _within(value, bounds):
        raise ValueError(_bounds(hint, bounds))
    return value


def _within(value: float, bounds: Mapping[str, Any]) -> bool:
    if type(value) is float and not math.isfinite(value) and not (value == math.inf and "infinite" in bounds):
        return False
    return (
        value >= bounds.get("at_least", -math.inf)
        and value > bounds.get("above", -math.inf)
        and value <= bounds.get("at_most", math.inf)
    )


def _bounds(hint: Any, bounds: Mapping[str, Any]) -> str:
    words = {"at_least": "of at least", "above": "greater than", "at_most": "of at most"}
    parts = [f" {word} {bounds[name]}" for name, word in words.items() if name in bounds]
    kind = "a finite number" if hint is float and "infinite" not in bounds else _NEEDED[hint]
    return f"{kind}{' and'.join(parts)}"
