"""As much of HTTP/2 [RFC 9113] and of gRPC as it takes to write frames, right ones and others, and to read answers."""

import dataclasses
import re
import struct
from collections.abc import Iterable, Sequence

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES = 9
_STATUS = re.compile(rb"grpc-status(?:\x01|\x02)(\d{1,2})")
_CODE = re.compile(rb"jaxserve-code[\x01-\x40]([a-z_]+)")
_MESSAGE = re.compile(rb"grpc-message")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One frame; `length` is what it says, where that is not true."""
    said = len(payload) if length is None else length
    return said.to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def text(value: bytes) -> bytes:
    """A string of HPACK [RFC 7541], without Huffman's code."""
    return number(len(value), 7, 0) + value


def number(value: int, bits: int, first: int) -> bytes:
    """A number of HPACK whose first byte has other bits, too."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    encoded = bytearray((first | most,))
    value -= most
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(name: bytes, value: bytes) -> bytes:
    """A header that is not to be remembered."""
    return b"\0" + text(name) + text(value)


def call_headers(path: bytes, others: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """The headers of a call."""
    fixed = bytes((0x80 | 3, 0x80 | 6)) + header(b":path", path) + header(b":authority", b"fuzz")
    fixed += header(b"content-type", b"application/grpc") + header(b"te", b"trailers")
    return fixed + b"".join(header(name, value) for name, value in others)


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC; `length` is what it says, where that is not true."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def opening(settings: Sequence[tuple[int, int]] = ()) -> bytes:
    """How a client begins."""
    return PREFACE + frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings))


def data_frames(stream: int, body: bytes, *, ends: bool = True) -> bytes:
    """A body in frames of a size that every peer takes."""
    pieces = [body[start : start + 16384] for start in range(0, len(body), 16384)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if ends and index == last else 0, stream, piece) for index, piece in enumerate(pieces)
    )


@dataclasses.dataclass(slots=True)
class Heard:
    """What a server has sent.

    Attributes:
        status: of gRPC, of the first call that ended.
        code: jaxserve's own name for it.
        body: the messages of stream 1, as they came.
        is_over: whether stream 1 has ended.
        went_away: whether the server wants no more of this connection.
        wrong: what is no HTTP/2.
    """

    rest: bytes = b""
    first: bool = True
    status: int | None = None
    code: str = ""
    body: bytes = b""
    is_over: bool = False
    went_away: bool = False
    wrong: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Takes what came; what is to be said to it."""
        self.rest += data
        out: list[bytes] = []
        while len(self.rest) >= _HEAD_BYTES and self.wrong is None:
            length, kind, flags = int.from_bytes(self.rest[:3], "big"), self.rest[3], self.rest[4]
            stream = int.from_bytes(self.rest[5:9], "big") & 0x7FFFFFFF
            if self.first and kind not in (SETTINGS, GOAWAY):
                self.wrong = f"the first frame is of type {kind}: {self.rest[:80]!r}"
            if kind > CONTINUATION or length > 2**20:
                self.wrong = f"a frame of type {kind} and {length} bytes"
            if len(self.rest) < _HEAD_BYTES + length:
                break
            self.first = False
            payload = self.rest[_HEAD_BYTES : _HEAD_BYTES + length]
            self.rest = self.rest[_HEAD_BYTES + length :]
            out.append(self._take(kind, flags, stream, payload))
        return b"".join(out)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        answer = b""
        if kind == SETTINGS and not flags & ACK:
            answer = frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            answer = frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            self.went_away = True
        elif kind == DATA and stream == 1:
            self.body += payload
            answer = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", max(1, len(payload))))
        elif kind in (HEADERS, CONTINUATION) and self.status is None:
            found = _STATUS.search(payload)
            if found is not None:
                self.status = int(found[1])
                code = _CODE.search(payload)
                self.code = code[1].decode() if code is not None else ""
        if stream == 1 and (kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM)):
            self.is_over = True
        return answer

    def messages(self) -> list[bytes]:
        """Those of stream 1 that are complete."""
        found: list[bytes] = []
        rest = self.body
        while len(rest) >= 5:
            length = int.from_bytes(rest[1:5], "big")
            if len(rest) < 5 + length:
                break
            found.append(rest[5 : 5 + length])
            rest = rest[5 + length :]
        return found
