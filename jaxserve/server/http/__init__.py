"""The HTTP server."""

from jaxserve.server.http.server import HttpServer

__all__ = ["HttpServer"]
