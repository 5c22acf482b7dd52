"""Servers: the sockets between clients and an engine."""

from jaxserve.server.native import NativeServer, check_unix_path

__all__ = ["NativeServer", "check_unix_path"]
