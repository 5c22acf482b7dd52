"""What the service manager is told, at a real socket."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserve.cli.notify import Notifier
from jaxserve.config import ServiceManager
from tests.jumping_loop import run, until


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A socket of a service manager, and how the environment names it."""
    name = (
        str(tmp_path / "notify") if request.param == "path" else f"@jaxserve-test-{os.getpid()}-{time.monotonic_ns()}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        sock.setblocking(False)
        yield name, sock


def told(sock: socket.socket) -> list[str]:
    """The datagrams that have come."""
    found: list[str] = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


def test_everything_that_is_told(manager, monkeypatch):
    name, sock = manager
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = Notifier.from_environment()
    notifier.ready("serving\nminilm")
    notifier.status("3 in flight")
    notifier.status("")
    notifier.ready()
    notifier.stopping("draining")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    *others, reloading = told(sock)
    assert others == [
        "READY=1\nSTATUS=serving minilm",
        "STATUS=3 in flight",
        "READY=1",
        "STOPPING=1\nSTATUS=draining",
    ]
    first, second = reloading.split("\n")
    assert first == "RELOADING=1"
    assert 0 <= int(second.removeprefix("MONOTONIC_USEC=")) - before < 10_000_000


def test_the_watchdog_is_fed_twice_in_its_time_while_all_is_well(manager):
    name, sock = manager
    well = True

    async def main() -> None:
        nonlocal well
        async with Notifier(ServiceManager(socket=name, watchdog_s=3.0)).watched(lambda: well):
            await until(3.5)
            assert told(sock) == ["WATCHDOG=1"] * 3  # at 0, 1.5 and 3 s
            well = False
            await until(10.0)
            assert told(sock) == []
            well = True
            await until(12.5)
            assert told(sock) == ["WATCHDOG=1"] * 2
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await until(100.0)
        assert told(sock) == []

    run(main())


def test_a_fault_of_the_question_is_seen_at_the_end(manager):
    name, _ = manager

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with Notifier(ServiceManager(socket=name, watchdog_s=1.0)).watched(lambda: bool(1 / 0)):
                await until(5.0)

    run(main())


def test_nobody_wants_to_hear():
    async def main() -> None:
        notifier = Notifier(None)
        async with notifier.watched():
            notifier.ready("x")
            notifier.stopping()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


@pytest.mark.parametrize("name", ["{}/nobody", "@jaxserve-nobody-listens-here", "/" + "x" * 200])
def test_nobody_listens(tmp_path, caplog, name):
    with caplog.at_level(logging.WARNING):
        Notifier(ServiceManager(socket=name.format(tmp_path))).ready()
    assert "the service manager cannot be told READY=1" in caplog.text
