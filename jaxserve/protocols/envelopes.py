"""Envelopes: the msgpack array that opens every frame, from and to messages.

What is wrong is divided by who suffers from it. A frame whose envelope cannot be trusted, or that does not belong here,
is a `ProtocolError`: nothing after it can be trusted either, and the connection ends. An `Infer` whose id can be read
but whose content is wrong becomes a `BadInfer`, to be answered like any other request, and the connection goes on.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgpack
import numpy as np

from jaxserve.errors import InvalidInput, ProtocolError
from jaxserve.protocols import messages
from jaxserve.protocols.messages import Message, Value
from jaxserve.protocols.tensors import Buffer, Malformed, Unencodable, read_tensor
from jaxserve.request import check_priority, check_tenant

HELLO, WELCOME, INFER, RESULT, FAILURE, CANCEL, STATUS, DESCRIBE, REPORT, GOODBYE = range(1, 11)

MAX_ID = 2**63 - 1
MAX_ITEMS = 16384
"""The most elements that an array or a map inside an envelope may have: the most strings in one input."""
MAX_ELEMENTS = 8 * MAX_ITEMS
"""The most elements that all arrays and maps of an envelope may have together; key and value of a map are two."""
MAX_DEPTH = 16
"""The most arrays and maps that may stand inside one another, the envelope itself being the first."""
SMALLEST_FRAME_LIMIT_BYTES = 4096
"""The least that either end must accept; a handshake fits into it."""

End = Literal["server", "client"]
Parser = Callable[[list[Any], Buffer, int, int], Message]
"""Makes a message of (envelope, frame, offset of the first tensor, end of the frame)."""

# One packer for all: making one takes longer than using it. It runs no Python code half-way, so threads do not meet in
# it.
_pack = msgpack.Packer().pack


# Writing


def pack(value: Any) -> bytes:
    """The msgpack of an envelope, or of a part of one.

    Raises:
        Unencodable: it holds something that msgpack has no form for.
    """
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError) as error:  # another type, a lone surrogate, an int of 65 bits
        raise Unencodable(str(error)) from error


def control(message: Message) -> list[Any]:
    """The envelope of a message that carries no tensors."""
    match message:
        case messages.Hello(versions=versions, max_frame_bytes=limit, agent=agent, token=token):
            return [HELLO, 0, list(versions), limit, agent, *([token] if token else [])]
        case messages.Welcome(version=version, max_frame_bytes=limit, max_in_flight=max_in_flight, agent=agent):
            return [WELCOME, 0, version, limit, max_in_flight, agent]
        case messages.Failure(id=id, code=code, message=text, details=details):
            return [FAILURE, id, code, text, dict(details)]
        case messages.Cancel(id=id):
            return [CANCEL, id]
        case messages.StatusQuery(id=id):
            return [STATUS, id]
        case messages.DescribeQuery(id=id):
            return [DESCRIBE, id]
        case messages.Report(id=id, value=value):
            return [REPORT, id, value]
        case messages.Goodbye(grace_s=grace_s, reason=reason):
            return [GOODBYE, 0, grace_s, reason]
        case _:
            raise TypeError(f"{type(message).__name__} is not a message of the native protocol")


def split(values: Mapping[str, Value]) -> tuple[dict[str, list[str] | None], list[np.ndarray]]:
    """The envelope's part of named values, where None stands for the next tensor, and the tensors."""
    fields: dict[str, list[str] | None] = {}
    tensors: list[np.ndarray] = []
    strings = 0
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            fields[name] = None
            tensors.append(value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("=")))
        elif type(value) is list and all(type(item) is str for item in value):
            if len(value) > MAX_ITEMS:
                raise Unencodable(f"{name!r} has {len(value)} strings; at most {MAX_ITEMS} go into one request")
            strings += len(value)
            fields[name] = value
        else:
            raise Unencodable(f"{name!r} is a {type(value).__name__}; what travels are numpy arrays and lists of str")
    if _MOST_INFER_ELEMENTS + 2 * len(fields) + strings > MAX_ELEMENTS:
        raise Unencodable(
            f"{len(fields)} named values with {strings} strings in all; one frame takes {MAX_ELEMENTS} elements, "
            f"so send them in more than one request"
        )
    return fields, tensors


# Reading

# What cannot be trusted is measured before anything is made of it: nested arrays of one byte each would become objects
# of 64 bytes, and each array that is announced gets room for all its elements at once.

_MOST_INFER_ELEMENTS = 7
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_NUMBERS = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}


def _fixed_bytes(tag: int) -> int:
    if tag < 0x80 or tag >= 0xE0 or tag in (0xC0, 0xC2, 0xC3):
        return 1
    return tag - 0x9F if 0xA0 <= tag < 0xC0 else _NUMBERS.get(tag, 0)


_FIXED_BYTES = tuple(_fixed_bytes(tag) for tag in range(256))
"""What a scalar takes, by its first byte; 0 for all that has a length of its own or elements."""


def _check_size(packed: Buffer) -> None:
    """Raises ValueError for too many elements or too deep a nesting; most else that is wrong it leaves to msgpack."""
    end = len(packed)
    position = elements = 0
    outer: list[int] = []  # elements still to come in the arrays and maps around the innermost that is open
    missing = 1
    while position < end:
        while not missing:
            if not outer:
                return
            missing = outer.pop()
        missing -= 1
        tag = packed[position]
        fixed_bytes = _FIXED_BYTES[tag]
        if fixed_bytes:
            position += fixed_bytes
            continue
        position += 1
        if tag in _STRINGS:
            length_bytes = _STRINGS[tag]
            position += length_bytes + int.from_bytes(packed[position : position + length_bytes], "big")
            continue
        if tag < 0xA0:
            count = (tag & 15) * (2 if tag < 0x90 else 1)
        elif tag in _ARRAYS or tag in _MAPS:
            length_bytes = _ARRAYS.get(tag) or _MAPS[tag]
            count = int.from_bytes(packed[position : position + length_bytes], "big") * (2 if tag in _MAPS else 1)
            position += length_bytes
        else:
            raise ValueError(f"binary and extension objects (here 0x{tag:02x}) do not occur")
        elements += count
        if elements > MAX_ELEMENTS:
            raise ValueError(f"its arrays and maps have more than {MAX_ELEMENTS} elements together")
        outer.append(missing)
        missing = count
        if len(outer) > MAX_DEPTH:
            raise ValueError(f"its arrays and maps are nested more than {MAX_DEPTH} deep")


def unpack(packed: Buffer) -> list[Any]:
    """The envelope, checked as far as its type and id.

    Raises:
        ProtocolError: it is not the msgpack that is allowed here.
    """
    try:
        if len(packed) > MAX_DEPTH:  # smaller ones cannot be too deep
            _check_size(packed)
        envelope = msgpack.unpackb(
            packed, strict_map_key=True, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_bin_len=0, max_ext_len=0
        )
    except ValueError as error:
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"the envelope of a frame is not the msgpack that is allowed here: {reason}") from error
    if type(envelope) is not list or len(envelope) < 2:
        raise ProtocolError("the envelope of a frame is not an array of a type, an id and what the type demands")
    kind, id = envelope[0], envelope[1]
    if type(kind) is not int or type(id) is not int or not 0 <= id <= MAX_ID:
        raise ProtocolError("the envelope of a frame does not begin with a type and an id from 0 to 2**63 - 1")
    return envelope


def _parse_infer(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    id = envelope[1]
    if id == 0:
        raise ProtocolError("a request with id 0, which stands for the connection itself")
    try:
        match envelope:
            case [_, _, deadline_s, model, fields]:
                priority, tenant = 0, ""
            case [_, _, deadline_s, model, fields, priority, tenant]:
                check_priority(priority)
                check_tenant(tenant)
            case _:
                raise Malformed(f"an infer of {len(envelope)} elements; 5 are needed, or 7 with priority and tenant")
        if type(model) is not str:
            raise Malformed(f"the model's name is a {type(model).__name__}, not a str")
        if deadline_s is not None and not (type(deadline_s) is float and 0.0 < deadline_s < math.inf):
            deadline_s = _deadline(deadline_s)
        inputs = _read_fields(fields, frame, position, end)
    except (Malformed, InvalidInput) as error:
        return messages.BadInfer(id, InvalidInput(f"malformed request: {error}"))
    return messages.Infer(id, model, deadline_s, inputs, priority, tenant)


def _deadline(value: Any) -> float:
    if type(value) is int and value > 0:
        return float(value)
    raise Malformed(
        f"deadline_s is {reprlib.repr(value)}; it must be a finite number of seconds above 0, "
        f"or nil for the model's default"
    )


def _parse_result(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    try:
        _, id, fields = envelope
        return messages.Result(id, _read_fields(fields, frame, position, end))
    except ValueError as error:
        raise ProtocolError(f"a malformed result: {error}") from error


def _read_fields(fields: Any, frame: Buffer, position: int, end: int) -> dict[str, Value]:
    if type(fields) is not dict:
        raise Malformed(f"named values must be a map, not a {type(fields).__name__}")
    values: dict[str, Value] = {}
    for name, value in fields.items():
        if value is None:
            try:
                values[name], position = read_tensor(frame, position, end)
            except Malformed as error:
                raise Malformed(f"{name!r:.80}: {error}") from error
        elif type(value) is list and all(type(item) is str for item in value):
            values[name] = value
        else:
            raise Malformed(f"{name!r:.80} must be nil (for a tensor) or an array of strings")
    if position != end:
        raise Malformed(f"{end - position} bytes are left over behind the last tensor")
    return values


def _expect(envelope: list[Any], name: str, *kinds: type | tuple[type, ...], more_allowed: bool = False) -> None:
    """Checks what stands behind type and id."""
    fields = envelope[2:]
    if len(fields) < len(kinds) or (len(fields) > len(kinds) and not more_allowed):
        raise ProtocolError(f"a {name} of {len(envelope)} elements; {2 + len(kinds)} are needed")
    for index, (field, kind) in enumerate(zip(fields, kinds, strict=False), start=2):
        if not isinstance(field, kind) or isinstance(field, bool):
            raise ProtocolError(f"element {index} of a {name} is a {type(field).__name__}")


def _no_tensors(position: int, end: int) -> None:
    if position != end:
        raise ProtocolError(f"{end - position} bytes behind the envelope of a message that carries no tensors")


# Elements that are added to a hello or a welcome must not keep an old peer from reading which versions are spoken.


def _parse_hello(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    _no_tensors(position, end)
    _expect(envelope, "hello", list, int, str, more_allowed=True)
    _, _, versions, max_frame_bytes, agent = envelope[:5]
    if not versions:
        raise ProtocolError("the versions in a hello are an empty array; it must name at least one")
    if any(type(version) is not int for version in versions):
        raise ProtocolError("the versions in a hello are not an array of integers")
    token = envelope[5] if len(envelope) > 5 and isinstance(envelope[5], str) else ""
    return messages.Hello(versions, _frame_limit(max_frame_bytes), agent, token)


def _parse_welcome(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    _no_tensors(position, end)
    _expect(envelope, "welcome", int, int, int, str, more_allowed=True)
    _, _, version, max_frame_bytes, max_in_flight, agent = envelope[:6]
    if max_in_flight < 1:
        raise ProtocolError(f"a welcome that allows {max_in_flight} requests in flight")
    return messages.Welcome(version, _frame_limit(max_frame_bytes), max_in_flight, agent)


def _frame_limit(value: int) -> int:
    if not SMALLEST_FRAME_LIMIT_BYTES <= value <= 2**32 - 1:
        raise ProtocolError(
            f"a frame limit of {value} bytes; it must be from {SMALLEST_FRAME_LIMIT_BYTES} to 2**32 - 1"
        )
    return value


def _parse_failure(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    _no_tensors(position, end)
    _expect(envelope, "failure", str, str, dict)
    _, id, code, text, details = envelope
    for name, detail in details.items():
        if not isinstance(name, str) or not isinstance(detail, str | int | float):
            raise ProtocolError(f"detail {name!r} of a failure is not a str, an int or a float under a str")
    return messages.Failure(id, code, text, details)


def _parse_report(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    _no_tensors(position, end)
    if len(envelope) != 3:
        raise ProtocolError(f"a report of {len(envelope)} elements; 3 are needed")
    return messages.Report(envelope[1], envelope[2])


def _parse_goodbye(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
    _no_tensors(position, end)
    _expect(envelope, "goodbye", (int, float), str)
    return messages.Goodbye(float(envelope[2]), envelope[3])


def _parser_of(name: str, make: Callable[[int], Message]) -> Parser:
    """The parser of a message that is nothing but an id."""

    def parse(envelope: list[Any], frame: Buffer, position: int, end: int) -> Message:
        _no_tensors(position, end)
        _expect(envelope, name)
        return make(envelope[1])

    return parse


BEFORE_HANDSHAKE: Mapping[str, Mapping[int, Parser]] = {
    "server": {HELLO: _parse_hello},
    "client": {WELCOME: _parse_welcome, FAILURE: _parse_failure},
}
AFTER_HANDSHAKE: Mapping[str, Mapping[int, Parser]] = {
    "server": {
        INFER: _parse_infer,
        CANCEL: _parser_of("cancel", messages.Cancel),
        STATUS: _parser_of("status query", messages.StatusQuery),
        DESCRIBE: _parser_of("describe query", messages.DescribeQuery),
    },
    "client": {
        RESULT: _parse_result,
        FAILURE: _parse_failure,
        REPORT: _parse_report,
        GOODBYE: _parse_goodbye,
    },
}
