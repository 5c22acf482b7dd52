"""What is sent to an HTTP server: right requests of every kind, and what mischief, noise and malice make of them."""

import dataclasses
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxserve.protocols.datatypes import DTYPES
from tests.fuzzing.http_words import (
    EMBEDDINGS_FORMS,
    GETS,
    HEADERS,
    JSON_FORMS,
    METHODS,
    MODELS,
    NOISE,
    POSTS,
    PREDICT_FORMS,
    TARGETS,
    VERSIONS,
)
from tests.fuzzing.mutations import damage, damage_json, hostile_value, write_json


@dataclasses.dataclass(slots=True)
class Draft:
    """A request that is still to be written.

    Attributes:
        framing: `length`, `chunked`, or None for no word on how long the body is.
    """

    method: str = "GET"
    target: str = "/livez"
    version: str = "HTTP/1.1"
    headers: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    body: bytes = b""
    framing: str | None = "length"

    def write(self, rng: random.Random) -> bytes:
        """Its bytes."""
        headers = [("Host", "fuzz"), *self.headers]
        body = self.body
        if self.framing == "length" and (body or self.method != "GET"):
            headers.append(("Content-Length", str(len(body))))
        elif self.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
            body = in_chunks(rng, body)
        lines = [
            f"{self.method} {self.target} {self.version}",
            *(f"{name}: {value}" for name, value in headers),
            "",
            "",
        ]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + body


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent over one connection.

    Attributes:
        data: all of it.
        answers: how many answers must come; None where nobody can say.
        has_head: whether an answer may come without the body that its head announces.
        cuts: where it is cut into pieces.
        ending: how the connection ends: `close`, `abort`, `half` of it first, or `leave` without waiting for anything.
    """

    data: bytes
    answers: int | None
    has_head: bool
    cuts: tuple[int, ...] = ()
    ending: str = "close"


def in_chunks(rng: random.Random, body: bytes) -> bytes:
    """A body in the transfer coding `chunked`."""
    parts: list[bytes] = []
    start = 0
    while start < len(body):
        stop = min(len(body), start + rng.choice((1, 7, 64, 1000, 5000)))
        extension = rng.choice((b"", b"", b"", b";a=b", b';a="c"'))
        parts.append(b"%x%b\r\n%b\r\n" % (stop - start, extension, body[start:stop]))
        start = stop
    return b"".join((*parts, b"0\r\n", rng.choice((b"", b"", b"X-Trailer: 1\r\n")), b"\r\n"))


def binary_infer(rng: random.Random) -> tuple[str, bytes, int]:
    """A request of the Open Inference Protocol with raw data: the model, the body, and how much of it is JSON."""
    model = rng.choice(("identity", "every", "letters"))
    inputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    if model == "identity":
        rows = rng.choice((1, 1, 1, 2, 8, 9, 0))
        tensors = [("x", "FP32", [rows, 128], bytes(4 * 128 * rows))]
    elif model == "letters":
        texts = [rng.choice(("", "a", "\u00fc" * 9)).encode() for _ in range(rng.choice((1, 2, 4, 5)))]
        tensors = [("text", "BYTES", [len(texts)], b"".join(struct.pack("<I", len(text)) + text for text in texts))]
    else:
        tensors = [(dtype.name, name, [1, 3], np.zeros((1, 3), dtype).tobytes()) for name, dtype in DTYPES.items()]
    for name, datatype, shape, data in tensors:
        size_bytes = len(data)
        inputs.append(
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size_bytes}}
        )
        raw.append(data)
    document: dict[str, Any] = {"id": str(rng.getrandbits(16)), "inputs": inputs}
    if rng.random() < 0.7:
        document["parameters"] = {"binary_data_output": rng.random() < 0.7}
    text = json.dumps(document, separators=(",", ":")).encode()
    return model, text + b"".join(raw), len(text)


def right(rng: random.Random) -> Draft:
    """A request that is as it should be."""
    kind = rng.randrange(8)
    if kind == 0:
        target = rng.choice(GETS).replace("{m}", rng.choice(MODELS))
        return Draft(method=rng.choice(("GET", "GET", "GET", "HEAD")), target=target)
    if kind == 1:
        target = rng.choice(POSTS).replace("{m}", rng.choice(MODELS))
        return Draft(
            method="POST", target=target, body=rng.choice((b"", b"{}", b'{"ready":true}', b'{"parameters":{}}'))
        )
    if kind in (2, 3):
        model, body, json_bytes = binary_infer(rng)
        headers = [("Inference-Header-Content-Length", str(json_bytes))]
        return Draft(method="POST", target=_infer_of(rng, model), headers=headers, body=body)
    if kind in (4, 5):
        model, document = rng.choice(JSON_FORMS)
        return Draft(method="POST", target=_infer_of(rng, model), body=json.dumps(document).encode())
    if kind == 6:
        model, document = rng.choice(PREDICT_FORMS)
        return Draft(method="POST", target=f"/v1/models/{model}:predict", body=json.dumps(document).encode())
    return Draft(method="POST", target="/v1/embeddings", body=json.dumps(rng.choice(EMBEDDINGS_FORMS)).encode())


def _infer_of(rng: random.Random, model: str) -> str:
    return f"/v2/models/{model}{rng.choice(('', '', '', '/versions/1'))}/infer"


# Mischief with a request that stays one: exactly one answer must come.


def _hostile_json(rng: random.Random, draft: Draft) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        model, document = rng.choice(PREDICT_FORMS)
        draft.target = f"/v1/models/{model}:predict"
    elif kind == 1:
        document = rng.choice(EMBEDDINGS_FORMS)
        draft.target = "/v1/embeddings"
    else:
        model, document = rng.choice(JSON_FORMS)
        draft.target = _infer_of(rng, model)
    draft.method, draft.headers = "POST", []
    draft.body = write_json(rng, hostile_value(rng) if rng.random() < 0.05 else damage_json(rng, document))
    if rng.random() < 0.1:
        draft.body = damage(rng, draft.body)


def _hostile_binary(rng: random.Random, draft: Draft) -> None:
    model, body, json_bytes = binary_infer(rng)
    draft.method, draft.target = "POST", _infer_of(rng, model)
    text, raw = body[:json_bytes], body[json_bytes:]
    match rng.randrange(4):
        case 0:
            raw = damage(rng, raw, text)
        case 1:
            text = write_json(rng, damage_json(rng, json.loads(text)))
        case 2:
            text = damage(rng, text, raw)
        case _:
            json_bytes += rng.choice((-1, 1, 2, -json_bytes, 10**6))
    if rng.random() < 0.7:
        json_bytes = len(text)
    draft.body = text + raw
    draft.headers = [("Inference-Header-Content-Length", str(json_bytes))]


def compress(rng: random.Random, draft: Draft) -> None:
    """Compresses a body in some way, or says so."""
    if draft.method not in ("POST", "PUT"):
        _hostile_json(rng, draft)
    body = draft.body
    encoding = rng.choice(("gzip", "deflate", "x-gzip", "raw", "bomb", "twice", "br"))
    match encoding:
        case "gzip" | "x-gzip":
            body = gzip.compress(body, mtime=0)
        case "deflate":
            body = zlib.compress(body)
        case "raw":
            compressor = zlib.compressobj(wbits=-15)
            encoding, body = "deflate", compressor.compress(body) + compressor.flush()
        case "bomb":
            encoding, body = "gzip", BOMB
        case "twice":
            encoding, body = "gzip", gzip.compress(body, mtime=0) + gzip.compress(body, mtime=0)
    if rng.random() < 0.4:
        body = damage(rng, body)
    draft.body = body
    draft.headers.append(("Content-Encoding", encoding))


BOMB = gzip.compress(bytes(2**23), 9, mtime=0)
"""Eight megabytes in eight kilobytes."""


def _hostile_header(rng: random.Random, draft: Draft) -> None:
    """One that is not about the framing, and of a length that is allowed."""
    while True:
        name, values = rng.choice(HEADERS)
        value = rng.choice(values)
        if name.lower() not in _OF_FRAMING and name.replace("-", "").isalnum() and name.isascii() and _is_plain(value):
            break
    if len(name) + len(value) < 8000:
        draft.headers.append((name, value))


_OF_FRAMING = frozenset(
    {
        "content-length",
        "transfer-encoding",
        "expect",
        "upgrade",
        "connection",
        "host",
        "http2-settings",
        "content-encoding",
    }
)


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _chunked(rng: random.Random, draft: Draft) -> None:
    if draft.method == "POST":
        draft.framing = "chunked"


_MISCHIEF: Sequence[Callable[[random.Random, Draft], None]] = (
    _hostile_json, _hostile_json, _hostile_json, _hostile_binary, _hostile_binary, compress, _hostile_header,
    _hostile_header, _chunked,
)  # fmt: skip


# Games with what makes a request one


def _game(rng: random.Random, draft: Draft) -> None:
    match rng.randrange(9):
        case 0 | 1 | 2:
            for _ in range(rng.choice((1, 1, 2, 5))):
                name, values = rng.choice(HEADERS)
                draft.headers.append((name, rng.choice(values)))
        case 3:
            draft.method = rng.choice(METHODS)
        case 4:
            draft.target = rng.choice(TARGETS)
        case 5:
            draft.version = rng.choice(VERSIONS)
        case 6:
            draft.framing = rng.choice((None, "chunked"))
        case 7:
            names = ("x", "Cookie", "X-Request-Id", "Content-Length", "Host", "Accept-Encoding")
            draft.headers += [(rng.choice(names), str(rng.getrandbits(16)))] * rng.choice((2, 100, 1000))
        case _:
            draft.headers = [(_odd_case(rng, name), value) for name, value in draft.headers]


def _odd_case(rng: random.Random, name: str) -> str:
    return "".join(rng.choice((letter.lower(), letter.upper())) for letter in name)


def _bad_chunks(rng: random.Random) -> bytes:
    """A request whose chunks are not right."""
    body = in_chunks(rng, right(rng).body or b"x" * 50)
    size = rng.choice((b"-1", b"fffffffffffffffff", b"80000000", b"0x5", b" 5", b"5 ", b"g", b"", b"5;" + b"a" * 9000,
                       b"00000000000000000005", b"+5", b"5\r", b"\xb2"))  # fmt: skip
    body = size + b"\r\n" + body if rng.random() < 0.5 else damage(rng, body)
    head = b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    if rng.random() < 0.2:
        head += b"Content-Length: %d\r\n" % rng.randint(0, 100)
    return head + b"\r\n" + body


def _one(rng: random.Random) -> tuple[bytes, int | None]:
    kind = rng.random()
    draft = right(rng)
    if kind < 0.45:
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(_MISCHIEF)(rng, draft)
        return draft.write(rng), 1
    if kind < 0.65:
        for _ in range(rng.choice((1, 1, 2, 3))):
            _game(rng, draft)
        return draft.write(rng), None
    if kind < 0.9:
        if rng.random() < 0.3:
            rng.choice(_MISCHIEF)(rng, draft)
        return damage(rng, draft.write(rng), right(rng).write(rng)), None
    if kind < 0.95:
        return _bad_chunks(rng), None
    return (rng.choice(NOISE) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 10, 100, 3000)))), None


def traffic(rng: random.Random) -> Traffic:
    """What goes over one connection."""
    data, answers = _one(rng)
    if rng.random() < 0.1:
        others = [_one(rng) for _ in range(rng.randint(1, 4))]
        answers = None if answers is None or any(count is None for _, count in others) else 1 + len(others)
        data = b"".join((data, *(each for each, _ in others)))
    if answers is not None and b"close" in data.lower():
        answers = 1
    cuts = ()
    if rng.random() < 0.15 and data:
        cuts = tuple(sorted(rng.sample(range(len(data)), min(len(data), rng.randint(1, 6)))))
    ending = rng.choices(("close", "abort", "half", "leave"), (8, 2, 1, 1))[0]
    if ending == "leave":
        answers = None
    return Traffic(data, answers, b"HEAD" in data.upper(), cuts, ending)
