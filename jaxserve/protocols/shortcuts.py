"""Shortcuts for what repeats.

A server sees the same few frames all day: the same model, names, dtypes and shapes. Only id, deadline and data differ.
The bytes between them are worked out once and remembered. Writing fills in a `Form`; reading compares a frame with one
`Seen` before, and takes what differs from the same places. Nothing rests on it: what a shortcut does not know it
leaves to the general path of `envelopes` and `tensors`, which decides everything.

The codec always writes an id as uint 64 and a deadline as float 64, so that they stand at fixed places. It reads every
msgpack form of them; only those that stand at these places are read by a shortcut.

    lengths  95 03 cf <id: 8> cb <deadline: 8>  model, names, header  <data>  padding, header  <data>  ...  padding
    lengths  95 03 cf <id: 8> c0                model, names, header  <data>  padding, header  <data>  ...  padding
    lengths  93 04 cf <id: 8>                   names, header         <data>  padding, header  <data>  ...  padding

A request with a priority or a tenant begins with 97 in place of 95, and has both behind the names.
"""

import dataclasses
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxserve.errors import FrameTooLarge
from jaxserve.protocols import messages
from jaxserve.protocols.envelopes import INFER, MAX_ID, RESULT, End, pack, split
from jaxserve.protocols.messages import Message, Value
from jaxserve.protocols.tensors import COPY_UP_TO_BYTES, HEADER_BYTES, PADDING, Buffer, make_header, tensor_view

LARGEST_FRAME_BYTES = 2**32 - 4

HEAD = struct.Struct("<II")
"""Body length and envelope length, which open every frame."""

_INFER_MARK = bytes([0x95, INFER, 0xCF])
_LONG_INFER_MARK = bytes([0x97, INFER, 0xCF])  # with priority and tenant
_INFER_MARKS = (_INFER_MARK, _LONG_INFER_MARK)
_RESULT_MARK = bytes([0x93, RESULT, 0xCF])
_NIL, _FLOAT_64 = 0xC0, 0xCB
_ID = struct.Struct(">Q")
_ID_AND_NIL = struct.Struct(">QB")
_ID_AND_DEADLINE = struct.Struct(">QBd")
_INFER_OPENING = struct.Struct(">3sQBd")
_RESULT_OPENING = struct.Struct(">3sQ")
_AFTER_DEADLINE = HEAD.size + _INFER_OPENING.size
_AFTER_NIL = _AFTER_DEADLINE - 8
_AFTER_ID = HEAD.size + _RESULT_OPENING.size

_BOOL = np.dtype(np.bool_)

# Forgetting everything at the bound is crude, but it bounds the memory, and a real server never comes near it.
_REMEMBERED = 1024
_LONGEST_ENVELOPE_BYTES = 1024

_Key = TypeVar("_Key")
_Known = TypeVar("_Known")


def _remember(known: dict[_Key, _Known], key: _Key, value: _Known) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value


# Writing


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """A frame to be filled in.

    Attributes:
        opening: what stands before the id.
        constants: what stands before the data of each tensor and, last, behind them all.
        body_bytes: what the length prefix says.
    """

    opening: bytes
    constants: Sequence[bytes]
    body_bytes: int


_infer_forms: dict[tuple[Any, ...], Form] = {}
_result_forms: dict[tuple[Any, ...], Form] = {}


def write_infer(
    id: int,
    model: str,
    deadline_s: float | None,
    inputs: Mapping[str, Value],
    priority: int,
    tenant: str,
    max_frame_bytes: int,
) -> list[Buffer]:
    """The buffers of an infer frame: see `native.encode`."""
    key = _layout(inputs)
    if deadline_s is None:
        varying, before_tail_bytes = _ID_AND_NIL.pack(id, _NIL), _AFTER_NIL
    else:
        varying, before_tail_bytes = _ID_AND_DEADLINE.pack(id, _FLOAT_64, deadline_s), _AFTER_DEADLINE
    if key is not None:
        key = (model, before_tail_bytes, key, priority, tenant)
        form = _infer_forms.get(key)
        if form is not None:
            return _fill(form, varying, inputs.values(), max_frame_bytes)
    fields, tensors = split(inputs)
    mark, tail = _INFER_MARK, pack(model) + pack(fields)
    if priority or tenant:
        mark, tail = _LONG_INFER_MARK, tail + pack(priority) + pack(tenant)
    form = _make_form(mark, before_tail_bytes, tail, tensors)
    if key is not None and _are_as_given(tensors, inputs):
        _remember(_infer_forms, key, form)
    return _fill(form, varying, tensors, max_frame_bytes)


def write_result(id: int, outputs: Mapping[str, Value], max_frame_bytes: int) -> list[Buffer]:
    """The buffers of a result frame: see `native.encode`."""
    key = _layout(outputs)
    if key is not None:
        form = _result_forms.get(key)
        if form is not None:
            return _fill(form, _ID.pack(id), outputs.values(), max_frame_bytes)
    fields, tensors = split(outputs)
    form = _make_form(_RESULT_MARK, _AFTER_ID, pack(fields), tensors)
    if key is not None and _are_as_given(tensors, outputs):
        _remember(_result_forms, key, form)
    return _fill(form, _ID.pack(id), tensors, max_frame_bytes)


def _layout(values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What the form of these values depends on; None where one of them is no tensor."""
    try:
        if len(values) == 1:  # almost always; half the time of the general case
            [(name, value)] = values.items()
            return name, value.dtype, value.shape
        return tuple([(name, value.dtype, value.shape) for name, value in values.items()])
    except AttributeError:
        return None


def _are_as_given(tensors: Sequence[np.ndarray], values: Mapping[str, Value]) -> bool:
    """Whether a form may be filled in with such values themselves: not if their byte order had to be changed."""
    return all(tensor is value for tensor, value in zip(tensors, values.values(), strict=True))


def _make_form(mark: bytes, before_tail_bytes: int, tail: bytes, tensors: Sequence[np.ndarray]) -> Form:
    envelope_bytes = before_tail_bytes - HEAD.size + len(tail)
    constants = [tail + PADDING[-envelope_bytes % 8]]
    body_bytes = before_tail_bytes - 4
    for tensor in tensors:
        constants[-1] += make_header(tensor.dtype, tensor.shape)
        constants.append(PADDING[-tensor.nbytes % 8])
        body_bytes += tensor.nbytes
    body_bytes += sum(map(len, constants))
    if body_bytes > LARGEST_FRAME_BYTES:
        raise FrameTooLarge(f"a frame of {body_bytes} bytes; no frame may be over {LARGEST_FRAME_BYTES}")
    return Form(HEAD.pack(body_bytes, envelope_bytes) + mark, constants, body_bytes)


def _fill(form: Form, varying: bytes, tensors: Any, max_frame_bytes: int) -> list[Buffer]:
    if form.body_bytes > max_frame_bytes:
        raise FrameTooLarge(f"a frame of {form.body_bytes} bytes is over the receiver's limit of {max_frame_bytes}")
    constants = form.constants
    if len(constants) == 2:  # almost always one tensor, and that in half the time
        [tensor] = tensors
        data = tensor.tobytes() if tensor.nbytes <= COPY_UP_TO_BYTES else tensor_view(tensor)
        return [form.opening, varying, constants[0], data, constants[1]]
    parts: list[Buffer] = [form.opening, varying]
    for constant, tensor in zip(constants, tensors, strict=False):  # one constant more than tensors
        parts.append(constant)
        parts.append(tensor.tobytes() if tensor.nbytes <= COPY_UP_TO_BYTES else tensor_view(tensor))
    parts.append(constants[-1])
    return parts


# Reading


class Seen(NamedTuple):
    """A frame as it was read before.

    Attributes:
        mark: what stands before the id.
        model: the model's name; empty for a result.
        priority: as in `messages.Infer`; 0 for a result.
        tenant: as in `messages.Infer`; empty for a result.
        tensors: name, dtype, shape and where the data starts, counted from the frame.
        constants: where each constant behind the first tensor starts, counted from the frame, and what it is.
    """

    mark: bytes
    model: str
    priority: int
    tenant: str
    tensors: Sequence[tuple[str, np.dtype, tuple[int, ...], int]]
    constants: Sequence[tuple[int, bytes]]


# A frame is looked up by the lengths in its head and its first constant, which ends where the first data starts. Where
# that is must be known to cut the constant out: frames of equal lengths mostly agree in it, for they have equal shapes.
_infer_data_starts: dict[tuple[int, int], int] = {}
_infers_seen: dict[tuple[tuple[int, int], bytes], Seen] = {}
_result_data_starts: dict[tuple[int, int], int] = {}
_results_seen: dict[tuple[tuple[int, int], bytes], Seen] = {}


def recall_nothing(frame: bytes, start: int, lengths: tuple[int, int]) -> Message | None:
    """Before the handshake nothing repeats."""


def recall_infer(frame: bytes, start: int, lengths: tuple[int, int]) -> Message | None:
    """The request at `start`, if one like it was seen."""
    data_start = _infer_data_starts.get(lengths)
    if data_start is None:
        return None
    mark, id, kind, deadline_s = _INFER_OPENING.unpack_from(frame, start + HEAD.size)
    if kind == _FLOAT_64 and 0.0 < deadline_s < math.inf:
        seen = _infers_seen.get((lengths, frame[start + _AFTER_DEADLINE : start + data_start]))
    elif kind == _NIL:
        seen = _infers_seen.get((lengths, frame[start + _AFTER_NIL : start + data_start]))
        deadline_s = None
    else:
        return None
    if seen is None or not 0 < id <= MAX_ID:
        return None
    seen_mark, model, priority, tenant, tensors, constants = seen
    if mark != seen_mark:
        return None
    for offset, constant in constants:
        if not frame.startswith(constant, start + offset):
            return None
    inputs: dict[str, Value] = {}
    for name, dtype, shape, offset in tensors:  # not a comprehension: that would be one more call
        inputs[name] = np.ndarray(shape, dtype, frame, start + offset)
    return messages.Infer(id, model, deadline_s, inputs, priority, tenant, lengths[0] + 4)


def recall_result(frame: bytes, start: int, lengths: tuple[int, int]) -> Message | None:
    """The result at `start`, if one like it was seen."""
    data_start = _result_data_starts.get(lengths)
    if data_start is None:
        return None
    mark, id = _RESULT_OPENING.unpack_from(frame, start + HEAD.size)
    seen = _results_seen.get((lengths, frame[start + _AFTER_ID : start + data_start]))
    if seen is None or mark != _RESULT_MARK or id > MAX_ID:
        return None
    for offset, constant in seen.constants:
        if not frame.startswith(constant, start + offset):
            return None
    outputs: dict[str, Value] = {}
    for name, dtype, shape, offset in seen.tensors:
        outputs[name] = np.ndarray(shape, dtype, frame, start + offset)
    return messages.Result(id, outputs)


RECALL: Mapping[End, Callable[[bytes, int, tuple[int, int]], Message | None]] = {
    "server": recall_infer,
    "client": recall_result,
}


def learn(frame: bytes, start: int, lengths: tuple[int, int], message: Message) -> None:
    """Remembers a request or a result that the general path has read."""
    body_bytes, envelope_bytes = lengths
    if envelope_bytes > _LONGEST_ENVELOPE_BYTES or body_bytes + 4 < _AFTER_DEADLINE:
        return
    mark = frame[start + HEAD.size : start + HEAD.size + len(_INFER_MARK)]
    match message:
        case messages.Infer(model=model, inputs=values, priority=priority, tenant=tenant) if mark in _INFER_MARKS:
            kind = frame[start + _AFTER_NIL - 1]
            if kind not in (_NIL, _FLOAT_64):
                return
            tail_start = _AFTER_NIL if kind == _NIL else _AFTER_DEADLINE
            data_starts, all_seen = _infer_data_starts, _infers_seen
        case messages.Result(outputs=values) if mark == _RESULT_MARK:
            model, priority, tenant, tail_start = "", 0, "", _AFTER_ID
            data_starts, all_seen = _result_data_starts, _results_seen
        case _:
            return
    tensors, constants = _locate(frame, start, tail_start, HEAD.size + envelope_bytes, values)
    if tensors:
        (_, first), *others = constants
        _remember(data_starts, lengths, tensors[0][3])
        _remember(all_seen, (lengths, first), Seen(mark, model, priority, tenant, tensors, others))


def _locate(
    frame: bytes, start: int, tail_start: int, envelope_end: int, values: Mapping[str, Value]
) -> tuple[list[tuple[str, np.dtype, tuple[int, ...], int]], list[tuple[int, bytes]]]:
    """The `tensors` and `constants` of a `Seen`, with the first constant; none where a value must be looked at."""
    tensors: list[tuple[str, np.dtype, tuple[int, ...], int]] = []
    constants: list[tuple[int, bytes]] = []
    constant_start, header_start = tail_start, envelope_end
    for name, value in values.items():
        if not isinstance(value, np.ndarray) or value.dtype == _BOOL:  # not every byte is a bool
            return [], []
        header_start += -header_start % 8
        data_start = header_start + HEADER_BYTES + 8 * value.ndim
        tensors.append((name, value.dtype, value.shape, data_start))
        constants.append((constant_start, frame[start + constant_start : start + data_start]))
        constant_start = header_start = data_start + value.nbytes
    return tensors, constants
