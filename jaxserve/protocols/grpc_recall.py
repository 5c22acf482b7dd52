"""Requests over gRPC that were seen before, but for their id and their data, are not parsed again.

Serialised, a request is its fields in the order of their numbers, unless somebody takes pains to write them otherwise:

    model name, [version], [id], everything else | the first raw tensor, a tag and a length, the next raw tensor ...

What stands before the bar is looked up, without the id. Where the bar is must be known to cut it out: messages of
equal lengths mostly agree in it, for they have equal shapes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxserve.protocols.datatypes import Value
from jaxserve.protocols.infer_request import InferRequest, Parameters
from jaxserve.protocols.protobuf_wire import fields, tag_of
from jaxserve.protocols.remembered import LONGEST_BYTES, Remembered, Seen, seen_of

NAME, VERSION, ID, RAW = tag_of(1), tag_of(2), tag_of(3), tag_of(7)  # of ModelInferRequest
_LONGEST_SHORT = 0x7F  # a length up to this takes one byte


class Received(NamedTuple):
    """A request for a model, of a version or of any."""

    model: str
    version: str
    request: InferRequest


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
    bar = _bars.get(len(data))
    if bar is not None:
        known = _known.get(data[:bar])
        if known is not None:
            return _fill(known, "", data, bar, max_tensors)
    try:
        start = 2 + data[1]
        if data[start] == VERSION:
            start += 2 + data[start + 1]
        if data[start] != ID or data[start + 1] > _LONGEST_SHORT:
            return None
        stop = start + 2 + data[start + 1]
    except IndexError:
        return None
    bar = _bars.get(len(data) - (stop - start))
    if bar is None:
        return None
    bar += stop - start
    known = _known.get(data[:start] + data[stop:bar])
    if known is None:
        return None
    try:
        id = data[start + 2 : stop].decode()
    except UnicodeDecodeError:
        return None
    return _fill(known, id, data, bar, max_tensors)


def _fill(known: _Known, id: str, data: bytes, bar: int, max_tensors: int) -> Received | None:
    seen = known.seen
    if len(data) != bar + seen.data_bytes or len(seen.tensors) > max_tensors:
        return None
    for offset, constant in known.between:
        if not data.startswith(constant, bar + offset):
            return None
    return Received(known.model, known.version, seen.fill(id, data, bar))


def learn(
    data: bytes, received: Received, inputs: Mapping[str, Value], parameters: Parameters, raw_sizes_bytes: Sequence[int]
) -> None:
    """Remembers a request whose fields stand as above, and whose tensors are all raw.

    Args:
        data: its message.
        received: what the message is.
        inputs: its tensors.
        parameters: of the request.
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
    seen = seen_of(inputs, [field.value_start - bar for field in raw], received.request.outputs, parameters)
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
    _known.keep(message, _Known(received.model, received.version, seen, between))
