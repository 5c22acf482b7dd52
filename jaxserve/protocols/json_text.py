"""JSON from strangers, in memory and time that are bounded by the size of its text.

A text of `[],[],[],` takes three bytes for an object of sixty, so what it would become is counted before it is read:
by the commas and the opening brackets in it, those in strings included, which takes a millisecond for a few megabytes.
Measured with the limits as they are unless said otherwise: no text of 64 MiB took more than 260 MiB (one long string
with a single character that needs four bytes) or half a second (an object of a million names).
"""

import json
import math
import re
from typing import Any

import orjson

from jaxserve.errors import InvalidInput
from jaxserve.protocols.tensors import Buffer

MAX_ELEMENTS = 2**20
"""The most elements that all lists and objects of a text may have together, unless said otherwise."""
ELEMENTS_PER_CONTAINER = 8
"""Lists and objects may be this many times fewer than elements: they are what takes memory and time."""
_SMALL_BYTES = 16 * 2**10
_CHECKED_BYTES = 2**20
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*:)?', re.DOTALL)
MAX_DEPTH = 64
"""The most lists and objects that may stand inside one another, unless said otherwise."""


def read_json(
    text: Buffer, *, max_elements: int = MAX_ELEMENTS, max_depth: int = MAX_DEPTH, what: str = "the body"
) -> Any:
    """The value of a JSON text, which may have the words NaN, Infinity and -Infinity among its numbers.

    Of members of one name in one object the last one counts where the text is longer than a megabyte; shorter ones must
    not have any.

    Raises:
        InvalidInput: it is no JSON, it has more elements or levels than are allowed, or a name twice.
    """
    if type(text) is not bytes:
        text = bytes(text)
    is_tiny = len(text) <= min(max_depth, max_elements)
    containers = 0 if is_tiny else _containers(text)
    if len(text) > max_elements and containers + text.count(b",") > max_elements:
        raise InvalidInput(
            f"{what} has more than {max_elements} elements; send large tensors as binary data, or in several requests"
        )
    if containers > max_elements // ELEMENTS_PER_CONTAINER and containers > max_depth:
        raise InvalidInput(
            f"{what} has more than {max_elements // ELEMENTS_PER_CONTAINER} lists and objects; send tensors as flat "
            f"lists, or as binary data"
        )
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        value = _read_with_words(text, error, what=what)
    if containers > max_depth:
        _check_depth(value, max_depth, what=what)
    if len(text) <= _CHECKED_BYTES:
        _check_names(text, value, what=what)
    return value


def _check_names(text: bytes, value: Any, *, what: str) -> None:
    """Looks whether an object has a name twice: then the text has more names than the value."""
    strings = _STRINGS.findall(text)
    if len(strings) - strings.count(b"") > _members(value, text.count(b"{")):
        json.loads(text.decode(), object_pairs_hook=lambda pairs: _without_twice(pairs, what=what))


def _members(value: Any, objects: int) -> int:
    """How many members the objects in a value have together, of which there are so many at most."""
    members = 0
    level: list[Any] = [value]
    while level and objects:
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                members += len(item)
                objects -= 1
                below += item.values()
            elif type(item) is list:
                below += item
        level = below
    return members


def _without_twice(pairs: list[tuple[str, Any]], *, what: str) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidInput(f"{what} has the name {name!r:.80} twice in one object; say it once")
        seen.add(name)


def _containers(text: bytes) -> int:
    """How many opening brackets are in a text; of a small one in a quicker way, which takes memory for each of them."""
    if len(text) > _SMALL_BYTES:
        return text.count(b"[") + text.count(b"{")
    return len(text.split(b"[")) + len(text.split(b"{")) - 2


def _read_with_words(text: bytes, refusal: orjson.JSONDecodeError, *, what: str) -> Any:
    """Reads a second time what orjson refused, if that may be for the words that it does not know."""
    if b"NaN" in text or b"Infinity" in text:
        try:
            value = json.loads(text.decode(), parse_float=_finite)
            orjson.dumps(value)  # refuses what only the more lenient reader took: lone surrogates, integers too large
        except (ValueError, RecursionError, TypeError):
            pass
        else:
            return value
    raise InvalidInput(f"{what} is not JSON: {refusal}") from None


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):  # the words for that are read elsewhere
        raise ValueError(number)
    return value


def _check_depth(value: Any, max_depth: int, *, what: str) -> None:
    """Goes through a value level by level; not by recursion, which is what a deep one is made against."""
    level: list[Any] = [value] if isinstance(value, list | dict) else []
    for _ in range(max_depth):
        below: list[Any] = []
        for container in level:
            items = container if type(container) is list else container.values()
            below += [item for item in items if type(item) is list or type(item) is dict]
        if not below:
            return
        level = below
    raise InvalidInput(f"{what} has more than {max_depth} lists and objects inside one another")
