"""The native protocol's codec: bytes to messages and back, with no I/O. The specification is docs/native-protocol.md.

    frame = u32 body length | u32 envelope length | envelope | padding | tensor | padding | tensor ...

The envelope is a msgpack array that begins with the message's type and id. Every part starts at a multiple of 8 and
every frame takes a multiple of 8 bytes, so that tensors are aligned wherever a frame lies among others.

Both `ProtocolError` and `BadInfer` (see `envelopes`) are values in what `Decoder.feed` returns, in order of arrival,
so that what came before an error is still seen.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.errors import (
    ConnectionLost,
    FrameTooLarge,
    InferenceError,
    ProtocolError,
    Unauthenticated,
    VersionMismatch,
)
from jaxserve.protocols import envelopes, messages, shortcuts
from jaxserve.protocols.envelopes import SMALLEST_FRAME_LIMIT_BYTES
from jaxserve.protocols.messages import Message, Value
from jaxserve.protocols.shortcuts import HEAD, LARGEST_FRAME_BYTES
from jaxserve.protocols.tensors import PADDING, Buffer

PREAMBLE = b"jaxserve"
"""What each end sends before its first frame."""

VERSIONS: Sequence[int] = (1,)
"""The versions that this codec speaks, best last."""

AGENT = "jaxserve"
"""How both ends introduce themselves."""

DEFAULT_MAX_FRAME_BYTES = 64 * 2**20

_LONGEST_MESSAGE = 2000
_LONGEST_DETAIL = 200
_SHORTEST_MESSAGE_BYTES = 1024  # with a code, an id and a few details it fits into the least that a peer accepts

_LENGTH = struct.Struct("<I")

Ending = ProtocolError | Unauthenticated | ConnectionLost
"""Why a connection ends: its peer broke a rule, shows no token that is known, or is one too many."""

_CONNECTION_ERRORS: Mapping[str, type[Ending]] = {
    "protocol_error": ProtocolError,
    "frame_too_large": FrameTooLarge,
    "version_mismatch": VersionMismatch,
    "unauthenticated": Unauthenticated,
    "too_many_connections": ConnectionLost,
}


def encode(message: Message, *, max_frame_bytes: int = LARGEST_FRAME_BYTES) -> list[Buffer]:
    """The buffers of one frame, in order; tensor data above a few KiB is not copied.

    Raises:
        FrameTooLarge: the frame would be over `max_frame_bytes`, the peer's limit.
        Unencodable: a value that the wire has no form for.
    """
    match message:
        case messages.Infer(id=id, model=model, deadline_s=deadline_s, inputs=inputs, priority=priority, tenant=tenant):
            return encode_infer(
                id, model, deadline_s, inputs, priority=priority, tenant=tenant, max_frame_bytes=max_frame_bytes
            )
        case messages.Result(id=id, outputs=outputs):
            return encode_result(id, outputs, max_frame_bytes=max_frame_bytes)
        case messages.BadInfer():
            raise TypeError("a BadInfer says what was received; it is never sent")
        case _:
            return _encode_control(envelopes.control(message), max_frame_bytes)


def encode_infer(
    id: int,
    model: str,
    deadline_s: float | None,
    inputs: Mapping[str, Value],
    *,
    priority: int = 0,
    tenant: str = "",
    max_frame_bytes: int = LARGEST_FRAME_BYTES,
) -> list[Buffer]:
    """`encode` of an `Infer`, without making one."""
    return shortcuts.write_infer(id, model, deadline_s, inputs, priority, tenant, max_frame_bytes)


def encode_result(id: int, outputs: Mapping[str, Value], *, max_frame_bytes: int = LARGEST_FRAME_BYTES) -> list[Buffer]:
    """`encode` of a `Result`, without making one."""
    return shortcuts.write_result(id, outputs, max_frame_bytes)


def failure(id: int, error: InferenceError) -> messages.Failure:
    """The message that tells a client what became of its request, without most of what is very long in it."""
    details = {
        name: _shortened(detail, _LONGEST_DETAIL) if isinstance(detail, str) else detail
        for name, detail in error.details.items()
    }
    return messages.Failure(id, error.code, _shortened(str(error), _LONGEST_MESSAGE), details)


def encode_failure(message: messages.Failure, *, max_frame_bytes: int) -> list[Buffer]:
    """`encode` of a `Failure`, cut down to the peer's limit where it is over it.

    Raises:
        Unencodable: a value that the wire has no form for.
    """
    try:
        return encode(message, max_frame_bytes=max_frame_bytes)
    except FrameTooLarge:
        text = message.message.encode()[:_SHORTEST_MESSAGE_BYTES].decode(errors="ignore")
        message = messages.Failure(message.id, message.code, text, message.details)
    try:
        return encode(message, max_frame_bytes=max_frame_bytes)
    except FrameTooLarge:
        return encode(messages.Failure(message.id, message.code, text, {}), max_frame_bytes=max_frame_bytes)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def connection_failure(error: Ending) -> messages.Failure:
    """The message that ends a connection."""
    code = next((code for code, kind in _CONNECTION_ERRORS.items() if type(error) is kind), "protocol_error")
    return messages.Failure(0, code, _shortened(str(error), _LONGEST_MESSAGE), {})


def connection_error(message: messages.Failure) -> Ending:
    """The error that a `connection_failure` stands for."""
    return _CONNECTION_ERRORS.get(message.code, ProtocolError)(message.message)


def _encode_control(envelope: list[Any], max_frame_bytes: int) -> list[Buffer]:
    packed = envelopes.pack(envelope)
    body = packed + PADDING[-len(packed) % 8]
    body_bytes = 4 + len(body)
    if body_bytes > max_frame_bytes:
        raise FrameTooLarge(f"a frame of {body_bytes} bytes is over the receiver's limit of {max_frame_bytes}")
    return [HEAD.pack(body_bytes, len(packed)) + body]


class Decoder:
    """Bytes in, messages out, whatever the pieces in which the bytes arrive.

    It never holds more than one unfinished frame, and makes room for that frame only after its length was found to be
    within the limit. Tensors are views: of the chunk that was fed, where their frame lies in it whole and aligned, else
    of the one buffer into which their frame was collected.

    Args:
        end: which end of the connection this is; it decides what may be received.
        max_frame_bytes: the largest body (what the length prefix counts) that is accepted.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_failed",
        "_filled_bytes",
        "_head",
        "_limit",
        "_max_frame_bytes",
        "_parsers",
        "_preamble_bytes",
        "_recall",
    )

    def __init__(self, *, end: envelopes.End, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self._end: envelopes.End = end
        self._max_frame_bytes = max_frame_bytes
        self._limit = SMALLEST_FRAME_LIMIT_BYTES  # until the handshake is done
        self._parsers = envelopes.BEFORE_HANDSHAKE[end]
        self._recall = shortcuts.recall_nothing
        self._failed = False
        self._preamble_bytes = 0
        self._head = b""  # the start of a frame's head, where a chunk ended inside it
        self._buffer: memoryview | None = None  # the frame that is being collected
        self._filled_bytes = 0

    def feed(self, data: bytes) -> list[Message | ProtocolError]:
        """The messages that `data` completes.

        A `ProtocolError` is the last element, if there is one; from then on everything that is fed is ignored.
        """
        received: list[Message | ProtocolError] = []
        if self._failed:
            return received
        try:
            self._read(data, received)
        except ProtocolError as error:
            self._failed = True
            self._buffer = None
            received.append(error)
        return received

    def _read(self, data: bytes, received: list[Message | ProtocolError]) -> None:
        position = 0
        if self._preamble_bytes < len(PREAMBLE):
            position = self._check_preamble(data)
        if self._buffer is not None or self._head:
            position = self._resume(data, position, received)
        stop = len(data)
        while stop - position >= HEAD.size:
            lengths = HEAD.unpack_from(data, position)
            body_bytes = lengths[0]
            if body_bytes > self._limit or body_bytes & 7 != 4:
                raise self._bad_length(body_bytes)
            end = position + _LENGTH.size + body_bytes
            if end > stop:
                break
            if position & 7:  # a copy is aligned again
                data = data[position:]
                position, end, stop = 0, end - position, stop - position
            message = self._recall(data, position, lengths)
            if message is None:
                message = self._parse(data, position, lengths)
                shortcuts.learn(data, position, lengths, message)
            received.append(message)
            position = end
        if position < stop:
            self._keep(memoryview(data)[position:])

    def _check_preamble(self, data: bytes) -> int:
        expected = PREAMBLE[self._preamble_bytes :]
        seen = data[: len(expected)]
        if not expected.startswith(seen):
            raise ProtocolError(
                f"the peer does not speak jaxserve's native protocol: it began with "
                f"{(PREAMBLE[: self._preamble_bytes] + data)[:16]!r} in place of {PREAMBLE!r}"
            )
        self._preamble_bytes += len(seen)
        return len(seen)

    def _keep(self, rest: memoryview) -> None:
        """Puts the start of an unfinished frame aside."""
        if len(rest) >= _LENGTH.size:
            (body_bytes,) = _LENGTH.unpack_from(rest)
            if body_bytes > self._limit or body_bytes & 7 != 4:
                raise self._bad_length(body_bytes)
        if len(rest) < HEAD.size:
            self._head = bytes(rest)
            return
        (body_bytes,) = _LENGTH.unpack_from(rest)
        # Not a bytearray: that would touch every page of what a peer has only announced.
        self._buffer = np.empty(_LENGTH.size + body_bytes, np.uint8).data
        self._buffer[: len(rest)] = rest
        self._filled_bytes = len(rest)

    def _resume(self, data: bytes, position: int, received: list[Message | ProtocolError]) -> int:
        """Goes on with the frame that was put aside; returns where the next one starts."""
        if self._buffer is None:
            missing_bytes = HEAD.size - len(self._head)
            head = self._head + data[position : position + missing_bytes]
            position += len(head) - len(self._head)
            self._head = b""
            self._keep(memoryview(head))
            if self._buffer is None:
                return position
        taken_bytes = min(len(self._buffer) - self._filled_bytes, len(data) - position)
        filled_bytes = self._filled_bytes + taken_bytes
        self._buffer[self._filled_bytes : filled_bytes] = memoryview(data)[position : position + taken_bytes]
        self._filled_bytes = filled_bytes
        if filled_bytes == len(self._buffer):
            frame, self._buffer = self._buffer.toreadonly(), None
            received.append(self._parse(frame, 0, HEAD.unpack_from(frame)))
        return position + taken_bytes

    def _bad_length(self, body_bytes: int) -> ProtocolError:
        if body_bytes > self._limit:
            return FrameTooLarge(f"a frame of {body_bytes} bytes; at most {self._limit} are accepted here")
        return ProtocolError(f"a frame length of {body_bytes}; with its prefix of 4 it must be a multiple of 8")

    def _parse(self, frame: Buffer, start: int, lengths: tuple[int, int]) -> Message:
        body_bytes, envelope_bytes = lengths
        end = start + _LENGTH.size + body_bytes
        envelope_start = start + HEAD.size
        envelope_end = envelope_start + envelope_bytes
        if envelope_end > end:
            raise ProtocolError(
                f"an envelope of {envelope_bytes} bytes in a frame that has room for {end - envelope_start}"
            )
        envelope = envelopes.unpack(frame[envelope_start:envelope_end])
        kind = envelope[0]
        parser = self._parsers.get(kind)
        if parser is None:
            raise ProtocolError(
                f"a message of type {kind}, which may not arrive at the {self._end}"
                + (" before the handshake" if self._parsers is envelopes.BEFORE_HANDSHAKE[self._end] else "")
            )
        message = parser(envelope, frame, envelope_end + (-envelope_bytes & 7), end)
        if isinstance(message, messages.Infer):
            message.size_bytes = end - start
        elif isinstance(message, messages.Hello | messages.Welcome):
            self._limit = self._max_frame_bytes
            self._parsers = envelopes.AFTER_HANDSHAKE[self._end]
            self._recall = shortcuts.RECALL[self._end]
        return message
