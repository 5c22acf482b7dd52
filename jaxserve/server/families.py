"""What a scrape read of an engine and its servers, as families of prometheus_client."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from jaxserve.metrics import GroupObservation, Histogram, ModelMetrics, Observation
from jaxserve.request import RefuseReason
from jaxserve.server.v2_forms import VERSION

OUTCOMES: Mapping[str, Callable[[ModelMetrics], int]] = {
    "served": lambda metrics: metrics.served,
    "refused": lambda metrics: metrics.refused,
    "expired": lambda metrics: metrics.expired,
    "failed": lambda metrics: metrics.failed,
    "cancelled": lambda metrics: metrics.cancelled,
    "invalid": lambda metrics: metrics.invalid,
}
Rows = Iterable[tuple[Sequence[str], float]]
"""Values by those of the labels."""
_BUILD = (VERSION, version("jax"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading(Collector):
    """What a scrape read on the loop; one thread may collect it while the loop goes on.

    So what is iterated over here does not change its size, and counters are read once each, without those that change
    when they are looked at (attainment, busy seconds). What came while the thread works is in some and not in others.

    Attributes:
        observed: the engine; its counters go on counting.
        readiness: of every model, whether it is ready.
        is_ready: whether the server is.
        groups: by their labels.
        attainment: by model and window.
        busy_s: by group and stage.
        connections: by protocol.
        connections_refused: by protocol.
        http_responses: by status.
        turned_away: by protocol and code.
    """

    observed: Observation
    readiness: Mapping[str, bool]
    is_ready: bool
    groups: Sequence[tuple[str, GroupObservation]]
    attainment: Rows
    busy_s: Rows
    connections: Rows
    connections_refused: Rows
    http_responses: Rows
    turned_away: Rows

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._of_models()
        yield from self._of_groups()
        yield from self._of_servers()

    def _of_models(self) -> Iterator[Metric]:
        models = [((name,), model.metrics) for name, model in self.observed.models.items()]

        def counter(name: str, about: str, read: Callable[[ModelMetrics], float]) -> Metric:
            return _counter(name, about, ("model",), ((label, read(metrics)) for label, metrics in models))

        def histogram(name: str, about: str, read: Callable[[ModelMetrics], Histogram]) -> Metric:
            return _histogram(name, about, ("model",), ((label, read(metrics)) for label, metrics in models))

        yield _counter(
            "jaxserve_requests_total",
            "Requests by what became of them; served ones may be late",
            ("model", "outcome"),
            (((*label, outcome), read(metrics)) for label, metrics in models for outcome, read in OUTCOMES.items()),
        )
        yield _counter(
            "jaxserve_refusals_total",
            "Refused requests, by why they were",
            ("model", "reason"),
            (
                ((*label, reason.value), metrics.refusals[reason])
                for label, metrics in models
                for reason in RefuseReason
            ),
        )
        yield counter("jaxserve_late_responses_total", "Served requests that were late", lambda metrics: metrics.late)
        yield histogram(
            "jaxserve_request_duration_seconds",
            "From arrival to answer, of served requests",
            lambda metrics: metrics.latency,
        )
        yield histogram(
            "jaxserve_preprocess_duration_seconds",
            "From arrival to admission, of requests that began on a group: pre-processing, and the wait for it",
            lambda metrics: metrics.preparation,
        )
        yield histogram(
            "jaxserve_queue_duration_seconds",
            "From admission to the begin of the first stage, of requests that began on a group",
            lambda metrics: metrics.queue,
        )
        yield histogram(
            "jaxserve_prediction_error_seconds",
            "How much later than predicted on arrival served requests were answered; sooner where negative",
            lambda metrics: metrics.error,
        )
        yield histogram("jaxserve_batch_rows", "Rows of batches, without padding", lambda metrics: metrics.rows)
        yield counter("jaxserve_batches_total", "Batches that began", lambda metrics: metrics.batches)
        yield counter(
            "jaxserve_bucket_elements_total",
            "Sizes of the buckets that batches ran in: rows times padded lengths",
            lambda metrics: metrics.volume,
        )
        yield counter(
            "jaxserve_padding_elements_total",
            "Of jaxserve_bucket_elements_total, what was padding",
            lambda metrics: metrics.padding,
        )
        yield _gauge(
            "jaxserve_slo_attainment_ratio",
            "Share of the requests that ended in the window which were served in time; none where no request ended",
            ("model", "window"),
            self.attainment,
        )
        yield _gauge(
            "jaxserve_model_drift_ratio",
            "What stages take over what they were profiled to take; the largest ratio",
            ("model",),
            (((name,), model.drift) for name, model in self.observed.models.items()),
        )
        yield _gauge(
            "jaxserve_model_ready",
            "Whether an inference was answered lately",
            ("model",),
            (((name,), is_ready) for name, is_ready in self.readiness.items()),
        )

    def _of_groups(self) -> Iterator[Metric]:
        def gauge(name: str, about: str, read: Callable[[GroupObservation], float]) -> Metric:
            return _gauge(name, about, ("group",), (((label,), read(group)) for label, group in self.groups))

        yield gauge("jaxserve_group_healthy", "Whether the group takes requests", lambda group: group.healthy)
        yield gauge(
            "jaxserve_group_queue_requests", "Requests that wait for the group's first stage", lambda group: group.queue
        )
        yield gauge(
            "jaxserve_group_in_flight_requests",
            "Requests inside the group, those that wait included",
            lambda group: group.in_flight,
        )
        yield _histogram(
            "jaxserve_stage_duration_seconds",
            "How long a stage took for a batch",
            ("group", "stage"),
            (
                ((label, str(index)), stage.duration)
                for label, group in self.groups
                for index, stage in enumerate(group.metrics.stages)
            ),
        )
        yield _counter(
            "jaxserve_stage_busy_seconds_total",
            "How long a stage ran, with what it runs now",
            ("group", "stage"),
            self.busy_s,
        )
        yield _gauge(
            "jaxserve_weight_bytes",
            "Weights on each device of a stage, of all models that are there",
            ("group", "stage"),
            (
                ((label, str(stage)), weight_bytes)
                for label, group in self.groups
                for stage, weight_bytes in enumerate(group.weight_bytes)
            ),
        )
        memory = self.observed.memory
        yield _gauge(
            "jaxserve_device_memory_in_use_bytes",
            "Memory of a device that is allocated; none for devices that do not tell",
            ("device",),
            (((str(device.device),), device.in_use_bytes) for device in memory),
        )
        yield _gauge(
            "jaxserve_device_memory_limit_bytes",
            "Memory of a device that may be allocated",
            ("device",),
            (((str(device.device),), device.limit_bytes) for device in memory),
        )

    def _of_servers(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "jaxserve_in_flight_requests", "Requests that are not answered yet", self.observed.in_flight
        )
        yield GaugeMetricFamily("jaxserve_ready", "Whether the server and all its models are ready", self.is_ready)
        yield GaugeMetricFamily("jaxserve_uptime_seconds", "Since the engine was opened", self.observed.uptime_s)
        yield _gauge("jaxserve_build_info", "Versions", ("version", "jax_version"), [(_BUILD, 1)])
        yield _counter(
            "jaxserve_http_responses_total", "Answers to HTTP requests, by status", ("code",), self.http_responses
        )
        yield _counter(
            "jaxserve_turned_away_requests_total",
            "Requests that were refused before a model was asked, by the error's code",
            ("protocol", "code"),
            self.turned_away,
        )
        yield _gauge("jaxserve_connections", "Connections that are open", ("protocol",), self.connections)
        yield _counter(
            "jaxserve_connections_refused_total",
            "Connections that were closed at once, because there were too many",
            ("protocol",),
            self.connections_refused,
        )


def _counter(name: str, about: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _gauge(name: str, about: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(name: str, about: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for values, histogram in rows:
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        counts = histogram.counts.copy()  # at one moment: the loop goes on counting
        # Where bounds are negative there will be no sum: it might go down.
        family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), histogram.sum)
    return family
