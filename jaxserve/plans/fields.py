"""Reads fields out of parsed JSON, and names the path of the field that is wrong."""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from jaxserve.errors import ConfigError, FileFormatError, PlacementError

T = TypeVar("T")
MOST = 2**31 - 1  # of whole numbers: compiled code holds them in 32 bits
_LONGEST_WHOLE = 300  # digits; longer ones are beyond any float
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_TYPE_NAMES: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}


class Fields:
    """A view of one JSON value that knows where in its file it stands."""

    def __init__(self, value: object, path: str, source: str) -> None:
        self._value: Any = value
        self._path = path
        self._source = source

    def wrong(self, problem: str) -> FileFormatError:
        """The error that names this place."""
        return FileFormatError(f"{self._source}: {self._path or 'the file'} {problem}")

    def has(self, name: str) -> bool:
        """Whether this object has the field."""
        return name in self._expect(dict)

    def __getitem__(self, name: str) -> "Fields":
        """The named field of this object."""
        value: dict[str, Any] = self._expect(dict)
        path = f"{self._path}.{name}" if self._path else name
        if name not in value:
            raise Fields(None, path, self._source).wrong("is missing")
        return Fields(value[name], path, self._source)

    def names(self) -> list[str]:
        """The names of this object's fields."""
        names: list[str] = list(self._expect(dict))
        for name in names:
            if not is_text(name):
                raise self.wrong(f"has the name {_shown(name)}, {_NEEDED_TEXT}")
        return names

    def items(self) -> "list[Fields]":
        """The elements of this array."""
        value: list[Any] = self._expect(list)
        return [Fields(item, f"{self._path}[{index}]", self._source) for index, item in enumerate(value)]

    def text(self) -> str:
        """This string, which any file can hold and any terminal show."""
        text = self._expect(str)
        if not is_text(text):
            raise self.wrong(f"is {_shown(text)}, {_NEEDED_TEXT}")
        return text

    def number(self, *, above: float | None = None) -> float:
        """This finite number, not negative, and greater than `above` where given."""
        value = self._value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"is {_shown(value)}, but must be a number")
        if not math.isfinite(value) or value < 0:
            raise self.wrong(f"is {_shown(value)}, but must be finite and not negative")
        if above is not None and value <= above:
            raise self.wrong(f"is {_shown(value)}, but must be greater than {above:g}")
        return float(value)

    def integer(self, *, at_least: int = 0, at_most: int = MOST) -> int:
        """This whole number of at least `at_least` and at most `at_most`."""
        value = self._value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"is {_shown(value)}, but must be a whole number")
        if not math.isfinite(value) or int(value) != value:
            raise self.wrong(f"is {_shown(value)}, but must be a whole number")
        if value < at_least:
            raise self.wrong(f"is {_shown(value)}, but must be at least {at_least}")
        if value > at_most:
            raise self.wrong(f"is {_shown(value)}, but must be at most {at_most}")
        return int(value)

    def list_of(self, read: "Callable[[Fields], T]") -> tuple[T, ...]:
        """This array, each element read by `read`."""
        return tuple(read(item) for item in self.items())

    def _expect(self, kind: type) -> Any:
        if not isinstance(self._value, kind):
            raise self.wrong(f"is {_shown(self._value)}, but must be {_TYPE_NAMES[kind]}")
        return self._value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


_NEEDED_TEXT = "but must be text that can be shown, without NUL and lone surrogates"


def is_text(text: str) -> bool:
    """Whether a text can stand in any file: not with NUL, which ends it in some, nor half a character."""
    return _NO_TEXT.search(text) is None


class _Twice(ValueError):
    """A name that stands twice in one object; JSON allows it, and readers would take the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return made


def _whole(digits: str) -> int | float:
    """A whole number; infinite where no float is as large, as `json` has it for numbers with a point."""
    return int(digits) if len(digits) <= _LONGEST_WHOLE else float(digits)


@contextlib.contextmanager
def in_file(path: str | os.PathLike[str]) -> Generator[None]:
    """Names the file where a value that was read from it refuses itself."""
    try:
        yield
    except (ConfigError, PlacementError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def read_json(path: str | os.PathLike[str], *, format_name: str) -> Fields:
    """The JSON object in `path`, whose `format` must be `format_name`, such as `jaxserve-fleet/1`.

    Raises:
        FileFormatError: no such file, not JSON, no format, another format or another major version.
    """
    fields = read_object(path, wanted=f"a {format_name} file")
    given = fields["format"].text()
    if given != format_name:
        raise fields["format"].wrong(f"is {given!r}, but this version of jaxserve reads {format_name!r}")
    return fields


def read_object(path: str | os.PathLike[str], *, wanted: str) -> Fields:
    """The JSON object in `path`.

    Args:
        path: of the file.
        wanted: what it should be, for messages.

    Raises:
        FileFormatError: no such file, or not JSON.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, or a path with NUL
        raise FileFormatError(f"{source}: cannot be read ({error}); give the path of {wanted}") from error
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{source}: is not JSON ({error}); it must be {wanted}") from error
    except _Twice as error:
        raise FileFormatError(f"{source}: an object has {error} twice; every name in it must be its own") from error
    return Fields(value, "", source)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` at once: a reader sees the old file or the new one, never a part."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes `value` as JSON to `path` at once."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` at once."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private; the file is as open as any that the user makes
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
