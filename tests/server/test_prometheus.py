"""The metrics that are scraped: against prometheus_client's parsers, and what the engine counted."""

import asyncio
import dataclasses
import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from jaxserve.request import RefuseReason
from jaxserve.server import prometheus as module
from jaxserve.server.families import OUTCOMES
from jaxserve.server.front import Doors, Front
from jaxserve.server.health import Health
from jaxserve.server.prometheus import HOST, Prometheus
from tests.emulated_engine import Caller, model, serving
from tests.jumping_loop import run, until
from tests.server.scrapes import OPENMETRICS, TEXT, WithMemory, exporting, families, of, samples, scrape, some_requests

ODD_NAME = 'an "odd" \\ name'


def test_a_scrape_tells_what_was_counted() -> None:
    async def main() -> None:
        counts: Mapping[str, Callable[[], Any]] = {
            "connections": lambda: {"http": 3, "native": 1},
            "connections_refused": lambda: {"http": 2},
            "http_responses": lambda: {200: 7, 429: 1},
            "turned_away": lambda: {("grpc", "unauthenticated"): 4},
        }
        async with exporting(model(), model("n"), counts=counts) as (engine, prometheus):
            begin_s = engine.now_s()
            before = await scrape(prometheus)
            await some_requests(engine)
            found = await scrape(prometheus)
            for outcome in OUTCOMES:
                expected = {"served": 2, "refused": 1, "cancelled": 1}.get(outcome, 0)
                assert of(found, "jaxserve_requests_total", model="m", outcome=outcome) == expected
                assert of(found, "jaxserve_requests_total", model="n", outcome=outcome) == 0
            assert of(found, "jaxserve_refusals_total", model="m", reason="late") == 1
            assert of(found, "jaxserve_refusals_total", model="m", reason="full") == 0
            assert of(found, "jaxserve_request_duration_seconds_sum", model="m") == 1.5 + 2.5
            assert of(found, "jaxserve_request_duration_seconds_count", model="m") == 2
            assert of(found, "jaxserve_request_duration_seconds_bucket", model="m", le="1.0") == 0
            assert of(found, "jaxserve_request_duration_seconds_bucket", model="m", le="2.5") == 2
            assert of(found, "jaxserve_request_duration_seconds_bucket", model="m", le="+Inf") == 2
            assert of(found, "jaxserve_queue_duration_seconds_sum", model="m") == 1.0
            assert of(found, "jaxserve_preprocess_duration_seconds_count", model="m") == 2
            assert of(found, "jaxserve_batch_rows_sum", model="m") == 3
            assert of(found, "jaxserve_batches_total", model="m") == 2
            assert of(found, "jaxserve_bucket_elements_total", model="m") == 2 + 2 * 4
            assert of(found, "jaxserve_padding_elements_total", model="m") == 2
            assert of(found, "jaxserve_late_responses_total", model="m") == 0
            assert of(found, "jaxserve_prediction_error_seconds_bucket", model="m", le="-0.0025") == 0
            assert of(found, "jaxserve_prediction_error_seconds_bucket", model="m", le="0.0") == 2
            assert not any(re.match("jaxserve_prediction_error_seconds_(sum|count)", name) for name, _ in found)
            assert of(found, "jaxserve_slo_attainment_ratio", model="m", window="1m") == 2 / 3
            assert of(found, "jaxserve_model_drift_ratio", model="m") == 1
            assert of(found, "jaxserve_model_ready", model="m") == of(found, "jaxserve_ready") == 1
            assert of(found, "jaxserve_in_flight_requests") == 0
            assert of(found, "jaxserve_uptime_seconds") == begin_s + 10.0
            for stage, busy_s in (("0", 2.0), ("1", 1.0)):
                name = "jaxserve_stage_busy_seconds_total"
                labels = {"group": "0", "stage": stage}
                assert of(found, name, **labels) - of(before, name, **labels) == busy_s
                assert of(found, "jaxserve_stage_duration_seconds_count", **labels) >= 2
                assert of(found, "jaxserve_weight_bytes", **labels) == 0
            for name in ("queue_requests", "in_flight_requests"):
                assert of(found, f"jaxserve_group_{name}", group="0") == 0
            assert of(found, "jaxserve_group_healthy", group="0") == 1
            assert of(found, "jaxserve_connections", protocol="http") == 3
            assert of(found, "jaxserve_connections_refused_total", protocol="http") == 2
            assert of(found, "jaxserve_http_responses_total", code="429") == 1
            assert of(found, "jaxserve_turned_away_requests_total", protocol="grpc", code="unauthenticated") == 4
            versions = {"version": version("jaxserve"), "jax_version": version("jax")}
            assert of(found, "jaxserve_build_info", **versions) == 1
            assert of(found, "process_resident_memory_bytes") > 0
            assert of(found, "python_gc_collections_total", generation="0") >= 0
            assert not any(
                name == "jaxserve_slo_attainment_ratio" and ("model", "n") in labels for name, labels in found
            )

    run(main())


def test_what_waits_and_what_is_not_ready_shows() -> None:
    async def main() -> None:
        async with exporting(model()) as (engine, prometheus):
            caller = Caller(engine)
            for _ in range(3):
                caller.call(rows=4)
            found = await scrape(prometheus)
            assert of(found, "jaxserve_group_queue_requests", group="0") == 2
            assert (
                of(found, "jaxserve_group_in_flight_requests", group="0")
                == of(found, "jaxserve_in_flight_requests")
                == 3
            )
            await engine.drain()
            found = await scrape(prometheus)
            assert of(found, "jaxserve_ready") == of(found, "jaxserve_model_ready", model="m") == 0
        async with exporting() as (engine, prometheus):
            assert of(await scrape(prometheus), "jaxserve_ready") == 1
            await engine.drain()
            assert of(await scrape(prometheus), "jaxserve_ready") == 0

    run(main())


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_either_format_says_what_is_collected(accept: str) -> None:
    async def main() -> None:
        async with exporting(model(), model(ODD_NAME)) as (engine, prometheus):
            await some_requests(engine)
            registry = CollectorRegistry()
            registry.register(prometheus)
            found = await scrape(prometheus, accept)
            ours = {key: value for key, value in found.items() if not re.match("process_|python_", key[0])}
            assert ours == samples(registry.collect())
            assert of(found, "jaxserve_batches_total", model=ODD_NAME) == 0

    run(main())


PROMETHEUS_2 = (  # as Prometheus 2 and 3 send them
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        (
            "text/plain;version=1.0.0;escaping=allow-utf-8",
            "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
        ("text/html,application/xhtml+xml", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        ("application/openmetrics-text; version=none", TEXT),
        ("application/openmetrics-text; version=1.0.0.\u00e9", TEXT),
        (PROMETHEUS_2, f"{OPENMETRICS}; escaping=underscores"),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
    ],
)
def test_the_format_is_what_the_scraper_accepts(accept: str, content_type: str) -> None:
    async def main() -> None:
        async with exporting(model()) as (_, prometheus):
            body, found = await prometheus.exposition(accept)
            assert found == content_type
            assert body.endswith(b"# EOF\n") is content_type.startswith(OPENMETRICS)

    run(main())


ACCEPTS = st.lists(
    st.sampled_from(
        (
            "application/openmetrics-text",
            "text/plain",
            ";",
            ",",
            "version=",
            "1.0.0",
            "x",
            "=",
            ".",
            " ",
            "²",
            "9" * 5000,
        )
    )
).map("".join)


@settings(deadline=None)
@given(st.lists(st.one_of(ACCEPTS, st.text()), max_size=20))
def test_no_header_breaks_a_scrape(accepts: list[str]) -> None:
    async def main() -> None:
        async with exporting() as (_, prometheus):
            for accept in accepts:
                _, content_type = await prometheus.exposition(accept)
                assert re.fullmatch(r"(text/plain|application/openmetrics-text); version=[ -~]+", content_type)

    run(main())


class Encoder:
    """One that waits before it encodes, and counts how many do at a time."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may = threading.Semaphore(0)
        self.now = self.most = 0

    def choose(self, accept: str) -> tuple[Callable[[Collector], bytes], str]:
        encode, content_type = prometheus_client.exposition.choose_encoder(accept)

        def wait_and_encode(registry: Collector) -> bytes:
            self.now += 1
            self.most = max(self.most, self.now)
            self.began.release()
            self.may.acquire()
            self.now -= 1
            return encode(registry)

        return wait_and_encode, content_type


def test_scrapes_go_one_by_one_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    monkeypatch.setattr(module, "choose_encoder", encoder.choose)

    async def main() -> None:
        async with exporting(model()) as (engine, prometheus):
            scrapes = [asyncio.create_task(scrape(prometheus)) for _ in range(3)]
            await asyncio.to_thread(encoder.began.acquire)
            await engine.unload("m")
            scrapes[0].cancel()  # its scraper has gone, its thread has not
            await asyncio.wait(scrapes[:1])
            scrapes.append(asyncio.create_task(scrape(prometheus)))
            encoder.may.release(4)
            for each in scrapes[1:3]:
                assert of(await each, "jaxserve_batches_total", model="m") >= 0
            assert not any(name == "jaxserve_batches_total" for name, _ in await scrapes[3])
            assert encoder.most == 1

    asyncio.run(main())


def test_the_thread_ends_with_the_servers() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with serving(model()) as (engine, _):
            async with Front(engine, Doors(port=None, grpc_port=None)) as front:
                await front.metrics("")
                [thread] = [each for each in set(threading.enumerate()) - before if "metrics" in each.name]
            thread.join(60.0)
            assert not thread.is_alive()

    asyncio.run(main())


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Lets threads take turns often."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.usefixtures("hasty_threads")
def test_what_is_counted_meanwhile_breaks_no_scrape() -> None:
    async def main() -> None:
        answered = dict[int, int]()
        async with exporting(model(), counts={"http_responses": lambda: answered}) as (engine, prometheus):
            metrics = engine.observe().models["m"].metrics
            for _ in range(5):
                scraping = asyncio.create_task(scrape(prometheus))
                while not scraping.done():
                    answered.clear() if len(answered) > 50 else answered.setdefault(len(answered), 1)
                    for value_s in (10.0, 0.01, 100.0, 0.0):
                        metrics.latency.observe(value_s)
                    for reason in RefuseReason:
                        metrics.refuse(reason, engine.now_s())
                    await asyncio.sleep(0)
                found, name = await scraping, "jaxserve_request_duration_seconds"
                counts = [
                    of(found, f"{name}_bucket", model="m", le=le) for le in (*map(str, metrics.latency.bounds), "+Inf")
                ]
                assert counts == sorted(counts)
                assert counts[-1] == of(found, f"{name}_count", model="m")

    asyncio.run(main())


def test_engines_of_one_process_do_not_meet() -> None:
    async def main() -> None:
        async with exporting(model()) as (engine, first), exporting(model("other")) as (_, second):
            await some_requests(engine)
            assert of(await scrape(first), "jaxserve_batches_total", model="m") == 2
            models = {
                dict(labels)["model"] for name, labels in await scrape(second) if name == "jaxserve_batches_total"
            }
            assert models == {"other"}
            assert not [each for each in prometheus_client.REGISTRY.collect() if each.name.startswith("jaxserve")]

    run(main())


STEPS = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.3, 1.0, 7.0)),  # seconds until then
        st.integers(1, 4),  # rows
        st.sampled_from((None, 1.0, 2.0, 4.0)),  # deadline
        st.sampled_from((None, None, 0.4, 1.5)),  # patience
    ),
    min_size=1,
    max_size=25,
)
GOES_UP = ("_total", "_count", "_sum", "_bucket")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS)
def test_counters_never_go_down_and_nothing_vanishes(
    steps: list[tuple[float, int, float | None, float | None]],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with exporting(model(), groups=2, stuck_after_s=math.inf) as (engine, prometheus):
            caller, before = Caller(engine), dict[Any, float]()
            for wait_s, rows, deadline_s, patience_s in steps:
                await until(loop.time() + wait_s)
                ticket = caller.call(rows, deadline_s=deadline_s)
                if patience_s is not None:
                    loop.call_later(patience_s, engine.cancel, ticket)
                found = {
                    key: value
                    for key, value in samples(prometheus.collect()).items()
                    if key[0].endswith(GOES_UP) and key[0] != "jaxserve_prediction_error_seconds_sum"
                }
                assert found.keys() >= before.keys()
                assert [key for key, value in before.items() if found[key] < value] == []
                before = found

    run(main())


def test_a_stage_that_ends_before_it_was_looked_at_does_not_make_its_busy_seconds_go_down() -> None:
    now = [0.0]

    async def main() -> None:
        async with serving(model(), clock=lambda: now[0]) as (engine, _):
            prometheus = Prometheus(engine, Health(engine))
            busy = "jaxserve_stage_busy_seconds_total"
            Caller(engine).call()
            now[0] = 1.25  # the loop was busy: stage 0 ended at 1.0, and nobody has been told
            assert of(samples(prometheus.collect()), busy, group="0", stage="0") == 1.25
            engine.advance(now[0])
            assert of(samples(prometheus.collect()), busy, group="0", stage="0") == 1.25

    asyncio.run(main())


def test_models_come_and_go() -> None:
    async def main() -> None:
        async with exporting(model(), model("n")) as (engine, prometheus):
            await some_requests(engine)
            await engine.unload("m")
            assert {dict(labels).get("model") for _, labels in await scrape(prometheus)} == {"n", None}
            await engine.load(model())
            assert of(await scrape(prometheus), "jaxserve_requests_total", model="m", outcome="served") == 0

    run(main())


def test_the_group_on_the_host_is_there_with_its_models() -> None:
    async def main() -> None:
        on_host = dataclasses.replace(model("host"), on_host=True)
        async with exporting(model(), on_host) as (engine, prometheus):
            Caller(engine).call(name="host")
            assert of(await scrape(prometheus), "jaxserve_stage_duration_seconds_count", group=HOST, stage="0") >= 1
            await engine.unload("host")
            assert not any(("group", HOST) in labels for _, labels in await scrape(prometheus))

    run(main())


def test_devices_that_tell_of_their_memory_are_listed() -> None:
    async def main() -> None:
        async with exporting(model(), make=WithMemory) as (_, prometheus):
            found = await scrape(prometheus)
            assert of(found, "jaxserve_device_memory_in_use_bytes", device="3") == 10
            assert of(found, "jaxserve_device_memory_limit_bytes", device="3") == 2**37

    run(main())


def test_names_and_labels_follow_the_conventions() -> None:
    ours = {name: family for name, family in families().items() if name.startswith("jaxserve_")}
    units = (
        "seconds|bytes|ratio|rows|requests|responses|elements|batches|refusals|connections|refused|healthy|ready|info"
    )
    for name, family in ours.items():
        assert re.fullmatch(rf"jaxserve(_[a-z]+)*_({units})", name), name
        assert re.fullmatch(r"[A-Z][^.\"\\]*[^.]", family.documentation), name
        assert family.samples, f"{name} has no sample"
        assert all(re.fullmatch("[a-z]+(_[a-z]+)?", label) for sample in family.samples for label in sample.labels)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt install prometheus")
def test_promtool_finds_nothing_wrong() -> None:
    async def main() -> bytes:
        async with exporting(model(), model(ODD_NAME)) as (engine, prometheus):
            await some_requests(engine)
            return (await prometheus.exposition(""))[0]

    checked = subprocess.run(["promtool", "check", "metrics"], input=run(main()), capture_output=True, check=False)
    said = (checked.stdout + checked.stderr).decode().splitlines()
    assert checked.returncode in (0, 3), said  # 3 is for doubts about names: here those of prometheus_client's own
    assert [line for line in said if not line.startswith("python_")] == []
