"""The compilation cache on disk, and what it saved. Settings of the whole process: for commands, not for libraries."""

import os
import threading
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxserve.config import private_directory

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"


class CompilationCache:
    """Counts of what was found in the cache and what had to be compiled, since it was enabled.

    Attributes:
        directory: where compiled programs are kept.
        hits: programs that were read from it.
        misses: programs that were compiled and written to it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()

    def _count(self, event: str, **_: object) -> None:
        with self._lock:
            self.hits += event == _HIT
            self.misses += event == _MISS


def enable_compilation_cache(directory: str | os.PathLike[str]) -> CompilationCache:
    """Keeps every compiled program in `directory`, so that a second start compiles nothing.

    The directory is made for its owner only, since programs in it are run.

    Raises:
        ConfigError: it cannot be made or written to, or somebody else may write to it.
    """
    path = private_directory(Path(directory))
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation_cache.reset_cache()  # jax opens its cache at the first compilation, which may have been earlier
    cache = CompilationCache(path)
    jax.monitoring.register_event_listener(cache._count)
    return cache
