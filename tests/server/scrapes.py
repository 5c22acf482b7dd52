"""Scrapes of an engine on emulated groups, parsed."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from jaxserve.cluster import DeviceMemory
from jaxserve.engine import Engine
from jaxserve.metrics import Observation
from jaxserve.model import Model
from jaxserve.server.health import Health
from jaxserve.server.prometheus import Prometheus
from tests.emulated_engine import Caller, model, serving
from tests.jumping_loop import run, until

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextlib.asynccontextmanager
async def exporting(
    *models: Model, counts: Mapping[str, Callable[[], Any]] | None = None, **options: Any
) -> AsyncIterator[tuple[Engine, Prometheus]]:
    """An engine and its metrics; `counts` are those of its servers."""
    async with serving(*models, **options) as (engine, _), Health(engine, ready_within_s=1e6) as health:
        with contextlib.closing(Prometheus(engine, health, **(counts or {}))) as prometheus:
            yield engine, prometheus


def samples(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


async def scrape(prometheus: Prometheus, accept: str = "") -> Samples:
    body, content_type = await prometheus.exposition(accept)
    parse = (
        openmetrics_parser.text_string_to_metric_families
        if content_type.startswith("application/openmetrics-text")
        else text_string_to_metric_families
    )
    return samples(parse(body.decode()))


def of(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def some_requests(engine: Engine) -> None:
    """One is served alone, two as a batch, one is refused, one cancelled."""
    caller = Caller(engine)
    caller.call()
    caller.call(rows=2, length=3)
    caller.call(deadline_s=0.5)
    engine.cancel(caller.call())
    await until(asyncio.get_running_loop().time() + 10.0)


class WithMemory(Engine):
    """An engine on a device that tells of its memory."""

    def observe(self) -> Observation:
        return dataclasses.replace(
            super().observe(), memory=[DeviceMemory(device=3, in_use_bytes=10, limit_bytes=2**37)]
        )


def families() -> Mapping[str, Metric]:
    """Every family that is exported, by name."""

    async def main() -> dict[str, Metric]:
        counts: Mapping[str, Callable[[], Any]] = {
            "connections": lambda: {"http": 1},
            "connections_refused": lambda: {"http": 1},
            "http_responses": lambda: {200: 1},
            "turned_away": lambda: {("http", "bad_request"): 1},
        }
        async with exporting(model(), counts=counts, make=WithMemory) as (engine, prometheus):
            await some_requests(engine)
            body, _ = await prometheus.exposition("")
            return {family.name: family for family in text_string_to_metric_families(body.decode())}

    return run(main())
