"""Open Inference Protocol (V2) all in JSON: requests and answers that differ from known ones in their numbers alone.

A client sends the same JSON again and again, but for the id, which it puts first, and the numbers of its tensor. Of a
request with one tensor what is before the numbers and what is behind them are remembered together; the next one like it
has only its numbers read. Whether what is between is all of the tensor's data, and nothing but that, is tried out once,
with something in its place that no client can know.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from jaxserve.protocols.datatypes import Value, from_json_text, json_text
from jaxserve.protocols.infer_request import LONGEST_ID, InferRequest, Parameters, RequestedOutput, quoted
from jaxserve.protocols.remembered import LONGEST_BYTES, Remembered

_ID_FIRST = b'{"id":"'
_SPACED_ID = re.compile(rb'\s*+\{\s*+"id"\s*+:\s*+"([!#-\[\]-~]{1,128})"')
_NAME = b'"data"'
_LONGEST_BODY_BYTES = 64 * 2**10
_MARK = secrets.token_hex(16)


def split_id(text: bytes) -> tuple[str, bytes | None]:
    """The id with which a JSON object starts, if it does, and what follows; None for what is no object."""
    if text.startswith(_ID_FIRST):
        end = text.find(b'"', len(_ID_FIRST))
        if text.startswith(b'",', end):
            try:
                id = text[len(_ID_FIRST) : end].decode()
            except UnicodeDecodeError:
                return "", None
            if id.isprintable() and "\\" not in id and len(id) <= LONGEST_ID:  # as it stands, it is what it means
                return id, text[end + 2 :]
    return "", text[1:] if text.startswith(b"{") else None


def first_id(body: bytes | bytearray) -> str:
    """The id with which a body starts that could not be read, so that its client finds its own again; else nothing."""
    found = _SPACED_ID.match(body)
    return found[1].decode("latin-1") if found is not None else ""


class Parts(NamedTuple):
    """A body in JSON, taken apart.

    Attributes:
        id: with which it starts.
        around: what follows up to the first list called "data", and what stands behind its first closing bracket.
        numbers: what is between, with its brackets.
    """

    id: str
    around: tuple[bytes, bytes]
    numbers: bytes


class _Known(NamedTuple):
    """A request without its id and its numbers; the attributes are as in `InferRequest`, but for `what`, for errors."""

    name: str
    what: str
    datatype: str
    shape: tuple[int, ...]
    outputs: tuple[RequestedOutput, ...] | None
    parameters: Parameters


_known: Remembered[tuple[bytes, bytes], _Known] = Remembered()


def split_numbers(body: bytes) -> Parts | None:
    """The parts of a body, where it has them and what is not numbers is short enough."""
    if len(body) > _LONGEST_BODY_BYTES:
        return None
    name_end = body.find(_NAME, 0, LONGEST_BYTES) + len(_NAME)
    start = body.find(b"[", name_end, name_end + 3)  # behind the colon and perhaps a space
    end = body.find(b"]", start) + 1
    if name_end < len(_NAME) or start < 0 or not end or len(body) - end > LONGEST_BYTES:
        return None
    id, members = split_id(body[:start])
    return None if members is None else Parts(id, (members, body[end:]), body[start:end])


def recall(parts: Parts) -> InferRequest | None:
    """The request that has these parts, if one like it is known.

    Raises:
        InvalidInput: the data is not what it should be.
    """
    known = _known.get(parts.around)
    if known is None:
        return None
    name, what, datatype, shape, outputs, parameters = known
    try:
        value = from_json_text(datatype, shape, parts.numbers, what=what)
    except orjson.JSONDecodeError:  # nested, or with words
        return None
    return InferRequest(parts.id, {name: value}, outputs, *parameters)


def learn(
    parts: Parts,
    datatype: str,
    inputs: Mapping[str, Value],
    outputs: tuple[RequestedOutput, ...] | None,
    parameters: Parameters,
) -> None:
    """Remembers a request that was read, if it has one tensor, and no second id."""
    before, after = parts.around
    text = b'{%b["%b"]%b' % (before, _MARK.encode(), after)
    if len(inputs) != 1 or b'"id"' in text or b"\\" in text:
        return
    try:
        if orjson.loads(text)["inputs"][0].get("data") != [_MARK]:
            return
    except orjson.JSONDecodeError:  # nested
        return
    [(name, value)] = inputs.items()
    if isinstance(value, np.ndarray):
        _known.keep(parts.around, _Known(name, f"input {quoted(name)}", datatype, value.shape, outputs, parameters))


_answers: Remembered[tuple[Any, ...], tuple[bytes, bytes]] = Remembered()


def recall_answer(key: tuple[Any, ...], value: np.ndarray) -> tuple[bytes, bytes, bytes] | None:
    """What follows the id in an answer with this output, in three pieces, if one like it is known."""
    around = _answers.get(key)
    return None if around is None else (around[0], json_text(value), around[1])


def learn_answer(key: tuple[Any, ...], document: Mapping[str, Any]) -> None:
    """Remembers an answer with one output, without its numbers."""
    [entry] = document["outputs"]
    text = orjson.dumps({**document, "outputs": [{**entry, "data": [_MARK]}]})
    before, _, after = text.partition(b'["%b"]' % _MARK.encode())
    _answers.keep(key, (before[1:], after))
