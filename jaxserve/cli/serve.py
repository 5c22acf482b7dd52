"""`jaxserve serve`: serves models over the network until it is told to stop."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import math
import signal
import time
from collections.abc import Callable, Generator

import click

from jaxserve.cli.devices import use_cpu_devices
from jaxserve.cli.factory import load_models
from jaxserve.cli.listening import check_address, raise_file_limit
from jaxserve.cli.logs import announcer, set_up_logging
from jaxserve.cli.notify import Notifier
from jaxserve.cli.options import serve_options
from jaxserve.cli.settings import ServeSettings
from jaxserve.cli.show import Telling
from jaxserve.cli.signals import StopSignals, leave_within
from jaxserve.config import cache_directory
from jaxserve.engine import Engine
from jaxserve.errors import ConfigError
from jaxserve.model import Model
from jaxserve.plans import Outlook, Placement
from jaxserve.protocols.loop import loop_factory
from jaxserve.runtime import CompilationCache, enable_compilation_cache
from jaxserve.server import Access, Doors, Front, OpenTelemetry, Tls, TlsFiles, check_binding, check_unix_path

_log = logging.getLogger("jaxserve.serve")
_SPOKEN = {"http": "HTTP", "grpc": "gRPC"}
_LAST_S = 3.0
"""Seconds that the process has to end after `--grace-s`."""


@click.command("serve")
@serve_options
def command(settings: ServeSettings, *, check: bool) -> None:
    """Serve the models at MODULE:ATTRIBUTE: a jaxserve.Model, a list of them, or a function that returns either.

    SIGTERM (or Ctrl-C) drains: no new requests, those in flight are finished. A second one stops at once. SIGHUP reads
    tokens and certificates again.
    """
    set_up_logging(settings.log_format, settings.log_level)
    tell = announcer(settings.log_format)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_serve(settings, _prepare(settings), check=check))
        except asyncio.CancelledError:
            tell("stopped while loading")
            raise click.exceptions.Exit(1) from None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """All that is read before anything is loaded, so that what is wrong with it is said at once."""

    models: list[Model]
    placement: Placement | None
    outlook: Outlook | None
    access: Access
    tls: Tls | None
    tracing: OpenTelemetry | None
    cache: CompilationCache


def _prepare(settings: ServeSettings) -> _Prepared:
    outlook = None if settings.plan is None else Outlook.load(settings.plan)
    placement = None if outlook is None else outlook.placement
    if settings.placement is not None:
        placement = Placement.load(settings.placement)
    access = Access() if settings.tokens is None else Access.from_file(settings.tokens)
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        files = TlsFiles(certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca)
        tls = Tls(files)
    warnings = check_binding(
        [settings.host],
        access,
        tls=tls is not None,
        mutual_tls=tls is not None and tls.is_mutual,
        insecure=settings.insecure,
    )
    for warning in (*warnings, *(() if tls is None else tls.warnings)):
        _log.warning("%s", warning)
    for name in ("port", "http_port", "grpc_port"):
        port = getattr(settings, name)
        if port is not None:
            check_address(settings.host, port, flag=f"--{name.replace('_', '-')}")
    for path in (settings.unix, settings.admin_unix):
        if path is not None:
            check_unix_path(path)
    tracing = None if settings.otlp_endpoint is None else OpenTelemetry(settings.otlp_endpoint)
    use_cpu_devices(settings.cpu_devices)
    models = load_models(settings.models)
    return _Prepared(
        models=models,
        placement=placement,
        outlook=outlook,
        access=access,
        tls=tls,
        tracing=tracing,
        cache=enable_compilation_cache(cache_directory() / "programs"),
    )


async def _serve(settings: ServeSettings, prepared: _Prepared, *, check: bool) -> None:
    tell = announcer(settings.log_format)
    telling = Telling("loading")
    # finds mistakes before anything is said to be loading
    engine = Engine(prepared.models, placement=prepared.placement, progress=telling, **settings.engine_options())
    names = ", ".join(sorted(model.name for model in prepared.models))
    if check:
        tell(f"everything is right; it would serve {names}")
        return
    signals = StopSignals()
    began_s = time.monotonic()
    raise_file_limit()
    notifier = Notifier.from_environment()
    async with contextlib.AsyncExitStack() as stack:
        if prepared.tracing is not None:
            stack.callback(prepared.tracing.close)
        if settings.log_format == "text":
            with telling:
                await stack.enter_async_context(engine)
        else:
            await stack.enter_async_context(engine)
        front = Front(
            engine,
            Doors(
                host=settings.host,
                port=settings.port,
                http_port=settings.http_port,
                grpc_port=settings.grpc_port,
                unix=settings.unix,
                admin_unix=settings.admin_unix,
            ),
            known=prepared.models,
            access=prepared.access,
            tls=prepared.tls,
            limits=settings.limits(),
            ready_within_s=settings.ready_within_s,
            outlook=prepared.outlook,
            logs_requests=settings.log_requests,
            **({} if prepared.tracing is None else {"tracing": prepared.tracing}),
        )
        await stack.enter_async_context(front)
        tell(loaded_in(time.monotonic() - began_s, prepared.cache))
        tell(f"serving {names}")
        tell_addresses(front, tell)
        await stack.enter_async_context(notifier.watched())
        gc.collect()
        gc.freeze()  # what is there by now stays; else a full collection holds everybody up for a tenth of a second
        with _reloading(prepared, notifier):
            notifier.ready(f"serving {names}")
            await until_stopped(front, signals, grace_s=settings.grace_s, tell=tell, notifier=notifier)
    signals.close()


@contextlib.contextmanager
def _reloading(prepared: _Prepared, notifier: Notifier) -> Generator[None]:
    """Reads tokens and certificates again on SIGHUP; what is wrong then is logged, and the old ones stay."""

    def reload() -> None:
        notifier.reloading()
        for what, one in (("tokens", prepared.access), ("certificates", prepared.tls)):
            if one is None:
                continue
            try:
                one.reload()
            except ConfigError as error:
                _log.error("the %s stay as they were: %s", what, error)
            else:
                _log.info("the %s were read again", what)
        notifier.ready()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def loaded_in(seconds: float, cache: CompilationCache) -> str:
    """How long loading took, and how much of it was compiling."""
    return f"loaded in {seconds:.1f} s: {cache.misses} programs compiled, {cache.hits} found in {cache.directory}"


def tell_addresses(front: Front, tell: Callable[[str], None]) -> None:
    """Says where clients find each server: the native one's addresses by themselves, as programs read them."""
    for name, server in front.servers.items():
        where = " and ".join(server.addresses)
        tell(f"on {where}" if name == "native" else f"{_SPOKEN[name]} on {where}")


async def until_stopped(
    front: Front, signals: StopSignals, *, grace_s: float, tell: Callable[[str], None], notifier: Notifier | None = None
) -> None:
    """Waits for a signal, then drains."""
    signals.ready(at_once=lambda: front.drain(0.0))
    await signals.asked()
    if grace_s < math.inf:
        leave_within(grace_s + _LAST_S, tell)
    if notifier is not None:
        notifier.stopping()
    tell(f"draining: {front.in_flight} requests in flight")
    await front.drain(grace_s)
    tell("stopped")
