"""A small service for the gRPC server, that does as its models are named, and a way to serve it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton

from jaxserve.errors import AdministrationOff, EngineStopped, JaxserveError, ModelNotFound, Unauthenticated
from jaxserve.server.access import ANYBODY, Identity
from jaxserve.server.grpc_server import GrpcServer
from jaxserve.server.limits import Limits
from tests.server.live import LOOPS, PATIENCE_S

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ALICE = Identity(name="alice", infer=("*",), admin=("*",), observe=False)
Main = Callable[[], Awaitable[None]]


class FakeService:
    """Model `echo` answers its inputs, `held` does when told to, `broken` raises, and `fails` has an error to raise."""

    def __init__(self, *, token: str = "", **limits: Any) -> None:
        self.limits = Limits(**limits)
        self.token = token
        self.ready = True
        self.error: JaxserveError | None = None
        self.calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.loaded: list[tuple[str, str]] = []
        self.cancelled = 0
        self.running = 0
        self.stopped = False
        self.turned_away: Counter[tuple[str, str]] = Counter()
        self.release = asyncio.Event()
        self.changed = asyncio.Event()

    async def infer(self, model: str, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        self.calls.append((model, inputs, options))
        self.running += 1
        self.changed.set()
        try:
            match model:
                case "held":
                    await self.release.wait()
                    if self.stopped:
                        raise EngineStopped("the server stopped before the request was answered")
                case "fails":
                    assert self.error is not None
                    raise self.error
                case "broken":
                    raise RuntimeError("a secret")
                case "echo":
                    pass
                case _:
                    raise ModelNotFound(f"no model {model!r} is served")
            return inputs
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.changed.set()

    def in_flight(self, protocol: str) -> int:
        return self.running

    async def until_idle(self, protocol: str) -> None:
        while self.running:
            self.changed.clear()
            await self.changed.wait()

    def stop_in_flight(self, protocol: str) -> None:
        assert protocol == "grpc"
        self.stopped = True
        self.release.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something is so of the requests."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    def identify(self, authorization: str | None) -> Identity:
        if not self.token:
            return ANYBODY
        if authorization != f"Bearer {self.token}":
            raise Unauthenticated("this server wants a token")
        return ALICE

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self.ready

    def is_model_ready(self, model: str, version: str = "") -> bool:
        return model == "echo" and version in ("", "1")

    def has(self, model: str, version: str = "") -> bool:
        return model in ("echo", "held")

    def new_request_id(self) -> str:
        return "made here"

    def output_names(self, model: str) -> list[str]:
        return ["x"]

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "jaxserve", "version": "0", "extensions": ["classification"]}

    def model_metadata(self, model: str, version: str = "", *, identity: Identity) -> dict[str, Any]:
        tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        return self._described(model) | {"versions": ["1"], "platform": "p", "inputs": tensors, "outputs": tensors}

    def model_config(self, model: str, version: str = "", *, identity: Identity) -> dict[str, Any]:
        tensors = [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
        parameters = {"a": {"string_value": "b"}}
        return self._described(model) | {"max_batch_size": 8, "input": tensors, "parameters": parameters}

    def _described(self, model: str) -> dict[str, Any]:
        if not self.has(model):
            raise ModelNotFound(f"no model {model!r} is served")
        return {"name": model}

    def statistics(self, model: str = "", version: str = "", *, identity: Identity) -> dict[str, Any]:
        return {"model_stats": [{"name": model or "echo", "inference_stats": {"success": {"count": 2, "ns": 3}}}]}

    def repository_index(self, *, identity: Identity, ready_only: bool = False) -> list[dict[str, Any]]:
        index = [{"name": "echo", "version": "1", "state": "READY", "reason": ""}]
        return (
            index if ready_only else [*index, {"name": "held", "version": "1", "state": "UNAVAILABLE", "reason": "r"}]
        )

    async def load(self, model: str, *, identity: Identity) -> None:
        self._administer("load", model, identity)

    async def unload(self, model: str, *, identity: Identity) -> None:
        self._administer("unload", model, identity)

    def _administer(self, what: str, model: str, identity: Identity) -> None:
        if not identity.admin:
            raise AdministrationOff("models are not loaded and unloaded through this door")
        self.loaded.append((what, model))


class Served:
    """A served fake and a client of it."""

    def __init__(self, service: FakeService, server: GrpcServer, client: triton.InferenceServerClient) -> None:
        self.service = service
        self.server = server
        self.client = client

    async def infer(self, model: str = "echo", x: Any = X, **options: Any) -> triton.InferResult:
        return await self.client.infer(model, [given("x", x)], **options)

    @contextlib.asynccontextmanager
    async def channel(self, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
        """A channel of the bare library, for what tritonclient does not send."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}", **options) as channel:
            yield channel


def given(name: str, value: Any) -> triton.InferInput:
    array = np.array(value, np.object_) if isinstance(value, list) else value
    tensor = triton.InferInput(name, list(array.shape), "BYTES" if isinstance(value, list) else "FP32")
    return tensor.set_data_from_numpy(array)


@contextlib.asynccontextmanager
async def served(*, service: FakeService | None = None, **limits: Any) -> AsyncIterator[Served]:
    service = service or FakeService(**limits)
    async with GrpcServer(service) as server, client_of(server) as client:  # pyright: ignore[reportArgumentType]
        yield Served(service, server, client)


@contextlib.asynccontextmanager
async def client_of(server: GrpcServer) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(server.addresses[0]) as client:
        yield client


def run(main: Main, loop: str = "fastest") -> None:
    """Runs a test to its end, in time; no task is left."""

    async def to_its_end() -> None:
        async with asyncio.timeout(3 * PATIENCE_S):
            await main()
        assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}  # pyright: ignore

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(to_its_end())
