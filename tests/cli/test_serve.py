"""`jaxserve serve` in a process of its own: serves, reports, drains on the first SIGTERM, stops on the second."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.client import Client
from jaxserve.errors import ConnectionLost, EngineStopped, TransportError

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


class Server:
    """A running `jaxserve serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.loaded = self.wait_for("loaded in")
        self.address = re.sub(r".*on (\S+).*", r"\1", self.wait_for("on 127.0.0.1:").strip())

    def wait_for(self, words: str) -> str:
        """The next line of standard error that has the words in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return line
        raise AssertionError(f"the server ended with {self.process.wait(LIMIT_S)} before it said {words!r}")


@contextmanager
def serving(cache: Path, *arguments: str) -> Iterator[Server]:
    environment = os.environ | {"JAXSERVE_CACHE": str(cache)}
    command = [sys.executable, "-m", "jaxserve", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def held_up(pipe: Path) -> dict[str, Any]:
    """Inputs that make the model wait until somebody writes to `pipe`."""
    letters = np.zeros((1, 256), np.float32)
    path = os.fsencode(pipe)
    letters[0, : len(path)] = list(path)
    return {"x": letters}


def test_serve_status_and_drain(cache: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving(cache, "tests.cli.served:blocking") as server, Client(server.address) as client:
        x = np.ones((2, 4), np.float32)
        np.testing.assert_array_equal(client.infer("double", {"x": x}, deadline_s=10.0)["output"], 2 * x)
        printed = subprocess.run(
            [sys.executable, "-m", "jaxserve", "status", server.address, "--json"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert json.loads(printed.stdout)["models"]["double"]["served"] == 1
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer = pool.submit(client.infer, "waits", held_up(pipe))
            with pipe.open("wb", buffering=0) as writer:  # opens as soon as the model reads it: the request is inside
                server.process.send_signal(signal.SIGTERM)
                assert "1 requests in flight" in server.wait_for("draining")
                writer.write(b"go on")
            assert answer.result(LIMIT_S)["output"].shape == (1, 256)
        server.wait_for("stopped")
        assert server.process.wait(LIMIT_S) == 0


def test_a_second_start_compiles_nothing_and_a_second_sigterm_stops_at_once(cache: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving(cache, "tests.cli.served:blocking") as server, Client(server.address) as client:
        assert re.search(r": 0 programs compiled, [1-9]", server.loaded), server.loaded
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer = pool.submit(client.infer, "waits", held_up(pipe))
            with pipe.open("wb"):
                server.process.send_signal(signal.SIGTERM)
                server.wait_for("draining")
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(LIMIT_S) == 1
                with pytest.raises((EngineStopped, ConnectionLost, TransportError)):
                    answer.result(LIMIT_S)


def test_a_model_that_hangs_does_not_keep_the_process_from_ending(cache: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ("tests.cli.served:blocking", "--grace-s", "0")
    with (
        serving(cache, *command) as server,
        Client(server.address) as client,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        answer = pool.submit(client.infer, "waits", held_up(pipe))
        with pipe.open("wb"):  # and nothing is written to it
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(EngineStopped):
                answer.result(LIMIT_S)
            server.wait_for("stopped, though a model still runs")
            assert server.process.wait(LIMIT_S) == 1
