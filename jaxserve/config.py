"""The only reader of configuration files and environment variables."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where compiled programs and fetched weights are kept between runs.

    `JAXSERVE_CACHE` where it is set, else `jaxserve` under `XDG_CACHE_HOME`, else `~/.cache/jaxserve`. Made on demand,
    for this user alone: compiled programs are run as they are found.
    """
    chosen = os.environ.get("JAXSERVE_CACHE")
    if chosen:
        directory = Path(chosen).expanduser()
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxserve"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
