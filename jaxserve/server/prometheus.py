"""Metrics for Prometheus.

The engine counts as it runs, in plain numbers of its own. A scrape only reads them, so that nothing is counted twice
and requests pay for no metric; and there is no registry of the process, so that a process may hold several engines.
docs/metrics.md tells what each metric is for.

With a few hundred models prometheus_client takes some tenths of a second for its samples and their text. So the loop
only reads what it alone may, and a thread does the rest while the loop goes on and counts.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from jaxserve.metrics import WINDOWS
from jaxserve.server.families import Reading
from jaxserve.server.health import Health
from jaxserve.server.seam import ServedEngine

HOST = "host"
"""The group of the models that need no device, as a label."""


class Prometheus(Collector):
    """Metrics of one engine and its servers, of this process, and of Python. Call it on the engine's loop.

    It is a collector for prometheus_client, too: registered elsewhere, it gives the engine's and the servers' metrics.
    Who has asked it for an exposition closes it at the end.

    Args:
        engine: that is looked at.
        health: who is ready.
        connections: open connections by protocol, such as `{"http": 3}`.
        connections_refused: those that were closed at once, because there were too many, by protocol.
        http_responses: answers by status.
        turned_away: requests that no engine has seen, by protocol and code.
    """

    def __init__(
        self,
        engine: ServedEngine,
        health: Health,
        *,
        connections: Callable[[], Mapping[str, int]] = dict,
        connections_refused: Callable[[], Mapping[str, int]] = dict,
        http_responses: Callable[[], Mapping[int, int]] = dict,
        turned_away: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        self._engine = engine
        self._health = health
        self._connections = connections
        self._connections_refused = connections_refused
        self._http_responses = http_responses
        self._turned_away = turned_away
        # A thread of its own: scrapes come one after another, even where the scraper of one has gone.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jaxserve-metrics")

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in Prometheus's text format, or in OpenMetrics where the header `Accept` asks for that.

        Returns the body and its content type.
        """
        encode, content_type = _encoder(accept)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _write, self._read(), encode), content_type

    def close(self) -> None:
        """Ends the thread, once it has written what was asked for; after that there is no exposition."""
        self._thread.shutdown(wait=False)

    def collect(self) -> Iterator[Metric]:
        """The engine's and the servers' metrics as prometheus_client has them."""
        return self._read().collect()

    def _read(self) -> Reading:
        observed = self._engine.observe()
        readiness = self._health.readiness(observed)
        groups = [(str(index), group) for index, group in enumerate(observed.groups)]
        if observed.host.models:
            groups.append((HOST, observed.host))
        return Reading(
            observed=observed,
            readiness=readiness,
            # No model is ready where the server is not; only where there are no models it has to be asked itself.
            is_ready=all(readiness.values()) if readiness else self._health.is_ready(),
            groups=groups,
            attainment=[
                ((name, window), share)
                for name, model in observed.models.items()
                for window, window_s in WINDOWS.items()
                if (share := model.metrics.attainment.over(window_s, observed.now_s)) is not None
            ],
            busy_s=[
                ((label, str(stage)), busy_s)
                for label, group in groups
                for stage, busy_s in enumerate(group.metrics.busy_until(observed.now_s))
            ],
            connections=[((protocol,), count) for protocol, count in self._connections().items()],
            connections_refused=[((protocol,), count) for protocol, count in self._connections_refused().items()],
            http_responses=[((str(code),), count) for code, count in sorted(self._http_responses().items())],
            turned_away=sorted(self._turned_away().items()),
        )


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        encode, content_type = choose_encoder(accept)
    except TypeError:  # a version that is no number
        return choose_encoder("")
    # The content type repeats the version that was asked for, whatever follows its numbers.
    return (encode, content_type) if content_type.isascii() and content_type.isprintable() else choose_encoder("")


def _write(reading: Reading, encode: Callable[[Collector], bytes]) -> bytes:
    registry = CollectorRegistry()
    registry.register(reading)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return encode(registry)
