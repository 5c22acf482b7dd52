"""The server under test, in a process of its own, so that a hang, a crash and its memory are seen from outside.

    python -m tests.fuzzing.served [LIMIT=VALUE ...]

It prints one line of JSON with its ports. Each line on its standard input, `state`, `memory` or `objects`, is answered
with one of JSON; it ends with its standard input.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve import Engine
from jaxserve.protocols.loop import loop_factory
from jaxserve.server.front import Doors, Front
from jaxserve.server.limits import Limits
from tests.protocols_live.models import Gate, make_models

_MOST_COMPLAINTS = 100
_LONGEST_COMPLAINT = 4000


_A_MODEL_RAISED = "request not served: model_failed"
"""This comes with a trace, too, but of the model."""


class Complaints(logging.Handler):
    """Keeps what a server logs only where it has a fault: errors, and whatever comes with a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.kept: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        is_fault = record.levelno >= logging.ERROR or record.exc_info
        if is_fault and record.getMessage() != _A_MODEL_RAISED:
            self.count += 1
            if len(self.kept) < _MOST_COMPLAINTS:
                self.kept.append(self.format(record)[:_LONGEST_COMPLAINT])

    def take(self) -> list[str]:
        """What has come since it was last taken."""
        kept, self.kept = self.kept, []
        return kept


def give_back_memory() -> None:
    """Collects garbage, and has the allocator return what is free, so that what is left is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def memory() -> dict[str, int]:
    """The resident set now, and the largest that it was since it was last asked for."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {"resident_bytes": 0, "peak_bytes": 0}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return {"resident_bytes": 1024 * kib["VmRSS"], "peak_bytes": 1024 * kib["VmHWM"]}


def state(front: Front, engine: Engine, complaints: Complaints) -> dict[str, Any]:
    """What must be as it was once nobody asks for anything, and what must not grow."""
    assert front.http is not None
    assert front.native is not None
    peak_bytes = memory()["peak_bytes"]
    give_back_memory()
    return {
        "in_flight": front.in_flight,
        "engine_in_flight": engine.observe().in_flight,
        "connections": front.http.connections + front.native.connections,
        "buffered_bytes": front.http._budget.used_bytes,
        "viewers": front.feed.viewers,
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "answered": dict(front.http.answered),
        "blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "resident_bytes": memory()["resident_bytes"],
        "peak_bytes": peak_bytes,
        "complaints": complaints.take(),
        "complaints_count": complaints.count,
    }


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def most_common_objects() -> dict[str, int]:
    """What the interpreter holds most of, to find a leak by."""
    return dict(Counter(type(each).__qualname__ for each in gc.get_objects()).most_common(40))


async def main(limits: Limits) -> None:
    """Serves until standard input ends."""
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    models = make_models(Gate())
    async with Engine(models) as engine:
        for model in models:
            await engine.infer(model.name, model.example, deadline_s=60.0)
        async with Front(engine, doors=Doors(), known=models, limits=limits) as front:

            def told() -> None:
                line = sys.stdin.readline()
                if not line:
                    loop.remove_reader(sys.stdin)
                    done.set()
                elif line.strip() == "memory":
                    _say(json.dumps(memory()))
                elif line.strip() == "objects":
                    _say(json.dumps(most_common_objects()))
                else:
                    _say(json.dumps(state(front, engine, complaints)))

            loop.add_reader(sys.stdin, told)
            ports = {name: server.port for name, server in front.servers.items()}
            _say(json.dumps(ports))
            await done.wait()
            complaints.take()
    if complaints.kept:  # of how it ended
        raise SystemExit("\n".join(complaints.kept))


def limits_of(words: list[str]) -> Limits:
    """Limits of words such as `max_body_bytes=65536`."""
    given = dict(word.split("=", 1) for word in words)
    values: dict[str, Any] = {
        name: float(value) if name.endswith("_s") else int(value) for name, value in given.items()
    }
    return Limits(**values)


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # what it does where it hangs
    np.seterr(all="ignore")  # models may be asked to multiply anything
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(limits_of(sys.argv[1:])))
