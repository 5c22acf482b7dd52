"""What is sent to a gRPC server: calls whose messages are damaged, and frames that are no right HTTP/2."""

import dataclasses
import gzip
import random
import struct
from collections.abc import Callable, Sequence

from jaxserve.protocols.grpc_messages import HEALTH, INFERENCE, methods
from tests.fuzzing import h2
from tests.fuzzing.grpc_requests import grpc_request
from tests.fuzzing.mutations import damage

_METHODS = tuple(methods(INFERENCE))
_HEADERS: Sequence[tuple[bytes, Sequence[bytes]]] = (
    (b"grpc-timeout", (b"1S", b"0n", b"-1S", b"1e9S", b"99999999999H", b"S", b"", b"1X", b"\xff", b"100m", b"1u")),
    (b"grpc-encoding", (b"gzip", b"deflate", b"br", b"identity", b"", b"gzip, gzip")),
    (b"grpc-accept-encoding", (b"gzip", b"x" * 500, b"")),
    (b"x-request-id", (b"a", b"x" * 3000, b"a b", b"\xff")),
    (b"x-tenant", (b"t", b"t" * 500, b"\xc3\xbc", b"\x01")),
    (b"traceparent", (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"zz", b"")),
    (b"authorization", (b"Bearer x", b"Bearer", b"x" * 3000)),
    (b"x-bin", (b"AAAA", b"!!!!", b"A")),
    (b"content-type", (b"application/grpc+json", b"text/plain", b"")),
    (b"te", (b"gzip",)),
    (b"user-agent", (b"x" * 2000,)),
    (b"content-length", (b"5", b"-1", b"x")),
)
_BOMB = gzip.compress(bytes(2**23), 9, mtime=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Frames:
    """What goes over one connection.

    Attributes:
        data: all of it.
        is_call: whether it is one call, whatever its message, so that it must end with a status.
        answers: how many messages must come before that; None where nobody can say.
    """

    data: bytes
    is_call: bool
    answers: int | None = None


_WINDOW_BYTES = 60_000
"""What may be sent of a call before the server has said that it takes more."""


def traffic(rng: random.Random) -> Frames:
    """Calls and games."""
    kind = rng.random()
    if kind < 0.35:
        return _call(rng)
    if kind < 0.45:
        return _stream(rng)
    if kind < 0.6:
        return _other_call(rng)
    if kind < 0.9:
        return Frames(_GAMES[rng.randrange(len(_GAMES))](rng), False)
    return Frames(damage(rng, _call(rng).data, _GAMES[rng.randrange(len(_GAMES))](rng)), False)


def right_call() -> Frames:
    """A call that is as it should be."""
    path = f"/{INFERENCE}/ServerLive".encode()
    return Frames(_written(path, h2.message(b"")), True, 1)


def _written(path: bytes, body: bytes, others: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    head = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.call_headers(path, others))
    return h2.opening() + head + h2.data_frames(1, body)


def _request(rng: random.Random) -> bytes:
    data = grpc_request(rng).SerializeToString()
    return damage(rng, data, grpc_request(rng).SerializeToString()) if rng.random() < 0.6 else data


def _call(rng: random.Random) -> Frames:
    """`ModelInfer`."""
    path = f"/{INFERENCE}/ModelInfer".encode()
    others = [(b"grpc-timeout", rng.choice((b"5S", b"1m", b"1n", b"100m")))] if rng.random() < 0.2 else []
    body = h2.message(_request(rng))
    return Frames(_written(path, body, others), len(body) <= _WINDOW_BYTES)


def _stream(rng: random.Random) -> Frames:
    """`ModelStreamInfer`: each request is answered, whatever it is."""
    count = rng.choice((0, 1, 2, 5, 20))
    body = b"".join(h2.message(_request(rng)) for _ in range(count))
    is_call = len(body) <= _WINDOW_BYTES
    return Frames(_written(f"/{INFERENCE}/ModelStreamInfer".encode(), body), is_call, count if is_call else None)


def _other_call(rng: random.Random) -> Frames:
    """Other methods, unknown ones, odd headers, odd messages."""
    method = rng.choice(_METHODS)
    path = rng.choice(
        (
            f"/{INFERENCE}/{method}".encode(),
            f"/{INFERENCE}/{method}".encode(),
            f"/{INFERENCE}/{method}".encode(),
            f"/{HEALTH}/Check".encode(),
            b"/inference.GRPCInferenceService/Nothing",
            b"/x/y",
            b"/" + b"x" * 3000,
            b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        )
    )
    data = rng.choice((b"", b"\x0a\x08identity", b"\x0a\x06nobody", b"\x12\x01\x39", b"\xff" * 20, rng.randbytes(30)))
    body = rng.choice(
        (
            h2.message(data),
            h2.message(data),
            b"",
            h2.message(data) * 3,
            h2.message(gzip.compress(data), flag=1),
            h2.message(_BOMB, flag=1),
            h2.message(data, flag=rng.choice((1, 2, 255))),
            h2.message(data, length=2**32 - 1),
            h2.message(data, length=len(data) + 1),
            h2.message(data)[:3],
            h2.message(bytes(100_000)),
        )
    )
    others: list[tuple[bytes, bytes]] = []
    for _ in range(rng.choice((0, 1, 1, 2, 40))):
        name, values = rng.choice(_HEADERS)
        others.append((name, rng.choice(values)))
    return Frames(_written(path, body, others), False)


# Games with frames


def _bad_preface(rng: random.Random) -> bytes:
    return rng.choice(
        (
            h2.PREFACE[: rng.randint(0, len(h2.PREFACE))],
            damage(rng, h2.PREFACE),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            h2.PREFACE * 3,
            h2.PREFACE + h2.frame(h2.DATA, 0, 1, b"x"),
            rng.randbytes(300),
            b"\x16\x03\x01\x02\x00" + bytes(100),
        )
    )


def _settings(rng: random.Random) -> bytes:
    values = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 16383, 16384, 2**24)
    setting = [
        (rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 0xFE03, 65535)), rng.choice(values))
        for _ in range(rng.choice((1, 3, 100)))
    ]
    payload = b"".join(struct.pack(">HI", *each) for each in setting)
    return h2.opening() + rng.choice(
        (
            h2.frame(h2.SETTINGS, 0, 0, payload),
            h2.frame(h2.SETTINGS, 0, 0, payload) * 300,
            h2.frame(h2.SETTINGS, 0, 1, payload),
            h2.frame(h2.SETTINGS, h2.ACK, 0, payload),
            h2.frame(h2.SETTINGS, h2.ACK, 0) * 1000,
            h2.frame(h2.SETTINGS, 0, 0, payload + b"x"),
        )
    )


def _headers(rng: random.Random) -> bytes:
    block = h2.call_headers(f"/{INFERENCE}/ModelInfer".encode())
    return (
        h2.opening()
        + rng.choice(
            (
                h2.frame(h2.HEADERS, 0, 1, block),  # without an end
                h2.frame(h2.HEADERS, 0, 1, block) + h2.frame(h2.PING, 0, 0, bytes(8)),
                h2.frame(h2.HEADERS, 0, 1, block[:10]) + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[10:]),
                h2.frame(h2.HEADERS, 0, 1, block)
                + h2.frame(h2.CONTINUATION, 0, 1, h2.header(b"a", b"b")) * rng.choice((10, 3000)),
                h2.frame(h2.HEADERS, 0, 1, b"") + h2.frame(h2.CONTINUATION, 0, 1, b"") * 5000,
                h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block),
                h2.frame(h2.HEADERS, h2.END_HEADERS, rng.choice((0, 2, 2**31 - 1)), block),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 5, block) + h2.frame(h2.HEADERS, h2.END_HEADERS, 3, block),
                h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\xff" + block),
                h2.frame(h2.HEADERS, h2.END_HEADERS | h2.HAS_PRIORITY, 1, struct.pack(">IB", 1, 255) + block),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, damage(rng, block)),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.header(b"UPPER", b"x") + block),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block + h2.header(b":path", b"/x")),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block + h2.header(b"a\r\nb", b"c\r\nd\x00")),
                h2.frame(
                    h2.HEADERS,
                    h2.END_HEADERS,
                    1,
                    block + b"".join(h2.header(b"x%d" % i, b"y" * 50) for i in range(200)),
                ),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block + h2.header(b"x", b"y" * 16000)),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x0f" + block),  # a table of gigabytes
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x20" * 3000 + block),
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x00\x81\xff\x81\xff" + block),  # Huffman
                h2.frame(h2.HEADERS, h2.END_HEADERS, 1, bytes((0x80 | 2, 0x80 | 7)) + h2.header(b":path", b"/")),  # GET
            )
        )
    )


def _storm(rng: random.Random) -> bytes:
    """Many calls on one connection, reset, or left alone."""
    block = h2.call_headers(f"/{INFERENCE}/{rng.choice(_METHODS)}".encode())
    count = rng.choice((10, 100, 500, 1500))
    parts = [h2.opening()]
    body = rng.choice((None, h2.message(_request(rng)), h2.message(b"", length=2**31)))
    is_reset = rng.random() < 0.7
    for stream in range(1, 2 * count, 2):
        parts.append(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block))
        if body is not None and len(body) < 5000:
            parts.append(h2.data_frames(stream, body, ends=rng.random() < 0.8))
        if is_reset:
            parts.append(h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", rng.choice((0, 5, 8, 99)))))
    return b"".join(parts)


def _windows(rng: random.Random) -> bytes:
    update = h2.frame(
        h2.WINDOW_UPDATE, 0, rng.choice((0, 1, 7)), struct.pack(">I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1)))
    )
    head = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.call_headers(f"/{INFERENCE}/ModelInfer".encode()))
    settings = [(4, rng.choice((0, 1, 2**31 - 1)))]
    return (
        h2.opening(settings) + head + update * rng.choice((1, 3, 1000)) + h2.data_frames(1, h2.message(_request(rng)))
    )


def _pings(rng: random.Random) -> bytes:
    return h2.opening() + rng.choice(
        (
            h2.frame(h2.PING, 0, 0, bytes(8)) * rng.choice((1, 3, 2000)),
            h2.frame(h2.PING, h2.ACK, 0, bytes(8)) * 100,
            h2.frame(h2.PING, 0, 0, bytes(7)),
            h2.frame(h2.PING, 0, 3, bytes(8)),
        )
    )


def _odd_frames(rng: random.Random) -> bytes:
    frames = (
        h2.frame(h2.DATA, 0, 1, b"idle"),
        h2.frame(h2.DATA, 0, 0, b"zero"),
        h2.frame(h2.DATA, h2.PADDED, 1, b"\xff1"),
        h2.frame(h2.PRIORITY, 0, 1, struct.pack(">IB", 1, 0)) * rng.choice((1, 500)),
        h2.frame(h2.PRIORITY, 0, 0, b"12345"),
        h2.frame(h2.RST_STREAM, 0, 1, bytes(4)),
        h2.frame(h2.RST_STREAM, 0, 0, bytes(4)),
        h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(4)),
        h2.frame(h2.GOAWAY, 0, 0, bytes(8)),
        h2.frame(h2.GOAWAY, 0, 0, bytes(3)),
        h2.frame(rng.randint(10, 255), rng.randrange(256), rng.choice((0, 1)), rng.randbytes(20))
        * rng.choice((1, 100)),
        h2.frame(h2.DATA, 0, 1, b"short", length=2**24 - 1),
        h2.frame(h2.SETTINGS, 0, 0, b"", length=2**24 - 1),
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"", length=70000),
        rng.randbytes(9),
    )
    head = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.call_headers(f"/{INFERENCE}/ModelInfer".encode()))
    parts = [rng.choice(frames) for _ in range(rng.choice((1, 2, 4)))]
    if rng.random() < 0.5:
        parts.insert(0, head)
    return h2.opening() + b"".join(parts)


_GAMES: Sequence[Callable[[random.Random], bytes]] = (
    _bad_preface, _settings, _headers, _headers, _headers, _storm, _windows, _pings, _odd_frames, _odd_frames,
)  # fmt: skip
