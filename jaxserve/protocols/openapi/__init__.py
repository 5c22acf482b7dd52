"""The OpenAPI document of the HTTP server."""

from jaxserve.protocols.openapi.document import MOST_MODELS, OPEN_PATHS, build

__all__ = ["MOST_MODELS", "OPEN_PATHS", "build"]
