"""What the protocols need of asyncio: the fastest event loop of the platform, and writing what the codec makes."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from jaxserve.protocols.tensors import Buffer

try:
    import uvloop
except ImportError:  # a platform without it; everything works, more slowly
    uvloop = None


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the fastest event loop of this platform, for `asyncio.Runner(loop_factory=...)`."""
    return asyncio.new_event_loop if uvloop is None else uvloop.new_event_loop


def write_parts(transport: asyncio.WriteTransport, parts: Sequence[Buffer]) -> None:
    """Writes buffers in their order: small ones joined, large tensors (the memoryviews) from where they are.

    Not with `writelines`: that of asyncio in Python 3.12.1 lacks flow control, and never ends if the last buffer is
    empty. uvloop gathers single writes into one system call all the same.
    """
    if memoryview not in map(type, parts):
        transport.write(b"".join(parts))
        return
    for is_large, run in itertools.groupby(parts, key=lambda part: type(part) is memoryview):
        if is_large:
            for part in run:
                transport.write(part)
        else:
            transport.write(b"".join(run))
