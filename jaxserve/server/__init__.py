"""Servers: the sockets between clients and an engine."""

from jaxserve.server.access import Access
from jaxserve.server.binding import check_binding
from jaxserve.server.front import Doors, Front
from jaxserve.server.limits import Limits
from jaxserve.server.native import NativeServer
from jaxserve.server.tls import Tls, TlsFiles
from jaxserve.server.tracing import OpenTelemetry
from jaxserve.server.unix import check_unix_path

__all__ = [
    "Access",
    "Doors",
    "Front",
    "Limits",
    "NativeServer",
    "OpenTelemetry",
    "Tls",
    "TlsFiles",
    "check_binding",
    "check_unix_path",
]
