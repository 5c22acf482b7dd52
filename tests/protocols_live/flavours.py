"""The four flavours of `tritonclient`, called in one way, so that each test runs on all of them.

A call of an asynchronous flavour is awaited; the status that is expected of an error is that of the flavour's protocol.
"""

import asyncio
import dataclasses
import inspect
import json
import queue
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.protocols_live.live import Door
from tests.protocols_live.models import PATIENCE_S


class Status(NamedTuple):
    """What an error is called in the two protocols, as `InferenceServerException.status()` has it."""

    http: str
    grpc: str


INVALID = Status("400", "StatusCode.INVALID_ARGUMENT")
UNAUTHENTICATED = Status("401", "StatusCode.UNAUTHENTICATED")
FORBIDDEN = Status("403", "StatusCode.PERMISSION_DENIED")
NOT_FOUND = Status("404", "StatusCode.NOT_FOUND")
REFUSED = Status("429", "StatusCode.RESOURCE_EXHAUSTED")
MODEL_FAILED = Status("500", "StatusCode.INTERNAL")
UNIMPLEMENTED = Status("501", "StatusCode.UNIMPLEMENTED")
UNAVAILABLE = Status("503", "StatusCode.UNAVAILABLE")
TOO_LATE = Status("504", "StatusCode.DEADLINE_EXCEEDED")


@dataclasses.dataclass(frozen=True, slots=True)
class Flavour:
    """One of the clients.

    Attributes:
        name: of the module.
        module: that holds it.
        is_grpc: whether it speaks gRPC, else HTTP.
        is_async: whether its calls are coroutines.
    """

    name: str
    module: ModuleType
    is_grpc: bool
    is_async: bool

    def methods(self) -> tuple[str, ...]:
        """Every public method of its client."""
        members = inspect.getmembers(self.module.InferenceServerClient, callable)
        return tuple(name for name, _ in members if not name.startswith("_"))

    def input(self, name: str, value: np.ndarray, *, datatype: str | None = None, binary: bool = True) -> Any:
        """An input that holds this value; `binary` is for HTTP."""
        given = self.module.InferInput(name, list(value.shape), datatype or np_to_triton_dtype(value.dtype))
        return given.set_data_from_numpy(value, **({} if self.is_grpc else {"binary_data": binary}))

    def output(self, name: str, *, binary: bool = True, classes: int = 0) -> Any:
        """An output that is asked for; `binary` is for HTTP."""
        options = {} if self.is_grpc else {"binary_data": binary}
        return self.module.InferRequestedOutput(name, class_count=classes, **options)


FLAVOURS = (
    Flavour("http", tritonclient.http, is_grpc=False, is_async=False),
    Flavour("http.aio", tritonclient.http.aio, is_grpc=False, is_async=True),
    Flavour("grpc", tritonclient.grpc, is_grpc=True, is_async=False),
    Flavour("grpc.aio", tritonclient.grpc.aio, is_grpc=True, is_async=True),
)


class Caller:
    """A client of one flavour; a context manager.

    Args:
        flavour: which.
        door: of the server.
        port: instead of the door's.
    """

    def __init__(self, flavour: Flavour, door: Door, *, port: int | None = None) -> None:
        self.flavour = flavour
        self._runner = asyncio.Runner()
        address = f"127.0.0.1:{port or (door.grpc if flavour.is_grpc else door.http)}"

        async def make() -> Any:  # the asynchronous ones want to be made on their loop
            return flavour.module.InferenceServerClient(address, **_tls_options(flavour, door))

        self.client = self._runner.run(make())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()

    def close(self) -> None:
        self.call("close")

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs something on the loop of an asynchronous client."""
        return self._runner.run(coroutine)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the client and waits for what comes back."""
        result = getattr(self.client, method)(*args, **options)
        return self._runner.run(result) if inspect.iscoroutine(result) else result

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method that answers with JSON, or with a message that has that form."""
        return self.call(method, *args, **options, **({"as_json": True} if self.flavour.is_grpc else {}))

    def index(self) -> dict[str, Mapping[str, Any]]:
        """The repository's index by name."""
        index = self.ask("get_model_repository_index")
        models = index["models"] if self.flavour.is_grpc else index
        assert all(each["version"] == "1" for each in models)
        return {each["name"]: each for each in models}

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        binary: bool = True,
        **options: Any,
    ) -> Any:
        """Runs an inference; `binary` is for both ways of HTTP."""
        flavour = self.flavour
        if outputs is None and not binary:
            outputs = list(inputs)
        return self.call(
            "infer",
            model,
            [flavour.input(name, value, binary=binary) for name, value in inputs.items()],
            outputs=None if outputs is None else [flavour.output(name, binary=binary) for name in outputs],
            **options,
        )

    def refuses(self, status: Status, match: str, call: Callable[..., Any], *args: Any, **options: Any) -> str:
        """Calls what must be refused with this status, and returns the message."""
        with pytest.raises(InferenceServerException, match=match) as caught:
            call(*args, **options)
        expected = status.grpc if self.flavour.is_grpc else status.http
        assert caught.value.status() == expected, str(caught.value)
        return str(caught.value)


class Replies:
    """What a client of gRPC calls in a thread of its own, kept for the test's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def __call__(self, result: Any, error: Exception | None) -> None:
        self._queue.put((result, error))

    def next(self) -> Any:
        """The next result; raises the next error."""
        result, error = self._queue.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return result


def response_of(result: Any) -> dict[str, Any]:
    """What the server answered besides the data, in the form that it has in JSON."""
    if isinstance(result.get_response(), dict):
        return result.get_response()
    return json.loads(json.dumps(result.get_response(as_json=True)))


def _tls_options(flavour: Flavour, door: Door) -> dict[str, Any]:
    if door.ca is None:
        return {}
    if flavour.is_grpc:
        return {"ssl": True, "root_certificates": str(door.ca)}
    context = ssl.create_default_context(cafile=door.ca)
    return (
        {"ssl": True, "ssl_context": context}
        if flavour.is_async
        else {"ssl": True, "ssl_context_factory": lambda: context}
    )
