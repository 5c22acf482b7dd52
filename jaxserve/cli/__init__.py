"""The commands: `jaxserve demo | explain | plan | profile | serve | simulate | status`."""

from jaxserve.cli.main import main

__all__ = ["main"]
