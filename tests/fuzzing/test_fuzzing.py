"""A short run of every fuzzer; `python -m tests.fuzzing` runs them at length."""

import asyncio
import random
from collections.abc import Iterator

import pytest
import uvloop

from tests.fuzzing import openapi_fuzzer
from tests.fuzzing.codec_fuzzer import CodecFuzzer
from tests.fuzzing.grpc_fuzzer import GrpcFuzzer
from tests.fuzzing.http_answers import Answer, Malformed, complaint, read_answers
from tests.fuzzing.http_fuzzer import HttpFuzzer
from tests.fuzzing.mutations import damage
from tests.fuzzing.native_fuzzer import NativeFuzzer
from tests.fuzzing.subject import Subject

SEED = 20_000


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with Subject.running() as subject:
        yield subject


def test_codecs():
    report = CodecFuzzer(SEED).run(range(6000))
    assert report.findings == {}, report.text()
    assert report.inputs == 6000


@pytest.mark.parametrize("fuzzer", [HttpFuzzer, NativeFuzzer, GrpcFuzzer])
def test_over_sockets(subject: Subject, fuzzer: type[HttpFuzzer | NativeFuzzer | GrpcFuzzer]):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(fuzzer(subject, SEED).run(range(1500)))
    assert report.findings == {}, report.text()
    assert report.inputs == 1500


# Schemathesis asks hypothesis for a few functions that it says are going away.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openapi(subject: Subject):
    report = openapi_fuzzer.run(subject, 800, SEED, is_short=True)
    assert report.findings == {}, report.text()
    assert report.inputs >= 800


@pytest.mark.parametrize("make", [HttpFuzzer, NativeFuzzer, GrpcFuzzer])
def test_an_input_is_made_of_its_number_alone(subject: Subject, make: type[HttpFuzzer | NativeFuzzer | GrpcFuzzer]):
    def inputs(indices: list[int]) -> list[object]:
        fuzzer = make(subject, 7)
        made = [fuzzer.input(index) for index in indices]
        return [each[:2] if isinstance(each, tuple) else each for each in made]

    assert inputs([5, 6, 7]) == inputs([7, 6, 5])[::-1]


def test_damage_is_of_every_kind():
    rng = random.Random(0)
    hurt = {damage(rng, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n", b"other") for _ in range(500)}
    assert len(hurt) > 400


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"HTTP/1.1 2000 OK\r\n\r\n", "status line"),
        (b"HTTP/0.9 400 Bad Request\r\n\r\n", "status line"),
        (b"HTTP/2.0 400 Bad Request\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\nX: y\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nX y\r\n\r\n", "header is"),
        (b"HTTP/1.1 200 OK\r\nX: a\x01\r\n\r\n", "header is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "twice"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "and Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "has size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "does not end"),
    ],
)
def test_answers_that_are_no_http_are_found(data: bytes, match: str):
    with pytest.raises(Malformed, match=match):
        read_answers(data, is_over=True, has_head=False)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "expected"),
    [
        (200, "text/plain", b"", None),
        (400, "application/json", b'{"error":"a","code":"b"}', None),
        (500, "application/json", b'{"error":{"message":"a","code":"model_failed"}}', None),
        (400, "text/plain", b"bad", "not JSON"),
        (400, "application/json", b"bad", "no JSON"),
        (400, "application/json", b'{"code":"b"}', "no error"),
        (503, "application/json", b'{"error":"a"}', "no code"),
        (500, "application/json", b'{"error":"a","code":"server_error"}', "a server_error"),
        (500, "application/json", b'{"error":"Traceback ...","code":"b"}', "shows a trace"),
        (500, "application/json", b"", "without a body"),
    ],
)
def test_errors_that_are_not_typed_are_found(status: int, content_type: str, body: bytes, expected: str | None):
    what = complaint(Answer(status, {"content-type": content_type}, body))
    assert what is None if expected is None else expected in (what or "")
