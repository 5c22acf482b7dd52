"""The settings of `jaxserve serve`: the one place that says which there are, what they mean and what they may be.

Each is a key of the configuration file and a flag, `http_port` and `--http-port`; options.py makes flags of them and
settles which value holds. docs/serve.toml shows them all.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from jaxserve.cli.logs import FORMATS, LEVELS
from jaxserve.cli.policies import parse_shares
from jaxserve.errors import ConfigError
from jaxserve.scheduling import DISPATCHES
from jaxserve.server.limits import Limits

OFF = "off"
"""In place of a port: the protocol is not served."""
_LIMITS = Limits()
_ON_A_PORT = ("port", "http_port", "grpc_port")


def _about(help: str, *, metavar: str | None = None, **bounds: Any) -> dict[str, Any]:
    """What `config.checked` and the flag need to know of a field."""
    return {"help": help, "metavar": metavar, **bounds}


def _port(value: object) -> int | None:
    """A port, or None for a protocol that is not served."""
    if value is False or value == OFF:
        return None
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value <= 65535:
        raise ValueError(f"a port from 1 to 65535, 0 for any that is free, or {OFF!r} for none")
    return value


def _shares(value: object) -> dict[str, float]:
    """Weights by tenant, from a table or from the text that the flag takes."""
    if isinstance(value, Mapping):
        weights: dict[str, Any] = dict(value)
        if all(type(weight) in (int, float) and abs(weight) < 2**64 for weight in weights.values()):
            return {tenant: float(weight) for tenant, weight in weights.items()}
    elif isinstance(value, str):
        with contextlib.suppress(ConfigError):
            return parse_shares(value)
    raise ValueError(
        "`equal`, or a weight for each tenant, each once, as in `a=3,b=1` or, in a file, { a = 3, b = 1 }; those who "
        "are not named have 1"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What `jaxserve serve` was told, checked as far as it can be without looking at anything else.

    Raises:
        ConfigError: two settings do not go together.
    """

    models: str = field(
        default="",
        metadata=_about("What to serve: a jaxserve.Model, a list of them, or a function that returns either."),
    )
    placement: Path | None = field(
        default=None, metadata=_about("A jaxserve-placement/1 file; by default every device alone.", metavar="FILE")
    )
    plan: Path | None = field(
        default=None,
        metadata=_about("What `jaxserve plan --json` has printed: its placement, and what it expects.", metavar="FILE"),
    )
    cpu_devices: int | None = field(
        default=None, metadata=_about("Serve on N fake CPU devices.", metavar="N", at_least=1)
    )

    host: str = field(
        default="127.0.0.1", metadata=_about("Address to listen on; 0.0.0.0 for every address of this machine.")
    )
    port: int | None = field(
        default=8500,
        metadata=_about(
            f"Port of the native protocol; 0 for any that is free, {OFF} for none.", metavar="PORT", read=_port
        ),
    )
    http_port: int | None = field(
        default=8501,
        metadata=_about(f"Port of HTTP: 0 for any that is free, {OFF} for none.", metavar="PORT", read=_port),
    )
    grpc_port: int | None = field(
        default=8502,
        metadata=_about(f"Port of gRPC: 0 for any that is free, {OFF} for none.", metavar="PORT", read=_port),
    )
    unix: Path | None = field(
        default=None, metadata=_about("A Unix socket to serve the native protocol on as well.", metavar="PATH")
    )
    admin_unix: Path | None = field(
        default=None,
        metadata=_about(
            "A Unix socket, for its owner alone, to serve HTTP on with the right to load and unload models.",
            metavar="PATH",
        ),
    )

    tokens: Path | None = field(
        default=None,
        metadata=_about(
            "A file of who may come in, by which token, and what for; without it everybody may.", metavar="FILE"
        ),
    )
    tls_certificate: Path | None = field(
        default=None,
        metadata=_about(
            "The server's certificate (PEM), and behind it those of its authorities: TLS on every port.", metavar="FILE"
        ),
    )
    tls_key: Path | None = field(default=None, metadata=_about("The certificate's key (PEM).", metavar="FILE"))
    tls_client_ca: Path | None = field(
        default=None,
        metadata=_about(
            "Authorities (PEM) of whose certificates each client must show one: mutual TLS.", metavar="FILE"
        ),
    )
    insecure: bool = field(
        default=False, metadata=_about("Let other machines in though nobody needs a token or a certificate.")
    )

    grace_s: float = field(
        default=30.0, metadata=_about("Seconds that requests in flight have on SIGTERM.", at_least=0)
    )
    ready_within_s: float = field(
        default=10.0,
        metadata=_about("A model is ready if it has answered an inference within so many seconds.", above=0),
    )

    dispatch: str = field(
        default="earliest-finish", metadata=_about("How a group is chosen.", choices=tuple(DISPATCHES))
    )
    overhead_s: float = field(
        default=0.0, metadata=_about("Seconds that an answer costs beyond its stages.", at_least=0)
    )
    max_batch: int | None = field(
        default=None, metadata=_about("The largest batch; by default what models have.", metavar="N", at_least=1)
    )
    max_queue: int = field(default=10_000, metadata=_about("How many requests may wait for a group.", at_least=1))
    max_overtakings: int = field(
        default=0,
        metadata=_about(
            "How often a request may be overtaken by ones of higher priority; 0: priorities do not count.",
            metavar="N",
            at_least=0,
        ),
    )
    shares: Mapping[str, float] | None = field(
        default=None,
        metadata=_about(
            "Share among tenants: `equal`, or by weights, as in `a=3,b=1`.", metavar="SHARES", read=_shares
        ),
    )
    spare_bytes: float | None = field(
        default=None, metadata=_about("What the placement's spares may take of each device.", metavar="N", at_least=0)
    )
    stuck_after_s: float = field(
        default=10.0, metadata=_about("A stage that runs for longer may be stuck.", above=0, infinite=True)
    )

    max_body_bytes: int = field(
        default=_LIMITS.max_body_bytes,
        metadata=_about("The largest body or message that is read, once decompressed.", at_least=1),
    )
    max_buffered_bytes: int = field(
        default=_LIMITS.max_buffered_bytes, metadata=_about("What all bodies in memory may take together.", at_least=1)
    )
    max_header_bytes: int = field(
        default=_LIMITS.max_header_bytes,
        metadata=_about("The longest line of a request, and the longest header.", at_least=1),
    )
    max_tensors: int = field(default=_LIMITS.max_tensors, metadata=_about("Tensors in a request.", at_least=1))
    max_json_depth: int = field(
        default=_LIMITS.max_json_depth, metadata=_about("How deeply JSON may be nested.", at_least=1)
    )
    max_json_elements: int = field(
        default=_LIMITS.max_json_elements,
        metadata=_about("Elements of all arrays and objects of a JSON body.", at_least=1),
    )
    max_connections: int = field(
        default=_LIMITS.max_connections,
        metadata=_about("Connections that are open at a time, for each protocol.", at_least=1),
    )
    max_connections_per_client: int = field(
        default=_LIMITS.max_connections_per_client,
        metadata=_about("Of these, from one address; gRPC does not tell them apart.", at_least=1),
    )
    max_in_flight_per_client: int = field(
        default=_LIMITS.max_in_flight_per_client,
        metadata=_about("Unanswered requests of one token or, without tokens, of one address.", at_least=1),
    )
    head_timeout_s: float = field(
        default=_LIMITS.head_timeout_s,
        metadata=_about("Seconds in which the head of a request must have arrived.", above=0),
    )
    body_timeout_s: float = field(
        default=_LIMITS.body_timeout_s,
        metadata=_about("Seconds in which a body must have arrived, and one more for every 64 KiB of it.", above=0),
    )
    write_timeout_s: float = field(
        default=_LIMITS.write_timeout_s,
        metadata=_about("Seconds for which a client may take nothing of its answer.", above=0),
    )
    keepalive_timeout_s: float = field(
        default=_LIMITS.keepalive_timeout_s,
        metadata=_about("Seconds for which a connection may be idle between requests.", above=0),
    )

    log_format: str = field(default="text", metadata=_about("Form of the log on standard error.", choices=FORMATS))
    log_level: str = field(default="info", metadata=_about("The least that is logged.", choices=LEVELS))
    log_requests: bool = field(default=False, metadata=_about("Log every request, not only those that went wrong."))
    otlp_endpoint: str | None = field(
        default=None,
        metadata=_about("Where to send traces by OTLP over HTTP, such as http://127.0.0.1:4318.", metavar="URL"),
    )

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError(
                'there is nothing to serve; give MODULE:ATTRIBUTE, or models = "MODULE:ATTRIBUTE" in the file'
            )
        if self.placement is not None and self.plan is not None:
            raise ConfigError("placement and plan are both given, but a plan has a placement in it; leave one out")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ConfigError(f"{given} is given, but {missing} is not; TLS needs both")
        if self.tls_client_ca is not None and self.tls_key is None:
            raise ConfigError(
                "tls_client_ca is given, but clients show certificates over TLS only; add tls_certificate"
            )
        taken: dict[int, str] = {}
        for name in _ON_A_PORT:
            port = getattr(self, name)
            if port and port in taken:
                raise ConfigError(f"{taken[port]} and {name} are both {port}; give each protocol a port of its own")
            if port:
                taken[port] = name
        if self.unix is None and all(getattr(self, name) is None for name in _ON_A_PORT):
            raise ConfigError(
                f"{', '.join(_ON_A_PORT)} are all {OFF}, so nobody could call; give one a number, or unix"
            )
        if self.unix is not None and self.unix == self.admin_unix:
            raise ConfigError(f"unix and admin_unix are both {self.unix}; give each a path of its own")

    def engine_options(self) -> dict[str, Any]:
        """The settings that are the engine's own, by its names."""
        names = ("dispatch", "overhead_s", "max_batch", "max_queue", "max_overtakings", "shares", "spare_bytes")
        return {name: getattr(self, name) for name in (*names, "stuck_after_s")}

    def limits(self) -> Limits:
        """What strangers may cost."""
        return Limits(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Limits)})
