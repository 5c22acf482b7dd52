"""OpenTelemetry spans: one for each request, with its preparation, its wait and its stages as children.

The spans are made of the request's `Timeline` once it is settled, so that the way of a request has no part in it. The
context of the caller is taken over from a `traceparent` header [W3C Trace Context, section 3.2]. What OpenTelemetry's
semantic conventions have a name for goes by that name; the rest is `jaxserve.*`.
"""

import math
import re
import threading
import time
from typing import Any, Protocol

from jaxserve.errors import ConfigError, InvalidInput, MissingExtra, ModelNotFound, RequestCancelled
from jaxserve.metrics import Timeline
from jaxserve.server.v2_forms import NAME, VERSION

# A later version than 00 may have more fields behind those that are known, and ff is none.
_TRACEPARENT = re.compile(r"(?!ff|00.{53}.)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_CALLERS = frozenset({InvalidInput.code, ModelNotFound.code, RequestCancelled.code})
"""Outcomes that the caller brought about: as of any server's span, they are no errors of it."""

_LONGEST = 200


class Tracing(Protocol):
    """Where spans go.

    Attributes:
        is_on: whether they go anywhere.
    """

    is_on: bool

    def record(
        self,
        timeline: Timeline,
        *,
        now_s: float,
        model: str,
        code: str,
        request_id: str,
        protocol: str,
        traceparent: str | None,
    ) -> None:
        """Makes the spans of a request that is settled.

        Args:
            timeline: where its time went.
            now_s: the engine's clock, now.
            model: that was asked for.
            code: "served", or the error's.
            request_id: as it is logged.
            protocol: that it came by.
            traceparent: as it came.
        """
        ...


class _NotTraced:
    is_on = False

    def record(self, timeline: Timeline, **_: Any) -> None:
        """Nothing."""


NOT_TRACED: Tracing = _NotTraced()


class OpenTelemetry:
    """Sends spans to a collector, from a thread of its own.

    Args:
        endpoint: the collector's, of OTLP over HTTP, such as `http://127.0.0.1:4318`, where `/v1/traces` is meant; or
            None with `exporter`.
        exporter: a span exporter, in its place.

    Raises:
        ConfigError: the endpoint is no URL.
        MissingExtra: the extra `otel` is not installed.
    """

    is_on = True

    def __init__(self, endpoint: str | None = None, *, exporter: Any = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingExtra(
                "traces need OpenTelemetry, which is not installed; run `pip install 'jaxserve[otel]'`"
            ) from error
        if exporter is None:
            exporter = OTLPSpanExporter(endpoint=_traces_at(endpoint))
        self._trace = trace
        resource = Resource.create({"service.version": VERSION})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # OTEL_SERVICE_NAME may have said
            resource = resource.merge(Resource({"service.name": NAME}))
        # Whoever made this closes it, so that no handler is needed that does so as the process ends.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME, VERSION)

    def record(
        self,
        timeline: Timeline,
        *,
        now_s: float,
        model: str,
        code: str,
        request_id: str,
        protocol: str,
        traceparent: str | None,
    ) -> None:
        """See `Tracing`."""
        trace = self._trace
        epoch_ns = time.time_ns()

        def ns(engine_s: float) -> int:
            return epoch_ns + round(1e9 * (engine_s - now_s))

        # What the engine does not know, such as a request for a model that is not there, has no times.
        is_known = not math.isnan(timeline.arrival_s)
        arrival_s, settled_s = (timeline.arrival_s, timeline.settled_s) if is_known else (now_s, now_s)
        request = self._tracer.start_span(
            f"infer {model}" if is_known else "infer",  # names must be few, and anybody may ask for anything
            context=self._context(traceparent),
            kind=trace.SpanKind.SERVER,
            attributes={
                "network.protocol.name": protocol,
                "jaxserve.model": _shown(model),
                "jaxserve.outcome": code,
                "jaxserve.request_id": _shown(request_id),
            },
            start_time=ns(arrival_s),
        )
        if not request.is_recording():
            return  # not sampled
        inside = trace.set_span_in_context(request)

        def child(name: str, begin_s: float, end_s: float, **attributes: int) -> None:
            span = self._tracer.start_span(name, context=inside, attributes=attributes, start_time=ns(begin_s))
            span.end(end_time=ns(end_s))

        prepared_s = settled_s if math.isnan(timeline.decided_s) else timeline.decided_s
        if prepared_s > arrival_s:
            child("preprocess", arrival_s, prepared_s)
        if timeline.group >= 0:
            request.set_attribute("jaxserve.group", timeline.group)
            request.set_attribute("jaxserve.predicted_s", timeline.predicted_finish_s - arrival_s)
            child("queue", timeline.decided_s, settled_s if math.isnan(timeline.begun_s) else timeline.begun_s)
        for index, (begin_s, end_s) in enumerate(timeline.stages):
            child("stage", begin_s, end_s, **{"jaxserve.stage": index, "jaxserve.rows": timeline.rows})
        if code != "served" and code not in _CALLERS:
            request.set_attribute("error.type", code)
            request.set_status(trace.StatusCode.ERROR, code)
        request.end(end_time=ns(settled_s))

    def close(self, *, patience_s: float = 5.0) -> None:
        """Sends what has not been sent, and ends; what the collector does not take within `patience_s` is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="jaxserve-tracing-close", daemon=True)
        closing.start()
        closing.join(patience_s)

    def _context(self, traceparent: str | None) -> Any:
        """The caller's, where the header is well-formed."""
        match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        if match is None:
            return self._trace.set_span_in_context(self._trace.INVALID_SPAN)
        trace_id, span_id, flags = (int(part, 16) for part in match.groups())
        parent = self._trace.SpanContext(
            trace_id=trace_id, span_id=span_id, is_remote=True, trace_flags=self._trace.TraceFlags(flags)
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(parent))


def _traces_at(endpoint: str | None) -> str:
    """Where to send traces."""
    match = re.fullmatch(r"(https?://[^/?#\s]+)(/\S*)?", endpoint or "")
    if match is None:
        raise ConfigError(
            f"otlp_endpoint is {endpoint!r}, but must be the URL of a collector, as http://127.0.0.1:4318"
        )
    return f"{match[1]}/v1/traces" if match[2] in (None, "/") else match[0]


def _shown(text: str) -> str:
    """What a client sent, of bounded length; one text that is not Unicode would cost a whole batch of spans."""
    return text[:_LONGEST].encode(errors="replace").decode()
