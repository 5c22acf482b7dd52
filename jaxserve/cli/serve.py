"""`jaxserve serve`: serves models over the network until it is told to stop."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.factory import load_models
from jaxserve.cli.policies import engine_options, parse_shares
from jaxserve.cli.show import Telling, say
from jaxserve.cli.signals import StopSignals
from jaxserve.config import cache_directory
from jaxserve.engine import Engine
from jaxserve.errors import ConfigError
from jaxserve.model import Model
from jaxserve.plans import Placement
from jaxserve.protocols.loop import loop_factory
from jaxserve.runtime import CompilationCache, enable_compilation_cache
from jaxserve.server import NativeServer, check_unix_path


@click.command("serve")
@click.argument("models", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--placement", type=Path, metavar="FILE", help="A jaxserve-placement/1 file; by default every device alone."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8500, show_default=True, help="Port of the native protocol; 0 for any that is free.")
@click.option("--http-port", type=int, metavar="N", help="Reserved: HTTP is not served yet.")
@click.option("--grpc-port", type=int, metavar="N", help="Reserved: gRPC is not served yet.")
@click.option("--unix", type=Path, metavar="PATH", help="A Unix socket to listen on as well.")
@click.option("--grace-s", default=30.0, show_default=True, help="Seconds that requests in flight have on SIGTERM.")
@engine_options
@click.option("--cpu-devices", type=int, metavar="N", help="Serve on N fake CPU devices.")
def command(
    models: str,
    placement: Path | None,
    host: str,
    port: int,
    http_port: int | None,
    grpc_port: int | None,
    unix: Path | None,
    grace_s: float,
    cpu_devices: int | None,
    shares: str | None,
    **scheduling: Any,
) -> None:
    """Serve the models at MODULE:ATTRIBUTE: a jaxserve.Model, a list of them, or a function that returns either.

    SIGTERM (or Ctrl-C) drains: no new requests, those in flight are finished. A second one stops at once.
    """
    if not grace_s >= 0:
        raise ConfigError(f"--grace-s is {grace_s}, but must not be negative")
    warn_of_reserved(http_port, grpc_port)
    check_address(host, port)
    if unix is not None:
        check_unix_path(unix)
    placed = None if placement is None else Placement.load(placement)
    scheduling["shares"] = None if shares is None else parse_shares(shares)
    use_cpu_devices(cpu_devices)
    loaded = load_models(models)
    cache = enable_compilation_cache(cache_directory() / "programs")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(loaded, placed, cache, scheduling, host=host, port=port, unix=unix, grace_s=grace_s))
        except asyncio.CancelledError:
            say("stopped while loading")
            raise click.exceptions.Exit(1) from None


def check_address(host: str, port: int) -> None:
    """Finds out before models are loaded that the address cannot be listened on.

    Raises:
        ConfigError: it cannot.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"cannot listen on {host}:{port}; a port is from 1 to 65535, or 0 for any that is free")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: there is no such host ({error}); choose another --host, such as "
            f"127.0.0.1, or 0.0.0.0 for every address of this machine"
        ) from error
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        mend = "another --host" if error.errno == errno.EADDRNOTAVAIL else "another --port, or 0 for any"
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose {mend}") from error


def warn_of_reserved(http_port: int | None, grpc_port: int | None) -> None:
    """Says that ports of protocols to come are not opened."""
    for protocol, port in (("HTTP", http_port), ("gRPC", grpc_port)):
        if port is not None:
            say(f"port {port} is not opened: {protocol} is not served yet")


async def _serve(
    models: list[Model],
    placement: Placement | None,
    cache: CompilationCache,
    scheduling: Mapping[str, Any],
    *,
    host: str,
    port: int,
    unix: Path | None,
    grace_s: float,
) -> None:
    signals = StopSignals()
    began_s = time.monotonic()
    tell = Telling("loading")
    # finds mistakes before anything is said to be loading
    engine = Engine(models, placement=placement, progress=tell, **scheduling)
    async with contextlib.AsyncExitStack() as stack:
        with tell:
            await stack.enter_async_context(engine)
        server = await stack.enter_async_context(NativeServer(engine, host=host, port=port, path=unix))
        say(loaded_in(time.monotonic() - began_s, cache))
        say(f"serving {', '.join(sorted(model.name for model in models))}")
        say(f"on {' and '.join(server.addresses)}")
        await until_stopped(server, signals, grace_s=grace_s)
    signals.close()


def loaded_in(seconds: float, cache: CompilationCache) -> str:
    """How long loading took, and how much of it was compiling."""
    return f"loaded in {seconds:.1f} s: {cache.misses} programs compiled, {cache.hits} found in {cache.directory}"


async def until_stopped(server: NativeServer, signals: StopSignals, *, grace_s: float) -> None:
    """Waits for a signal, then drains."""
    signals.ready(at_once=lambda: server.drain(0.0))
    await signals.asked()
    say(f"draining: {server.in_flight} requests in flight")
    await server.drain(grace_s)
    say("stopped")
