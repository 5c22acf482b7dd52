"""Servers: the sockets between clients and an engine."""

from jaxserve.server.native import NativeServer

__all__ = ["NativeServer"]
