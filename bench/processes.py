"""Processes of a benchmark: each plays one role of the script that was started, and talks in lines."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


class Child:
    """A fresh process of the benchmark that runs, in one of its roles."""

    def __init__(self, *role: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--role", *map(str, role)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return line

    def tell(self) -> None:
        """Sends it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def ask(self) -> Any:
        """Sends it a line; the JSON value that it says to that."""
        self.tell()
        return json.loads(self.hear())

    def end(self) -> str:
        """Closes its standard input and waits for it; what it says last."""
        return self._process.communicate()[0]


@contextlib.contextmanager
def child(*role: object) -> Iterator[Child]:
    """A process for as long as it is needed."""
    process = Child(*role)
    try:
        yield process
    finally:
        process.end()


def measure(server: Child, *role: object) -> dict[str, float]:
    """One measurement of a server, which tells its processor seconds when asked, by a fresh load generator."""
    with child(*role) as generator:
        assert generator.hear() == "warm\n"
        before_s = server.ask()
        result = generator.ask()
        result["server_cpu_s"] = (server.ask() - before_s) / result["requests"]
    return result
