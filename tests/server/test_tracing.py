"""Spans of requests: what they say, whose children they are, and that they reach a collector."""

import asyncio
import contextlib
import http.server
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlineRefused,
    EngineStopped,
    GroupFailed,
    InferenceError,
    InvalidInput,
    MissingExtra,
    ModelFailed,
    ModelNotFound,
    QueueFull,
    RequestCancelled,
)
from jaxserve.metrics import Timeline
from jaxserve.server.access import ANYBODY, Access
from jaxserve.server.health import Health
from jaxserve.server.limits import Limits
from jaxserve.server.service import Service
from jaxserve.server.tracing import NOT_TRACED, OpenTelemetry
from tests.emulated_engine import model, serving
from tests.jumping_loop import run

_REASON = "the extra otel is not installed: pip install 'jaxserve[otel]'"
api = pytest.importorskip("opentelemetry.trace", reason=_REASON)
export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=_REASON)
collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason=_REASON)
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=_REASON)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
EPOCH_NS = 1_700_000_000_000_000_000
SERVED = Timeline(
    arrival_s=100.0,
    decided_s=100.25,
    group=2,
    predicted_finish_s=102.5,
    rows=3,
    begun_s=101.0,
    stages=[(101.0, 101.5), (101.5, 102.0)],
    settled_s=102.125,
)


@contextlib.contextmanager
def tracing() -> Iterator[tuple[OpenTelemetry, Any]]:
    exporter = export.InMemorySpanExporter()
    traces = OpenTelemetry(exporter=exporter)
    try:
        yield traces, exporter
    finally:
        traces.close()


def recorded(timeline: Timeline = SERVED, *, now_s: float = 103.0, **options: Any) -> Sequence[Any]:
    """The spans of one request, in the order in which they ended: itself last."""
    given_options = {
        "model": "m",
        "code": "served",
        "request_id": "r1",
        "protocol": "http",
        "traceparent": None,
    } | options
    with tracing() as (traces, exporter):
        traces.record(timeline, now_s=now_s, **given_options)
    return exporter.get_finished_spans()


def times_s(span: Any) -> tuple[float, float]:
    """Begin and end by the engine's clock, which was at 103 s."""
    return 103.0 + (span.start_time - EPOCH_NS) / 1e9, 103.0 + (span.end_time - EPOCH_NS) / 1e9


def test_a_request_is_a_span_with_its_preparation_its_wait_and_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: EPOCH_NS)
    *children, request = recorded()
    assert (request.name, request.kind, request.parent) == ("infer m", api.SpanKind.SERVER, None)
    assert request.attributes == {
        "network.protocol.name": "http",
        "jaxserve.model": "m",
        "jaxserve.outcome": "served",
        "jaxserve.request_id": "r1",
        "jaxserve.group": 2,
        "jaxserve.predicted_s": 2.5,
    }
    assert request.status.status_code is api.StatusCode.UNSET
    assert times_s(request) == (100.0, 102.125)
    assert [(child.name, times_s(child), dict(child.attributes)) for child in children] == [
        ("preprocess", (100.0, 100.25), {}),
        ("queue", (100.25, 101.0), {}),
        ("stage", (101.0, 101.5), {"jaxserve.stage": 0, "jaxserve.rows": 3}),
        ("stage", (101.5, 102.0), {"jaxserve.stage": 1, "jaxserve.rows": 3}),
    ]
    for child in children:
        assert (child.parent.span_id, child.parent.trace_id) == (request.context.span_id, request.context.trace_id)
        assert child.kind is api.SpanKind.INTERNAL
    assert request.resource.attributes["service.name"] == "jaxserve"
    assert request.resource.attributes["service.version"]


NAN = math.nan


@pytest.mark.parametrize(
    ("timeline", "children"),
    [
        (Timeline(), []),  # no such model
        (Timeline(1.0, 1.0, settled_s=1.0), []),  # refused
        (Timeline(1.0, NAN, settled_s=3.0), [("preprocess", 1.0, 3.0)]),  # expired as it was preprocessed
        (Timeline(1.0, 1.0, 0, 2.0, 0, NAN, [], 3.0), [("queue", 1.0, 3.0)]),  # expired as it waited
        (Timeline(1.0, 1.0, 0, 2.0, 2, 1.5, [], 3.0), [("queue", 1.0, 1.5)]),  # lost on its first stage
        (Timeline(1.0, 1.0, 0, 2.0, 1, 1.0, [(1.0, 1.5)], 3.0), [("queue", 1.0, 1.0), ("stage", 1.0, 1.5)]),
    ],
)
def test_what_ends_early_has_the_spans_of_what_it_reached(
    timeline: Timeline, children: list[tuple[str, float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: EPOCH_NS)
    *found, request = recorded(timeline, code="expired")
    assert [(child.name, *times_s(child)) for child in found] == children
    is_known = not math.isnan(timeline.arrival_s)
    assert request.name == ("infer m" if is_known else "infer")
    assert times_s(request) == ((timeline.arrival_s, timeline.settled_s) if is_known else (103.0, 103.0))


@pytest.mark.parametrize(
    ("kind", "is_error"),
    [
        (ModelFailed, True),
        (GroupFailed, True),
        (EngineStopped, True),
        (DeadlineExceeded, True),
        (DeadlineRefused, True),
        (QueueFull, True),
        (InvalidInput, False),
        (ModelNotFound, False),
        (RequestCancelled, False),
    ],
)
def test_what_the_server_could_not_do_is_an_error(kind: type[InferenceError], is_error: bool) -> None:
    *_, request = recorded(code=kind.code)
    assert request.attributes["jaxserve.outcome"] == kind.code
    assert request.attributes.get("error.type") == (kind.code if is_error else None)
    assert request.status.status_code is (api.StatusCode.ERROR if is_error else api.StatusCode.UNSET)
    assert request.status.description == (kind.code if is_error else None)


@pytest.mark.parametrize(
    "traceparent",
    [
        SAMPLED,
        f"00-{TRACE}-{PARENT}-03",
        f"01-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-bring",
    ],
)
def test_the_caller_s_trace_goes_on(traceparent: str) -> None:
    *children, request = recorded(traceparent=traceparent)
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.parent.is_remote
    assert {f"{span.context.trace_id:032x}" for span in (*children, request)} == {TRACE}


def test_a_caller_that_does_not_sample_gets_no_spans() -> None:
    assert recorded(traceparent=f"00-{TRACE}-{PARENT}-00") == ()
    assert recorded(traceparent=f"00-{TRACE}-{PARENT}-02") == ()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        SAMPLED.upper(),
        SAMPLED[:-1],
        f" {SAMPLED}",
        f"{SAMPLED}-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-0g",
        f"00_{TRACE}_{PARENT}_01",
        f"cc-{TRACE}-{PARENT}-01.x",
        f"00-{'٣' * 32}-{PARENT}-01",
    ],
)
def test_what_is_no_traceparent_is_as_none(traceparent: str) -> None:
    *_, request = recorded(traceparent=traceparent)
    assert request.parent is None
    assert f"{request.context.trace_id:032x}" not in (TRACE, "0" * 32)


def test_no_header_and_no_name_breaks_anything() -> None:
    with tracing() as (traces, exporter):

        @given(st.text(), st.text(st.characters()), st.text(max_size=300))
        def record(traceparent: str, name: str, request_id: str) -> None:
            traces.record(
                SERVED,
                now_s=103.0,
                model=name,
                code="served",
                request_id=request_id,
                protocol="grpc",
                traceparent=traceparent,
            )

        record()
    for span in exporter.get_finished_spans():
        for value in span.attributes.values():
            assert not isinstance(value, str) or len(value.encode()) <= 800


def test_the_environment_may_name_the_service_and_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-models")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    *_, request = recorded()
    assert request.resource.attributes["service.name"] == "search-models"
    assert request.resource.attributes["deployment.environment.name"] == "test"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    assert recorded() == ()
    assert len(recorded(traceparent=SAMPLED)) == 5


def test_every_request_of_a_service_is_one_trace() -> None:
    async def main() -> dict[str, list[str]]:
        with tracing() as (traces, exporter):
            async with serving(model()) as (engine, _), Health(engine) as health:
                service = Service(engine, health=health, access=Access(), known=(), limits=Limits(), tracing=traces)

                async def infer(request_id: str, name: str = "m", **options: Any) -> None:
                    inputs = {"x": np.zeros((1, 2), np.float32)}
                    with contextlib.suppress(InferenceError):
                        await service.infer(
                            name, inputs, identity=ANYBODY, protocol="http", request_id=request_id, **options
                        )

                await asyncio.gather(
                    infer("served", traceparent=SAMPLED),
                    infer("refused", deadline_s=0.5),
                    infer("lost", name="nowhere"),
                    infer("merged"),
                )
        requests = {
            span.context.span_id: span for span in exporter.get_finished_spans() if span.name.startswith("infer")
        }
        found: dict[str, list[str]] = {str(span.attributes["jaxserve.request_id"]): [] for span in requests.values()}
        for span in exporter.get_finished_spans():
            if span.context.span_id in requests:
                continue
            request = requests[span.parent.span_id]
            assert request.start_time <= span.start_time <= span.end_time <= request.end_time
            found[request.attributes["jaxserve.request_id"]].append(span.name)
        return found

    assert run(main()) == {
        "served": ["queue", "stage", "stage"],
        "refused": [],
        "lost": [],
        "merged": ["queue", "stage", "stage"],
    }


@contextlib.contextmanager
def collecting() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A collector of OTLP over HTTP: its address, and the paths and messages that it has got."""
    got: list[tuple[str, Any]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, collector.ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", got
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("path", "posted"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/v1/traces", "/otlp/v1/traces")]
)
def test_closing_sends_what_was_recorded_to_the_collector(path: str, posted: str) -> None:
    with collecting() as (address, got):
        traces = OpenTelemetry(address + path)
        for _ in range(2):
            traces.record(
                SERVED, now_s=103.0, model="m", code="served", request_id="", protocol="http", traceparent=SAMPLED
            )
        traces.close()
    ((where, message),) = got
    assert where == posted
    (of_resource,) = message.resource_spans
    (of_scope,) = of_resource.scope_spans
    assert of_scope.scope.name == "jaxserve"
    assert [span.name for span in of_scope.spans] == ["preprocess", "queue", "stage", "stage", "infer m"] * 2
    assert {span.trace_id.hex() for span in of_scope.spans} == {TRACE}


def test_a_collector_that_hangs_does_not_keep_the_server() -> None:
    answers = threading.Event()

    class Hanging(export.InMemorySpanExporter):
        def export(self, spans: Sequence[Any]) -> Any:
            answers.wait()
            return super().export(spans)

    others = threading.enumerate()
    exporter = Hanging()
    traces = OpenTelemetry(exporter=exporter)
    traces.record(SERVED, now_s=103.0, model="m", code="served", request_id="", protocol="http", traceparent=None)
    traces.close(patience_s=0.01)
    assert exporter.get_finished_spans() == ()
    answers.set()
    for thread in set(threading.enumerate()).difference(others):
        thread.join(10.0)
    assert len(exporter.get_finished_spans()) == 5


@pytest.mark.parametrize("endpoint", [None, "", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", "http://host /"])
def test_an_endpoint_must_be_a_url(endpoint: str | None) -> None:
    with pytest.raises(ConfigError, match=r"must be the URL of a collector, as http://127\.0\.0\.1:4318"):
        OpenTelemetry(endpoint)


def test_without_the_extra_it_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtra, match=r"pip install 'jaxserve\[otel\]'"):
        OpenTelemetry("http://127.0.0.1:4318")


def test_nothing_is_traced_unless_asked_for() -> None:
    assert not NOT_TRACED.is_on
    NOT_TRACED.record(SERVED, now_s=103.0, model="m", code="served", request_id="", protocol="http", traceparent=None)
