"""The server under test, as a fuzzer sees it: its ports, what it says of itself, and whether it still answers."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).parents[2]
_START_S = 120.0
_PATIENCE_S = 20.0
_QUIET = ("in_flight", "engine_in_flight", "connections", "buffered_bytes", "viewers", "tasks", "descriptors")
"""What must go back to where it was when it is asked for nothing."""
CANARY = b"GET /livez HTTP/1.1\r\nHost: canary\r\nConnection: close\r\n\r\n"


class Hung(Exception):
    """The server does not answer any more; the text says what its threads were doing."""


@dataclasses.dataclass(slots=True)
class Subject:
    """A running server.

    Attributes:
        ports: by protocol.
        rest: its state when nothing had been asked of it yet, but for a canary.
    """

    ports: dict[str, int]
    _process: subprocess.Popen[str]
    _log: IO[bytes]
    rest: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def running(cls, **limits: float) -> Iterator["Subject"]:
        """A server with these limits."""
        command = [sys.executable, "-m", "tests.fuzzing.served", *(f"{name}={value}" for name, value in limits.items())]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
            try:
                subject = cls({}, process, log)
                subject.ports = subject._read(_START_S)
                yield subject
                process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
                code = process.wait(_PATIENCE_S)
                if code:
                    raise Hung(f"the server ended with {code}: {subject.tail()}")
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def tail(self) -> str:
        """The end of what it has said on standard error."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 6000))
        return self._log.read().decode(errors="replace")

    def state(self) -> dict[str, Any]:
        """What it says that it is doing.

        Raises:
            Hung: it says nothing.
        """
        return self._ask("state")

    def memory(self) -> dict[str, int]:
        """Its resident set, and the largest that it was since it was last asked for anything."""
        return self._ask("memory")

    def objects(self) -> dict[str, int]:
        """What it holds most of, by type."""
        return self._ask("objects")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n")
        except OSError as error:
            raise Hung(f"the server has ended: {self.tail()}") from error
        return self._read(_PATIENCE_S)

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = _Alarm(self._process, timeout_s)
        with timer:
            line = self._process.stdout.readline()
        if timer.rang or not line:
            raise Hung(f"the server says nothing (exit status {self._process.poll()}): {self.tail()}")
        return json.loads(line)

    async def settle(self) -> dict[str, Any]:
        """Waits until the server does nothing any more; its state then.

        Raises:
            Hung: it does not come to rest.
        """
        await self.canary()
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            state = await asyncio.to_thread(self.state)
            if not self.rest:
                self.rest = state
            left = {name: state[name] for name in _QUIET if state[name] > self.rest[name]}
            if not left:
                return state
            if time.monotonic() > until_s:
                raise Hung(f"the server was left with {left}, and had { ({name: self.rest[name] for name in left}) }")
            await asyncio.sleep(0.05)

    async def canary(self) -> float:
        """Seconds that a plain request on a new connection takes.

        Raises:
            Hung: it is not answered.
        """
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ports["http"])
                writer.write(CANARY)
                answer = await reader.read()
                writer.close()
        except (TimeoutError, OSError) as error:
            self.show_threads()
            raise Hung(f"a canary was not answered ({error!r}): {self.tail()}") from error
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise Hung(f"a canary was answered with {answer!r}")
        return time.perf_counter() - began_s

    def show_threads(self) -> None:
        """Has it write what its threads are doing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)


class _Alarm:
    """Kills a process that does not answer in time."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        self.rang = False
        self._process = process
        self._timer = threading.Timer(timeout_s, self._ring)

    def _ring(self) -> None:
        self.rang = True
        self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._process.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
