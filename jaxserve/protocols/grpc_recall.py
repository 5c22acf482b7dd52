"""Requests over gRPC that were seen before, but for their id and their data, are not parsed again.

Serialised, a request is its fields in the order of their numbers, unless somebody takes pains to write them otherwise:

    model name, [version], [id], everything else | the first raw tensor, a tag and a length, the next raw tensor ...

What stands before the bar is looked up, without the id. Where the bar is must be known to cut it out: messages of
equal lengths mostly agree in it, for they have equal shapes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jaxserve.protocols.infer_request import InferRequest
from jaxserve.protocols.protobuf_wire import fields, tag_of
from jaxserve.protocols.remembered import LONGEST_BYTES, Remembered, Seen, seen_of

NAME, VERSION, ID, RAW = tag_of(1), tag_of(2), tag_of(3), tag_of(7)  # of ModelInferRequest
_LONGEST_SHORT = 0x7F  # a length up to this takes one byte


class Received(NamedTuple):
    """A request for a model, of a version or, where that is empty, of any."""

    model: str
    version: str
    request: InferRequest


_new = tuple.__new__  # half the time of `Received(...)`


class _Known(NamedTuple):
    """A message that was seen before.

    Attributes:
        model: whom it is for.
        version: of the model.
        seen: what it says.
        between: what stands between its tensors, and where, counted from the first.
    """

    model: str
    version: str
    seen: Seen
    between: Sequence[tuple[int, bytes]]


# Lengths, and where the bar is, are those of the message without its id.
_bars: Remembered[int, int] = Remembered()
_known: Remembered[bytes, _Known] = Remembered()


def recall(data: bytes, max_tensors: int) -> Received | None:
    """The request that a message is, if one like it was seen.

    Raises:
        InvalidInput: what should be bools is something else.
    """
    id = ""
    known = None
    bar = _bars.get(len(data))
    if bar is not None:
        known = _known.get(data[:bar])
    if known is None:  # there may be an id
        cut = _cut(data)
        if cut is None:
            return None
        id, bar, message = cut
        known = _known.get(message)
        if known is None:
            return None
    model, version, seen, between = known
    if len(data) != bar + seen.data_bytes or len(seen.tensors) > max_tensors:  # pyright: ignore
        return None
    for offset, constant in between:
        if not data.startswith(constant, bar + offset):  # pyright: ignore
            return None
    return _new(Received, (model, version, seen.fill(id, data, bar)))  # pyright: ignore


def _cut(data: bytes) -> tuple[str, int, bytes] | None:
    """The id of a message, where its bar is, and what stands before that without the id."""
    try:
        start = 2 + data[1]
        if data[start] == VERSION:
            start += 2 + data[start + 1]
        if data[start] != ID or data[start + 1] > _LONGEST_SHORT:
            return None
        stop = start + 2 + data[start + 1]
        id = data[start + 2 : stop].decode()
    except (IndexError, UnicodeDecodeError):
        return None
    bar = _bars.get(len(data) - (stop - start))
    if bar is None:
        return None
    bar += stop - start
    return id, bar, data[:start] + data[stop:bar]


def learn(data: bytes, received: Received, raw_sizes_bytes: Sequence[int]) -> None:
    """Remembers a request whose fields stand as above, and whose tensors are all raw.

    Args:
        data: its message.
        received: what the message is.
        raw_sizes_bytes: what each tensor takes.
    """
    if not raw_sizes_bytes or len(data) - sum(raw_sizes_bytes) > LONGEST_BYTES:
        return
    found = list(fields(data, 0, len(data)))
    raw = found[-len(raw_sizes_bytes) :]
    head = found[: -len(raw_sizes_bytes)]
    if any(field.tag != RAW for field in raw) or any(field.tag == RAW for field in head):
        return
    tags = [field.tag for field in head]
    singles = [tag for tag in tags if tag in (NAME, VERSION, ID)]
    # Each at most once, at the start, in their order, and with a length that takes one byte.
    if tags[: len(singles)] != singles or singles != sorted(set(singles)) or NAME not in singles:
        return
    if any(field.value_start - field.start != 2 for field in head[: len(singles)]):
        return
    bar = raw[0].value_start
    model, version, request = received
    seen = seen_of(request, [field.value_start - bar for field in raw])
    if seen is None:
        return
    between = [
        (last.stop - bar, data[last.stop : following.value_start]) for last, following in itertools.pairwise(raw)
    ]
    id_field = next((field for field in head if field.tag == ID), None)
    if id_field is None:
        message, id_bytes = data[:bar], 0
    else:
        message = data[: id_field.start] + data[id_field.stop : bar]
        id_bytes = id_field.stop - id_field.start
    _bars.keep(len(data) - id_bytes, bar - id_bytes)
    _known.keep(message, _Known(model, version, seen, between))
