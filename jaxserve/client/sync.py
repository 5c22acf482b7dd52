"""The synchronous client: an `AsyncClient` on a loop in a thread of its own."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from jaxserve.client.aio import AsyncClient
from jaxserve.errors import ConnectionLost
from jaxserve.protocols.loop import loop_factory

_T = TypeVar("_T")


class Client:
    """Calls a jaxserve server and waits for the answers; a context manager.

        with Client("127.0.0.1:8500") as client:
            out = client.infer("minilm", {"text": ["a sentence", "another"]}, deadline_s=1.0)

    Any number of threads may call it at once. Its loop runs in its own thread, so it works where another loop is
    running already, as in a Jupyter kernel.

    Args:
        address: `host:port`, `[ipv6]:port` or `unix:/path`.
        options: those of `AsyncClient`.

    Raises:
        ConfigError: arguments that make no sense, here.
        TransportError: nobody answers at the address, on entering.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self._client = AsyncClient(address, **options)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    def __enter__(self) -> Self:
        runner = asyncio.Runner(loop_factory=loop_factory())
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=_run, args=(runner,), name="jaxserve client", daemon=True)
        self._thread.start()
        try:
            self._call(self._client.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> dict[str, np.ndarray]:
        """Runs `model` on the server: see `AsyncClient.infer`.

        Args:
            model: its name.
            inputs: by name.
            deadline_s: seconds that the whole call may take; None for the model's default.
            priority: of requests that wait for one model, those of higher priority go first, where the server heeds it
                (from -10 to 10).
            tenant: whose request it is, where the server shares fairly among tenants (at most 128 characters).
        """
        return self._call(self._client.infer(model, inputs, deadline_s=deadline_s, priority=priority, tenant=tenant))

    def status(self) -> dict[str, Any]:
        """What the server does: models, groups, counters."""
        return self._call(self._client.status())

    def models(self) -> list[dict[str, Any]]:
        """The models that are served, with their signatures and default deadlines."""
        return self._call(self._client.models())

    def close(self) -> None:
        """Ends the connections and the thread; calls of other threads that are under way raise `ConnectionLost`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._client.__aexit__(None, None, None), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    def _call(self, call: Coroutine[Any, Any, _T]) -> _T:
        if self._thread is None:
            call.close()
            raise ConnectionLost("the client is closed; use it inside `with`")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ConnectionLost("the client was closed before the answer came") from error
        finally:
            future.cancel()  # an interrupt must reach the server; after an answer this does nothing


def _run(runner: asyncio.Runner) -> None:
    """The thread: the runner closes its loop here, for the caller's thread may be running another one."""
    with runner:
        runner.get_loop().run_forever()
