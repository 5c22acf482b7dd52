"""Requests that are made to hurt: each is refused with a status of 4xx and a short error, in memory that does not grow.

The server is a process of its own, whose largest resident set is looked at before and after each request.
"""

import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from jaxserve.protocols.grpc_messages import INFERENCE, ModelInferRequest
from tests.fuzzing.http_answers import Answer, complaint, read_answers
from tests.fuzzing.subject import Subject

MIB = 2**20
MAX_BODY_BYTES = 4 * MIB
MOST_BYTES = 8 * MAX_BODY_BYTES
"""By which the largest resident set may be above what it was: a body, what it decompresses to, its text."""
MOST_ELEMENTS_BYTES = 100 * 2**20
"""What a million elements of JSON may take besides; there may be 2**20."""
LONGEST_ERROR_BYTES = 4096
PATIENCE_S = 20.0

INFER = "/v2/models/identity/infer"
PREDICT = "/v1/models/affine:predict"
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with Subject.running(max_body_bytes=MAX_BODY_BYTES) as subject:
        subject.state()
        yield subject


def post(path: str, body: bytes, *headers: str, length: str | None = None) -> bytes:
    said = str(len(body)) if length is None else length
    lines = (f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {said}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: h", *headers, "", "")).encode()


def chunked(path: str, *chunks: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 128], "data": [0.5] * 128, **changes}


def infer(*inputs: Any, path: str = INFER, **others: Any) -> bytes:
    return post(path, json.dumps({"inputs": list(inputs), **others}).encode())


def raw_infer(
    shape: list[Any], size_bytes: int, data: bytes, *, datatype: str = "FP32", length: int | None = None
) -> bytes:
    given = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size_bytes}}
    text = json.dumps({"inputs": [given]}).encode()
    said = len(text) if length is None else length
    return post(INFER, text + data, f"Inference-Header-Content-Length: {said}")


def deep(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


BOMB = gzip.compress(bytes(64 * MIB), 9, mtime=0)
ARRAYS_BOMB = gzip.compress(b"[" * (MAX_BODY_BYTES - 1), 9, mtime=0)
COMMAS_BOMB = gzip.compress(b'{"inputs":[' + b"0," * (MAX_BODY_BYTES // 2 - 100) + b"0]}", 9, mtime=0)
GZIP, DEFLATE = "Content-Encoding: gzip", "Content-Encoding: deflate"
TRAVERSALS = (
    "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cboot.ini",
    "%252e%252e%252fetc", "....//....//etc", "%c0%ae%c0%ae%c0%afetc", "%00", "identity%00.txt", "a%0d%0aX-Evil:%201",
    "identity/../../../etc/passwd", "file:%2f%2f%2fetc%2fpasswd", "$(id)", "%7b%7b7*7%7d%7d", "~root", "con",
    "x" * 10_000, "%41" * 3_000,
)  # fmt: skip

HOSTILE: dict[str, tuple[bytes, int | tuple[int, ...]]] = {
    # Bodies that are larger than they look, or look larger than they are
    "a gzip bomb": (post(INFER, BOMB, GZIP), 413),
    "a gzip bomb for predict": (post(PREDICT, BOMB, GZIP), 413),
    "a gzip bomb for embeddings": (post(EMBEDDINGS, BOMB, GZIP), 413),
    "a gzip bomb for the index": (post("/v2/repository/index", BOMB, GZIP), 413),
    "a deflate bomb": (post(INFER, zlib.compress(bytes(64 * MIB), 9), DEFLATE), 413),
    "a gzip of four million lists": (post(INFER, ARRAYS_BOMB, GZIP), 400),
    "a gzip of two million numbers": (post(INFER, COMMAS_BOMB, GZIP), 400),
    "a gzip of a gzip": (post(INFER, gzip.compress(BOMB), "Content-Encoding: gzip, gzip"), 415),
    "gzip that ends early": (post(INFER, BOMB[:100], GZIP), 400),
    "gzip that is none": (post(INFER, b"{}", GZIP), 400),
    "many members of gzip": (post(INFER, gzip.compress(b"{}") * 1000, GZIP), 400),
    "10 GB announced": (post(INFER, b"", length="10737418240"), 413),
    "10 GB announced, and asked for": (post(INFER, b"", "Expect: 100-continue", length="10737418240"), 413),
    "more than a 64-bit number announced": (post(INFER, b"", length="18446744073709551617"), (400, 413)),
    "a length of a thousand digits": (post(INFER, b"", length="9" * 1000), (400, 413)),
    "a negative length": (post(INFER, b"", length="-1"), 400),
    "two lengths": (post(INFER, b"{}", "Content-Length: 3"), 400),
    "chunks of more than is allowed": (chunked(INFER, *[bytes(MIB)] * 6), 413),
    "a chunk of 2**60 bytes": (chunked(INFER) + b"1000000000000000\r\n" + bytes(5 * MIB), 413),
    "a chunk of minus one": (chunked(INFER) + b"-1\r\n", 400),
    # JSON
    "a million inputs": (post(INFER, b'{"inputs":[' + b"{}," * 10**6 + b"{}]}"), 400),
    "a million inputs that are numbers": (post(INFER, b'{"inputs":[' + b"0," * 10**6 + b"0]}"), 400),
    "a million numbers": (
        post(INFER, b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1000001],"data":[' + b"0," * 10**6 + b"0]}]}"),
        400,
    ),
    "a million numbers for predict": (post(PREDICT, b'{"instances":[' + b"0," * 10**6 + b"0]}"), 400),
    "a million rows for predict": (post(PREDICT, b'{"instances":[' + b"[0]," * 10**5 + b"[0]]}"), 400),
    "a million texts": (post(EMBEDDINGS, b'{"model":"letters","input":[' + b'"a",' * 10**6 + b'"a"]}'), 400),
    "a million outputs": (post(INFER, b'{"inputs":[],"outputs":[' + b"0," * 10**6 + b"0]}"), 400),
    "a million names": (post(INFER, b"{" + b",".join(b'"%d":0' % index for index in range(3 * 10**5)) + b"}"), 400),
    "a million parameters": (post(INFER, b'{"parameters":{' + b'"a":0,' * 6 * 10**5 + b'"b":0},"inputs":[]}'), 400),
    "2,000,000 lists in one another": (post(INFER, deep(2 * 10**6)), 400),
    "65 lists in one another": (post(INFER, b'{"inputs":' + deep(65) + b"}"), 400),
    "500,000 objects in one another": (post(INFER, deep(5 * 10**5, b'{"a":', b"0}")), 400),
    "deep predictions": (post(PREDICT, b'{"instances":' + deep(10**5) + b"}"), 400),
    "deep texts": (post(EMBEDDINGS, b'{"model":"letters","input":' + deep(10**5) + b"}"), 400),
    "deep data": (infer(tensor(data=json.loads(deep(60)))), 400),
    "a text of 4 MB with one wide character": (
        post(INFER, b'"' + b"a" * (4 * 10**6) + "\U0001f600".encode() + b'"'),
        400,
    ),
    "a number of 4,000,000 digits": (post(INFER, b"9" * 4 * 10**6), 400),
    "an id of a megabyte": (infer(tensor(), id="x" * MIB), 400),
    "no JSON": (post(INFER, b"\xff\xfe" * 1000), 400),
    "words that are no JSON": (post(INFER, b"[" + b"NaN," * 10**5 + b"NaN]"), 400),
    # Tensors
    "a shape whose product overflows": (infer(tensor(shape=[2**31, 2**31, 2**31])), 400),
    "a shape whose product is 0 modulo 2**64": (infer(tensor(shape=[2**32, 2**32], data=[])), 400),
    "a shape whose product overflows but for a 0": (infer(tensor(shape=[2**62, 2**62, 0], data=[])), 400),
    "a raw shape whose product overflows": (raw_infer([2**62, 4], 16, bytes(16)), 400),
    "a raw shape whose product is 0 modulo 2**64": (raw_infer([2**32, 2**32], 0, b""), 400),
    "a dimension of 2**70": (infer(tensor(shape=[2**70], data=[])), 400),
    "a dimension of -1": (infer(tensor(shape=[-1, 128])), 400),
    "two dimensions of -1": (raw_infer([-1, -128], 512, bytes(512)), 400),
    "a dimension of 1.5": (infer(tensor(shape=[1.5])), 400),
    "a dimension that is a text of a megabyte": (infer(tensor(shape=["x" * MIB])), 400),
    "a hundred thousand dimensions": (infer(tensor(shape=[1] * 10**5)), 400),
    "rows for a year": (raw_infer([9, 128], 9 * 512, bytes(9 * 512)), 400),
    "two inputs of one name": (infer(tensor(), tensor()), 400),
    "two outputs of one name": (infer(tensor(), outputs=[{"name": "output"}] * 2), 400),
    "257 inputs": (infer(*[tensor(name=str(index), shape=[1], data=[0]) for index in range(257)]), 400),
    "257 outputs": (infer(tensor(), outputs=[{"name": str(index)} for index in range(257)]), 400),
    "a name of a megabyte": (infer(tensor(name="x" * MIB)), 400),
    "a datatype of a megabyte": (infer(tensor(datatype="x" * MIB)), 400),
    "an unknown input": (infer(tensor(), tensor(name="y")), 400),
    "more raw data than there is": (raw_infer([1, 128], 2**40, bytes(512)), 400),
    "less raw data than there is": (raw_infer([1, 128], 512, bytes(600)), 400),
    "raw data of a negative size": (raw_infer([1, 128], -512, bytes(512)), 400),
    "JSON that is longer than the body": (raw_infer([1, 128], 512, bytes(512), length=10**9), 400),
    "a text that claims 4 GiB": (raw_infer([1], 8, b"\xff\xff\xff\xffabcd", datatype="BYTES"), 400),
    "2**62 texts": (raw_infer([2**62], 4, bytes(4), datatype="BYTES"), 400),
    "a million empty texts": (raw_infer([10**6 - 1], 4 * 10**6 - 4, bytes(4 * 10**6 - 4), datatype="BYTES"), 400),
    "texts that are no UTF-8": (raw_infer([1], 8, struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc", datatype="BYTES"), 400),
    "shared memory": (infer(tensor(parameters={"shared_memory_region": "/etc/passwd"})), 400),
    "a timeout of minus one": (infer(tensor(), parameters={"timeout": -1}), 400),
    "a timeout that is no number": (infer(tensor(), parameters={"timeout": "1"}), 400),
    "a deadline that is no number": (
        get("/v2/models/identity/infer").replace(b"GET", b"POST", 1)[:-2]
        + b"X-Deadline-S: nan\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    # Heads
    "a header of 20,000 bytes": (get("/livez", "X: " + "y" * 20_000), 431),
    "a name of a header of 20,000 bytes": (get("/livez", "y" * 20_000 + ": x"), (400, 431)),
    "a request line of 20,000 bytes": (get("/livez?" + "y" * 20_000), (400, 414, 431)),
    "a hundred thousand headers": (get("/livez", *["X: y"] * 100_000), (400, 431)),
    "a header with a NUL": (get("/livez", "X: a\0b"), 400),
    "a header over two lines": (get("/livez", "X: a", " b: c"), 400),
    "length and chunks": (post(INFER, b"0\r\n\r\n", "Transfer-Encoding: chunked"), 400),
    "a transfer coding that is not known": (post(INFER, b"", "Transfer-Encoding: gzip, chunked, gzip"), 400),
    "an encoding of a megabyte": (post(INFER, b"{}", "Content-Encoding: " + "x" * 10_000), 415),
    "a method that is none": (get("/livez").replace(b"GET", b"X" * 5000, 1), (400, 405, 431)),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 405)),
    "a proxy's CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: h\r\n\r\n", (400, 404, 405)),
    **{
        f"a model called {name[:40]}": (infer(tensor(), path=f"/v2/models/{name}/infer"), (400, 404))
        for name in TRAVERSALS
    },
    **{f"a page called {name[:40]}": (get(f"/page/{name}"), (400, 404)) for name in TRAVERSALS},
    **{
        f"loading {name[:40]}": (post(f"/v2/repository/models/{name}/load", b""), (400, 404, 503))
        for name in TRAVERSALS
    },
}


def answer_to(subject: Subject, request: bytes) -> Answer:
    """The first answer, as it comes: a server need not have read the request to its end."""
    with socket.create_connection(("127.0.0.1", subject.ports["http"]), PATIENCE_S) as client:
        client.settimeout(PATIENCE_S)
        heard = b""
        view = memoryview(request)
        client.setblocking(False)
        while True:
            sent = 0
            if view:
                try:
                    sent = client.send(view[: 2**16])
                    view = view[sent:]
                except (BlockingIOError, ConnectionError):
                    sent = 0
            try:
                client.settimeout(0.0 if sent else 0.05 if view else PATIENCE_S)
                data = client.recv(2**16)
            except (BlockingIOError, TimeoutError):
                assert view or sent, f"there is no answer, but {heard!r}"
                continue
            except ConnectionError:
                data = b""
            heard += data
            answers, rest = read_answers(heard, is_over=not data, has_head=False)
            if answers:
                return answers[0]
            assert data, f"the connection ended with {rest!r}"


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_in_constant_memory(subject: Subject, name: str):
    request, expected = HOSTILE[name]
    before = subject.memory()
    answer = answer_to(subject, request)
    after = subject.memory()
    assert answer.status in ((expected,) if isinstance(expected, int) else expected), answer
    assert complaint(answer) is None
    assert len(answer.body) <= LONGEST_ERROR_BYTES
    most_bytes = MOST_BYTES + (MOST_ELEMENTS_BYTES if "million" in name else 0)
    assert after["peak_bytes"] - before["resident_bytes"] <= most_bytes


def test_nothing_is_left_of_them(subject: Subject):
    def send_all() -> None:
        for name in ("a gzip bomb", "10 GB announced", "a million inputs", "2,000,000 lists in one another"):
            answer_to(subject, HOSTILE[name][0])

    send_all()  # what is made once
    rest = subject.state()
    for _ in range(3):
        send_all()
    state = subject.state()
    assert (state["in_flight"], state["buffered_bytes"]) == (0, 0)
    assert state["complaints"] == []  # nor has anything above been logged as a fault
    assert state["resident_bytes"] - rest["resident_bytes"] <= MAX_BODY_BYTES
    answer = answer_to(subject, infer(tensor()))
    assert answer.status == 200


def grpc_request(**changes: Any) -> bytes:
    shape = changes.get("shape", [1, 128])
    request = ModelInferRequest(model_name=changes.get("model", "identity"))
    for name in changes.get("names", ["x"]):
        request.inputs.add(name=name, datatype=changes.get("datatype", "FP32"), shape=shape)
        request.raw_input_contents.append(changes.get("data", bytes(512)))
    return request.SerializeToString()


def test_a_body_that_does_not_go_on_is_told_so():
    """Not cut off as one whose head does not go on, though its start came in several pieces at once."""
    with Subject.running(head_timeout_s=1.0, body_timeout_s=1.0) as subject:
        for size in (100, 400 * 2**10):
            answer = answer_to(subject, chunked(INFER) + b"1000000000000000\r\n" + bytes(size))
            assert answer.status == 408
            assert json.loads(answer.body)["code"] == "too_slow"


def over_grpc(subject: Subject) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{subject.ports['grpc']}", options=[("grpc.max_send_message_length", -1)])


GRPC_HOSTILE: dict[str, tuple[bytes, str]] = {
    "more than is allowed": (grpc_request(data=bytes(MAX_BODY_BYTES + 1)), "RESOURCE_EXHAUSTED"),
    "a product that overflows": (grpc_request(shape=[2**31, 2**31, 2**31]), "INVALID_ARGUMENT"),
    "a product that is 0 modulo 2**64": (grpc_request(shape=[2**32, 2**32], data=b""), "INVALID_ARGUMENT"),
    "a negative dimension": (grpc_request(shape=[-1, 128]), "INVALID_ARGUMENT"),
    "two inputs of one name": (grpc_request(names=["x", "x"]), "INVALID_ARGUMENT"),
    "257 inputs": (grpc_request(names=[str(index) for index in range(257)]), "INVALID_ARGUMENT"),
    "a hundred thousand inputs": (grpc_request(names=["x"] * 100_000, shape=[], data=b""), "INVALID_ARGUMENT"),
    "a hundred thousand dimensions": (grpc_request(shape=[1] * 100_000), "INVALID_ARGUMENT"),
    "a name of a megabyte": (grpc_request(names=["x" * MIB]), "INVALID_ARGUMENT"),
    "a datatype of a megabyte": (grpc_request(datatype="x" * MIB), "INVALID_ARGUMENT"),
    "a model called ../../etc/passwd": (grpc_request(model="../../etc/passwd"), "NOT_FOUND"),
    "a model with a name of a megabyte": (grpc_request(model="x" * MIB), "NOT_FOUND"),
    "a text that claims 4 GiB": (grpc_request(datatype="BYTES", shape=[1], data=b"\xff" * 8), "INVALID_ARGUMENT"),
    "no message": (b"\xff" * 1000, "INVALID_ARGUMENT"),
    "two million empty fields": (b"\x3a\x00" * 2 * 10**6, "INVALID_ARGUMENT"),
    "two million empty inputs": (b"\x2a\x00" * 2 * 10**6, "INVALID_ARGUMENT"),
    "two million unknown fields": (b"\xf8\x3e" * 10**6 * 2, "INVALID_ARGUMENT"),
    "groups in one another": (b"\x0b" * 10**6, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", GRPC_HOSTILE)
def test_is_refused_in_constant_memory_over_grpc(subject: Subject, name: str, compression: Any):
    request, expected = GRPC_HOSTILE[name]
    before = subject.memory()
    with over_grpc(subject) as channel:
        call = channel.unary_unary(f"/{INFERENCE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=PATIENCE_S, compression=compression)
    after = subject.memory()
    error: Any = caught.value
    assert error.code().name == expected, error
    assert len(error.details()) <= LONGEST_ERROR_BYTES
    assert after["peak_bytes"] - before["resident_bytes"] <= MOST_BYTES


def test_a_bomb_over_grpc(subject: Subject):
    before = subject.memory()
    with over_grpc(subject) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{INFERENCE}/ModelInfer")(
            bytes(256 * MIB), timeout=PATIENCE_S, compression=grpc.Compression.Gzip
        )
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
    assert subject.memory()["peak_bytes"] - before["resident_bytes"] <= MOST_BYTES
