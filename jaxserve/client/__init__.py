"""Clients of the native protocol. Importing this needs numpy and msgpack, not jax."""

from jaxserve.client.aio import AsyncClient
from jaxserve.client.sync import Client

__all__ = ["AsyncClient", "Client"]
