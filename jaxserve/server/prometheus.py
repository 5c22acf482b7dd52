"""Metrics for Prometheus.

The engine counts as it runs, in plain numbers of its own. A scrape only reads them, so that nothing is counted twice
and requests pay for no metric; and there is no registry of the process, so that a process may hold several engines.
docs/metrics.md tells what each metric is for.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from jaxserve.metrics import WINDOWS, GroupObservation, ModelMetrics, ModelObservation, Observation
from jaxserve.request import RefuseReason
from jaxserve.server.exposition import Family, Value, as_metric, write
from jaxserve.server.health import Health
from jaxserve.server.seam import ServedEngine
from jaxserve.server.v2_forms import VERSION

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OUTCOMES: Mapping[str, Callable[[ModelMetrics], int]] = {
    "served": lambda metrics: metrics.served,
    "refused": lambda metrics: metrics.refused,
    "expired": lambda metrics: metrics.expired,
    "failed": lambda metrics: metrics.failed,
    "cancelled": lambda metrics: metrics.cancelled,
    "invalid": lambda metrics: metrics.invalid,
}
HOST = "host"
"""The group of the models that need no device, as a label."""


class Prometheus(Collector):
    """Metrics of one engine and its servers, of this process, and of Python. Call it on the engine's loop.

    It is a collector for prometheus_client, too: registered elsewhere, it gives the engine's and the servers' metrics.

    Args:
        engine: that is looked at.
        health: who is ready.
        connections: open connections by protocol, such as `{"http": 3}`.
        connections_refused: those that were closed at once, because there were too many, by protocol.
        http_responses: answers by status.
    """

    def __init__(
        self,
        engine: ServedEngine,
        health: Health,
        *,
        connections: Callable[[], Mapping[str, int]] = dict,
        connections_refused: Callable[[], Mapping[str, int]] = dict,
        http_responses: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        self._engine = engine
        self._health = health
        self._connections = connections
        self._connections_refused = connections_refused
        self._http_responses = http_responses
        self._build = ((VERSION, version("jax")), 1)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in Prometheus's text format, or in OpenMetrics where the header `Accept` asks for that.

        Returns the body and its content type.
        """
        try:
            _, chosen = choose_encoder(accept)
        except TypeError:  # a version that is no number
            chosen = _TEXT
        if chosen.startswith("application/openmetrics-text"):
            ours = write(self.families(), openmetrics=True)
            return ours.encode() + openmetrics.generate_latest(self._process), _OPENMETRICS
        return write(self.families(), openmetrics=False).encode() + generate_latest(self._process), _TEXT

    def collect(self) -> Iterator[Metric]:
        """The engine's and the servers' metrics as prometheus_client has them."""
        return map(as_metric, self.families())

    def families(self) -> Iterator[Family]:
        """The engine's and the servers' metrics."""
        observed, readiness = self._engine.observe(), self._health.readiness()
        yield from _of_models(observed, readiness)
        yield from _of_groups(observed)
        yield from self._of_servers(observed, readiness)

    def _of_servers(self, observed: Observation, readiness: Mapping[str, bool]) -> Iterator[Family]:
        # No model is ready where the server is not; only where there are no models it has to be asked itself.
        is_ready = all(readiness.values()) if readiness else self._health.is_ready()
        yield Family(
            "jaxserve_in_flight_requests", "gauge", "Requests that are not answered yet", (), [((), observed.in_flight)]
        )
        yield Family("jaxserve_ready", "gauge", "Whether the server and all its models are ready", (), [((), is_ready)])
        yield Family("jaxserve_uptime_seconds", "gauge", "Since the engine was opened", (), [((), observed.uptime_s)])
        yield Family("jaxserve_build_info", "gauge", "Versions", ("version", "jax_version"), [self._build])
        yield Family(
            "jaxserve_http_responses_total",
            "counter",
            "Answers to HTTP requests, by status",
            ("code",),
            [((str(code),), count) for code, count in sorted(self._http_responses().items())],
        )
        yield Family(
            "jaxserve_connections",
            "gauge",
            "Connections that are open",
            ("protocol",),
            [((protocol,), count) for protocol, count in self._connections().items()],
        )
        yield Family(
            "jaxserve_connections_refused_total",
            "counter",
            "Connections that were closed at once, because there were too many",
            ("protocol",),
            [((protocol,), count) for protocol, count in self._connections_refused().items()],
        )


def _of_models(observed: Observation, readiness: Mapping[str, bool]) -> Iterator[Family]:
    models = [((name,), model) for name, model in observed.models.items()]

    def counter(name: str, about: str, read: Callable[[ModelMetrics], Value]) -> Family:
        return Family(name, "counter", about, ("model",), [(label, read(model.metrics)) for label, model in models])

    def histogram(name: str, about: str, read: Callable[[ModelMetrics], Value]) -> Family:
        return counter(name, about, read)._replace(kind="histogram")

    def gauge(name: str, about: str, read: Callable[[str, ModelObservation], float]) -> Family:
        return Family(name, "gauge", about, ("model",), [(label, read(*label, model)) for label, model in models])

    yield Family(
        "jaxserve_requests_total",
        "counter",
        "Requests by what became of them; served ones may be late",
        ("model", "outcome"),
        [((*label, outcome), read(model.metrics)) for label, model in models for outcome, read in OUTCOMES.items()],
    )
    yield Family(
        "jaxserve_refusals_total",
        "counter",
        "Refused requests, by why they were",
        ("model", "reason"),
        [
            ((*label, reason.value), model.metrics.refusals[reason])
            for label, model in models
            for reason in RefuseReason
        ],
    )
    yield counter("jaxserve_late_responses_total", "Served requests that were late", lambda metrics: metrics.late)
    yield histogram(
        "jaxserve_request_duration_seconds",
        "From arrival to answer, of served requests",
        lambda metrics: metrics.latency,
    )
    yield histogram(
        "jaxserve_preprocess_duration_seconds",
        "From arrival to admission, of requests that began: pre-processing, and the wait for it",
        lambda metrics: metrics.preparation,
    )
    yield histogram(
        "jaxserve_queue_duration_seconds",
        "From admission to the begin of the first stage, of requests that began",
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
    attainment = [
        ((*label, window), model.metrics.attainment.over(window_s, observed.now_s))
        for label, model in models
        for window, window_s in WINDOWS.items()
    ]
    yield Family(
        "jaxserve_slo_attainment_ratio",
        "gauge",
        "Share of the requests that ended in the window which were served in time; none where no request ended",
        ("model", "window"),
        [(labels, share) for labels, share in attainment if share is not None],
    )
    yield gauge(
        "jaxserve_model_drift_ratio",
        "What stages take over what they were profiled to take; the largest ratio",
        lambda _, model: model.drift,
    )
    yield gauge(
        "jaxserve_model_ready", "Whether an inference was answered lately", lambda name, _: readiness.get(name, False)
    )


def _of_groups(observed: Observation) -> Iterator[Family]:
    groups = [(str(index), group) for index, group in enumerate(observed.groups)]
    if observed.host.models:
        groups.append((HOST, observed.host))
    stages = [
        ((label, str(index)), stage) for label, group in groups for index, stage in enumerate(group.metrics.stages)
    ]

    def gauge(name: str, about: str, read: Callable[[GroupObservation], float]) -> Family:
        return Family(name, "gauge", about, ("group",), [((label,), read(group)) for label, group in groups])

    yield gauge("jaxserve_group_healthy", "Whether the group takes requests", lambda group: group.healthy)
    yield gauge(
        "jaxserve_group_queue_requests", "Requests that wait for the group's first stage", lambda group: group.queue
    )
    yield gauge(
        "jaxserve_group_in_flight_requests",
        "Requests inside the group, those that wait included",
        lambda group: group.in_flight,
    )
    yield Family(
        "jaxserve_stage_duration_seconds",
        "histogram",
        "How long a stage took for a batch",
        ("group", "stage"),
        [(labels, stage.duration) for labels, stage in stages],
    )
    yield Family(
        "jaxserve_stage_busy_seconds_total",
        "counter",
        "How long a stage ran, with what it runs now",
        ("group", "stage"),
        [
            ((label, str(stage)), busy_s)
            for label, group in groups
            for stage, busy_s in enumerate(group.metrics.busy_until(observed.now_s))
        ],
    )
    yield Family(
        "jaxserve_weight_bytes",
        "gauge",
        "Weights on each device of a stage, of all models that are there",
        ("group", "stage"),
        [
            ((label, str(stage)), weight_bytes)
            for label, group in groups
            for stage, weight_bytes in enumerate(group.weight_bytes)
        ],
    )
    memory = [((str(device.device),), device) for device in observed.memory]
    yield Family(
        "jaxserve_device_memory_in_use_bytes",
        "gauge",
        "Memory of a device that is allocated; none for devices that do not tell",
        ("device",),
        [(label, device.in_use_bytes) for label, device in memory],
    )
    yield Family(
        "jaxserve_device_memory_limit_bytes",
        "gauge",
        "Memory of a device that may be allocated",
        ("device",),
        [(label, device.limit_bytes) for label, device in memory],
    )
