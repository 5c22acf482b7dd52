"""`jaxserve demo`: four models on shared groups of fake CPU devices, under bursty traffic."""

import asyncio
import contextlib
import dataclasses
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import numpy as np
from rich.live import Live

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.listening import check_address, free_or
from jaxserve.cli.serve import loaded_in, tell_addresses, until_stopped
from jaxserve.cli.show import Telling, print_json, print_table, say, status_tables, stderr
from jaxserve.cli.signals import StopSignals
from jaxserve.client import AsyncClient
from jaxserve.config import cache_directory
from jaxserve.engine import Engine
from jaxserve.errors import ConfigError, InferenceError, JaxserveError, ModelError
from jaxserve.model import Model
from jaxserve.models import gpt, minilm, moe, vit
from jaxserve.plans import Group, Placement
from jaxserve.protocols.loop import loop_factory
from jaxserve.runtime import enable_compilation_cache
from jaxserve.server import Doors, Front
from jaxserve.workload import Workload, gamma, merge

HOST = "127.0.0.1"
DEFAULT_PORT, DEFAULT_HTTP_PORT, DEFAULT_GRPC_PORT = 8500, 8501, 8502
DEVICES = 4
CV = 4.0
LOAD = 0.25
"""Share of the machine's time that the traffic asks for, over all models."""
SLO_SCALE = 10.0
SMALLEST_SLO_S = 0.1
OVERHEAD_S = 0.02
"""Kept in hand at admission: the fake devices share the machine's cores, so stages slow each other down."""
SENTENCES = (
    "A cat sleeps on the warm sofa.",
    "The kitten naps on the couch.",
    "Deadlines decide which requests are worth running.",
    "A server should refuse early what it cannot finish in time.",
    "The orchestra tuned before the concert began.",
    "Rain is expected over the mountains tonight.",
)

Inputs = dict[str, Any]
MakeInputs = Callable[[np.random.Generator], Inputs]


def _text(rng: np.random.Generator) -> Inputs:
    return {"text": [SENTENCES[rng.integers(len(SENTENCES))]]}


def _tokens(rng: np.random.Generator) -> Inputs:
    length = int(rng.integers(8, 33))
    return {
        "input_ids": rng.integers(0, 100, (1, length), dtype=np.int32),
        "attention_mask": np.ones((1, length), np.int32),
    }


def _image(rng: np.random.Generator) -> Inputs:
    return {"image": rng.random((1, 32, 32, 3), dtype=np.float32)}


MAKE_INPUTS: dict[str, MakeInputs] = {"minilm": _text, "gpt": _tokens, "moe": _tokens, "vit": _image}


@dataclasses.dataclass(slots=True)
class Traffic:
    """What the demo's client saw, by model."""

    sent: Counter[str] = dataclasses.field(default_factory=Counter[str])
    answered: Counter[str] = dataclasses.field(default_factory=Counter[str])
    errors: Counter[str] = dataclasses.field(default_factory=Counter[str])


@click.command("demo")
@click.option("--keep", is_flag=True, help="Stay and serve after the traffic, until SIGTERM or Ctrl-C.")
@click.option("--port", type=int, help=f"Port of the native protocol: {DEFAULT_PORT}, or a free one if that is taken.")
@click.option("--http-port", type=int, help=f"Port of HTTP: {DEFAULT_HTTP_PORT}, or a free one if that is taken.")
@click.option("--grpc-port", type=int, help=f"Port of gRPC: {DEFAULT_GRPC_PORT}, or a free one if that is taken.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the traffic lasts.")
@click.option("--seed", default=0, show_default=True, help="Seed of the traffic.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(
    keep: bool,
    port: int | None,
    http_port: int | None,
    grpc_port: int | None,
    seconds: float,
    seed: int,
    as_json: bool,
) -> None:
    """Serve MiniLM, a GPT, a mixture of experts and a ViT on two groups of fake CPU devices that they share.

    A client in the same process sends them bursts. Each request has a deadline; what cannot make it is refused at once.
    """
    if not 0 < seconds < 3600:
        raise ConfigError(f"--seconds is {seconds}, but must be between 0 and 3600")
    for flag, asked in (("--port", port), ("--http-port", http_port), ("--grpc-port", grpc_port)):
        if asked is not None:
            check_address(HOST, asked, flag=flag)
    use_cpu_devices(DEVICES)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            report = runner.run(_demo((port, http_port, grpc_port), keep=keep, seconds=seconds, seed=seed))
        except asyncio.CancelledError:
            say("stopped before there was a report")
            raise click.exceptions.Exit(1) from None
    if as_json:
        print_json(report)
    else:
        print_table(status_tables(report["status"], rates=report["rates"]))
        click.echo(textwrap.fill(report["closest"], 79, break_long_words=False))


async def _demo(ports: Sequence[int | None], *, keep: bool, seconds: float, seed: int) -> dict[str, Any]:
    signals = StopSignals()
    cache = enable_compilation_cache(cache_directory() / "programs")
    began_s = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        with Telling("loading") as tell:
            models = _models()
            engine = Engine(models, placement=_placement(), overhead_s=OVERHEAD_S, progress=tell)
            await stack.enter_async_context(engine)
        load_s = time.monotonic() - began_s
        front = await stack.enter_async_context(Front(engine, _doors(ports), known=models))
        address = front.addresses[0]
        say(loaded_in(load_s, cache))
        say(f"serving {', '.join(MAKE_INPUTS)}")
        tell_addresses(front, say)
        async with AsyncClient(address) as client:
            closest = await _closest(client)
            workload = _workload(await client.models(), seconds=seconds, rng=np.random.default_rng(seed))
            traffic = Traffic()
            with _live(engine):
                await _send(client, workload, traffic, np.random.default_rng(seed + 1))
        report = {
            "load_s": load_s,
            "programs_compiled": cache.misses,
            "programs_cached": cache.hits,
            "seconds": seconds,
            "rates": {name: count / seconds for name, count in traffic.sent.items()},
            "sent": dict(traffic.sent),
            "answered": dict(traffic.answered),
            "errors": dict(traffic.errors),
            "closest": closest,
            "status": engine.status(),
        }
        if keep:
            say("traffic over; still serving: Ctrl-C ends it")
            await until_stopped(front, signals, grace_s=5.0, tell=say)
    signals.close()
    return report


def _models() -> list[Model]:
    """The demo's models, with few buckets, so that the first start does not compile for long."""
    try:
        return [
            minilm(directory=cache_directory(), batch_sizes=(1, 8), lengths=(32, 256)),
            gpt(batch_sizes=(1, 4), lengths=(32,)),
            moe(batch_sizes=(1, 4), lengths=(32,)),
            vit(batch_sizes=(1, 4)),
        ]
    except ModelError as error:  # nothing on the command line chose these models, so it is no fault of the arguments
        raise JaxserveError(str(error)) from error


def _placement() -> Placement:
    """Two groups of two stages; both hold every model."""
    names = tuple(MAKE_INPUTS)
    return Placement(groups=tuple(Group(inter_op=2, devices=(2 * i, 2 * i + 1), models=names) for i in range(2)))


def _doors(ports: Sequence[int | None]) -> Doors:
    """Where to listen. While the models were loaded, another demo may have taken the default ports."""
    defaults = (DEFAULT_PORT, DEFAULT_HTTP_PORT, DEFAULT_GRPC_PORT)
    free = [free_or(port, default, HOST) for port, default in zip(ports, defaults, strict=True)]
    for asked, default, chosen in zip(ports, defaults, free, strict=True):
        if asked is None and chosen != default:
            say(f"port {default} is taken; using a free one")
    return Doors(host=HOST, port=free[0], http_port=free[1], grpc_port=free[2])


def _workload(models: list[dict[str, Any]], *, seconds: float, rng: np.random.Generator) -> Workload:
    """Bursts for each model: a Gamma process of CV 4, each model asking for the same share of the machine."""
    latency_s = {model["name"]: model["latency_s"] for model in models}
    names = [name for name in MAKE_INPUTS if name in latency_s]
    rates = [LOAD / len(names) / latency_s[name] for name in names]
    return merge(
        [gamma(rate=rate, cv=CV, duration_s=seconds, rng=rng) for rate in rates],
        model_names=names,
        slo_s=[max(SLO_SCALE * latency_s[name], SMALLEST_SLO_S) for name in names],
    )


async def _send(client: AsyncClient, workload: Workload, traffic: Traffic, rng: np.random.Generator) -> None:
    """Sends every request when it is due, whether or not earlier ones were answered."""
    loop = asyncio.get_running_loop()

    async def call(name: str, slo_s: float) -> None:
        traffic.sent[name] += 1
        try:
            await client.infer(name, MAKE_INPUTS[name](rng), deadline_s=slo_s)
            traffic.answered[name] += 1
        except InferenceError as error:
            traffic.errors[error.code] += 1

    began_s = loop.time()
    models: list[int] = workload.model.tolist()
    async with asyncio.TaskGroup() as tasks:
        for arrival_s, model, slo_s in zip(workload.arrival_s.tolist(), models, workload.slo_s.tolist(), strict=True):
            ahead_s = began_s + arrival_s - loop.time()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.create_task(call(workload.model_names[model], slo_s))


async def _closest(client: AsyncClient) -> str:
    """Which two of the sentences mean most nearly the same, by their embeddings."""
    found = await client.infer("minilm", {"text": list(SENTENCES)})
    embedding = found["embedding"]
    similarity = embedding @ embedding.T - 2 * np.eye(len(SENTENCES))
    first, second = np.unravel_index(int(similarity.argmax()), similarity.shape)
    return (
        f"closest in meaning (cosine {similarity[first, second]:.2f}): {SENTENCES[first]!r} and {SENTENCES[second]!r}"
    )


@contextlib.contextmanager
def _live(engine: Engine) -> Iterator[None]:
    """Shows the engine's status, four times a second, on a terminal."""
    if not stderr.is_terminal:
        stderr.print("sending bursts ...")
        yield
        return
    with Live(
        get_renderable=lambda: status_tables(engine.status()), console=stderr, refresh_per_second=4, transient=True
    ):
        yield
