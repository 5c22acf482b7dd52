"""The commands: `jaxserve demo | serve | profile | simulate | status`."""

from jaxserve.cli.main import main

__all__ = ["main"]
