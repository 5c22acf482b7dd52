"""The only reader of configuration files and environment variables."""

import os
from pathlib import Path

from jaxserve.errors import ConfigError


def cache_directory() -> Path:
    """Where compiled programs and fetched weights are kept between runs.

    `JAXSERVE_CACHE` where it is set, else `jaxserve` under `XDG_CACHE_HOME`, else `~/.cache/jaxserve`. Made on demand,
    for this user alone: compiled programs are run as they are found.

    Raises:
        ConfigError: it cannot be made or written to, or somebody else may write to it.
    """
    chosen = os.environ.get("JAXSERVE_CACHE")
    if chosen:
        return private_directory(Path(chosen))
    return private_directory(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxserve")


def plans_directory() -> Path | None:
    """Where solved plans are kept between runs: `plans` in the cache directory; None where none can be kept.

    `JAXSERVE_PLANS=off` keeps none. A cache that cannot be made or written to keeps none either: a plan is then made
    anew, which takes seconds, and nothing else needs one.
    """
    if os.environ.get("JAXSERVE_PLANS") == "off":
        return None
    try:
        return private_directory(cache_directory() / "plans")
    except ConfigError:
        return None


def private_directory(directory: Path) -> Path:
    """The directory as an absolute path, made where it is missing, for its owner only.

    Raises:
        ConfigError: it cannot be made or written to, or somebody else may write to it.
    """
    path = directory
    try:
        path = directory.expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home to put in place of ~
        raise ConfigError(
            f"the cache {str(path)!r} cannot be made ({error}); set JAXSERVE_CACHE to a directory of your own"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"the cache {str(path)!r} holds weights and programs that will be run, but others may write to it; "
            f"give a directory of your own, or take away their right to write (chmod go-w)"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the cache {str(path)!r} cannot be written to; make it writable (chmod u+wx), or set JAXSERVE_CACHE to "
            f"another directory"
        )
    return path
