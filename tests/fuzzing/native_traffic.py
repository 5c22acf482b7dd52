"""What is sent over the native protocol: right messages, and what damage makes of them."""

import random
import struct
from typing import Any

import msgpack
import numpy as np

from jaxserve.protocols import messages, native
from jaxserve.protocols.datatypes import Value
from jaxserve.protocols.tensors import DTYPES
from tests.fuzzing.mutations import damage, hostile_value

_TEXTS = ("", "a", "two words", "\u00fc\U0001f600", "x" * 300, "\0")
_NAMES = ("x", "text", "counts", "", "\u00fc", "a" * 200)


def array(rng: random.Random) -> np.ndarray:
    """An array of any dtype and of any bytes that it may have."""
    dtype = rng.choice(list(DTYPES.values()))
    shape = tuple(rng.choice((0, 1, 1, 2, 3, 5)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))))
    size = int(np.prod(shape, dtype=np.int64))
    data = rng.randbytes(size * dtype.itemsize)
    if dtype == np.bool_:
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape)


def value(rng: random.Random) -> Value:
    """An array, or texts."""
    return array(rng) if rng.random() < 0.7 else [rng.choice(_TEXTS) for _ in range(rng.randint(0, 4))]


def named_values(rng: random.Random) -> dict[str, Value]:
    """Up to four of them."""
    return {rng.choice(_NAMES[:3]) + str(index): value(rng) for index in range(rng.choice((0, 1, 1, 1, 2, 4)))}


def inputs_that_fit(rng: random.Random) -> tuple[str, dict[str, Value]]:
    """A model of `tests/protocols_live/models.py` and inputs that it takes."""
    rows = rng.choice((1, 1, 2))
    match rng.randrange(4):
        case 0:
            return "identity", {"x": np.ones((rows, 128), np.float32)}
        case 1:
            return rng.choice(("affine", "fails", "gated", "spare")), {"x": np.full((rows, 4), rows - 1.5, np.float32)}
        case 2:
            return "letters", {"text": ["one", "zwei"][:rows]}
        case _:
            return "every", {dtype.name: np.zeros((rows, 3), dtype) for dtype in DTYPES.values()}


def from_client(rng: random.Random) -> messages.Message:
    """A message that a client may send."""
    id = rng.choice((1, 2, 3, rng.getrandbits(62) + 1, 2**63 - 1))
    match rng.randrange(12):
        case 0:
            return messages.Cancel(id)
        case 1:
            return messages.StatusQuery(id)
        case 2:
            return messages.DescribeQuery(id)
        case 3 | 4:
            model, inputs = rng.choice(("identity", "nobody", "", "\0")), named_values(rng)
        case _:
            model, inputs = inputs_that_fit(rng)
    deadline_s = rng.choice((None, None, 5.0, 1e-9, 1e300, 0.001))
    return messages.Infer(
        id, model, deadline_s, inputs, rng.choice((0, 0, -10, 10)), rng.choice(("", "", "team", "x" * 128))
    )


def from_server(rng: random.Random) -> messages.Message:
    """A message that a server may send."""
    id = rng.getrandbits(62) + 1
    match rng.randrange(5):
        case 0:
            return messages.Failure(id, "invalid_input", rng.choice(_TEXTS), {"a": 1, "b": 0.5, "c": "d"})
        case 1:
            return messages.Report(id, {"a": [1, None, True, {"b": 0.5}], "": rng.choice(_TEXTS)})
        case 2:
            return messages.Goodbye(rng.random(), rng.choice(_TEXTS))
        case _:
            return messages.Result(id, named_values(rng))


def encoded(message: messages.Message) -> bytes:
    """Its bytes."""
    return b"".join(native.encode(message))


def hello(rng: random.Random | None = None) -> bytes:
    """How a client begins."""
    limit = 2**26 if rng is None else rng.choice((2**26, 4096, 2**32 - 1))
    return native.PREAMBLE + encoded(messages.Hello([1], limit, "fuzzer"))


def hostile_frame(rng: random.Random) -> bytes:
    """A frame whose lengths are right and whose content is anything."""
    kind = rng.choice((0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, 2**40, None, "x", 3.0))
    envelope: list[Any] = [
        kind,
        rng.choice((1, 0, -1, 2**63, 7, None, "1", True)),
        *(_plain(rng) for _ in range(rng.randint(0, 6))),
    ]
    if rng.random() < 0.5:
        envelope = [
            3,
            rng.getrandbits(20) + 1,
            rng.choice((None, 1.0, _plain(rng))),
            "identity",
            {"x": rng.choice((None, ["a"], _plain(rng)))},
        ]
        envelope += rng.choice(([], [], [0, ""], [_plain(rng), _plain(rng)], [11, "x"], [0, "x" * 200]))
    try:
        packed = msgpack.packb(envelope)
    except (OverflowError, ValueError, UnicodeEncodeError):
        packed = b"\xc1"
    assert packed is not None
    if rng.random() < 0.2:
        packed = damage(rng, packed)
    tensor = b""
    if rng.random() < 0.6:
        shape = rng.choice(
            ((2,), (1, 128), (0,), (2**31, 2**31), (2**62, 4), (-1,), (-1, -2), (2**63 - 1, 0), (), (1,) * 33, (2**40,))
        )
        data = bytes(rng.choice((0, 8, 512)))
        claim = rng.choice((2 + 8 * len(shape) + len(data), 0, 2**32 - 1, 2 + 8 * len(shape)))
        head = struct.pack(">BIbBB", 0xC9, claim, rng.choice((1, 1, 1, 2)), rng.choice((12, 12, 1, 11, 99)), len(shape))
        tensor = head + struct.pack(f"<{len(shape)}q", *shape) + data
        tensor += bytes(-len(tensor) % 8)
    body = struct.pack("<I", len(packed)) + packed + bytes(-len(packed) % 8) + tensor
    return struct.pack("<I", len(body)) + body


def _plain(rng: random.Random) -> Any:
    found = hostile_value(rng)
    return rng.choice((found, found, [found] * 3, b"bytes", msgpack.ExtType(5, b"x"), 2**64 - 1))


def stream(rng: random.Random) -> tuple[bytes, bool]:
    """What a client sends over one connection, and whether it is right from beginning to end."""
    kind = rng.random()
    right = [encoded(from_client(rng)) for _ in range(rng.choice((1, 1, 2, 5)))]
    if kind < 0.2:
        return hello(rng) + b"".join(right), True
    if kind < 0.5:
        right.insert(rng.randint(0, len(right)), hostile_frame(rng))
        return hello(rng) + b"".join(right), False
    if kind < 0.8:
        return hello() + damage(rng, b"".join(right), hostile_frame(rng)), False
    if kind < 0.95:
        return damage(rng, hello() + b"".join(right), hostile_frame(rng)), False
    return rng.choice(
        (b"", native.PREAMBLE, rng.randbytes(200), b"GET / HTTP/1.1\r\n\r\n", hello() * 2, b"\0" * 5000)
    ), False
