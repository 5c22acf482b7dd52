"""Files that commands write: found out to be impossible before anything takes long."""

import os
from pathlib import Path

from jaxserve.errors import ConfigError


def check_output(option: str, path: Path | None, *, example: str) -> None:
    """Checks that a file can be written.

    Args:
        option: that names it, for messages.
        path: where it is to be; None where it was not asked for.
        example: a name that would do, for a message.

    Raises:
        ConfigError: its directory is missing or closed, or it is a directory itself.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; name a file, such as {path / example}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: {path.parent} cannot be written to; choose another directory")
