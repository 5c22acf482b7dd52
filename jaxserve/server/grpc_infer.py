"""Inference over gRPC: one request in a call, or a stream of them."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import grpc

from jaxserve.errors import EngineStopped, JaxserveError, TooManyInFlight
from jaxserve.protocols.grpc_recall import Received
from jaxserve.protocols.infer_request import check_outputs
from jaxserve.protocols.open_inference_grpc import (
    SMALL_BYTES,
    about,
    receive,
    write_infer,
    write_stream_answer,
    write_stream_error,
)
from jaxserve.protocols.statuses import status_of
from jaxserve.server.grpc_calls import END, FAILED, Call, Reading, fail, log_failure, text_of
from jaxserve.server.identity import Identity
from jaxserve.server.seam import Outputs
from jaxserve.server.service import Service
from jaxserve.server.v2_forms import MODEL_VERSION

MAX_IN_FLIGHT_PER_STREAM = 256
"""Requests of one stream that may be unanswered; then no more are read until the client has taken answers."""


class Inference:
    """Serves `ModelInfer` and `ModelStreamInfer`, and ends them in order.

    Args:
        service: what serves the requests.
        reading: what reads the messages of calls.
    """

    def __init__(self, service: Service, reading: Reading) -> None:
        self._service = service
        self._limits = service.limits
        self._reading = reading
        self._readers: set[asyncio.Task[Any]] = set()  # each reads one stream
        self._buffered_bytes = 0  # of large requests that are unanswered
        self._draining = False
        self._stopped = False

    def drain(self) -> None:
        """From here on streams take no requests."""
        self._draining = True

    def stop(self) -> None:
        """Answers whatever is in flight with `EngineStopped`, and ends every stream behind its answers."""
        self._draining = self._stopped = True
        self._service.stop_in_flight("grpc")
        for task in tuple(self._readers):
            task.cancel()

    # One request in a call

    async def infer(self, _messages: object, context: Any) -> bytes | None:
        """`ModelInfer`, as gRPC calls it: guarded here, for another coroutine around it would cost it 3 %."""
        try:
            call = Call(self._service, context)
            identity = call.identity()  # before the message is read
            data = await self._reading.message(context)
            limits = self._limits
            received = receive(data, max_tensors=limits.max_tensors, max_elements=limits.max_json_elements)
            outputs = await self._run(call, identity, received, len(data))
            return write_infer(received.request, outputs, model=received.model, version=MODEL_VERSION)
        except Exception as error:
            await fail("ModelInfer", context, error, self._service)

    def _run(self, call: Call, identity: Identity, received: Received, size_bytes: int) -> Coroutine[Any, Any, Outputs]:
        if self._stopped:
            raise EngineStopped("the server stopped before the request was answered")
        model, version, request = received
        if request.outputs is not None and identity.may_infer(model):  # who may not learns nothing of it
            check_outputs(request, self._service.output_names(model))
        running = self._service.infer(
            model,
            request.inputs,
            identity=identity,
            protocol="grpc",
            client="" if identity.name else call.client(),
            version=version,
            deadline_s=call.deadline_s(request.timeout_s),
            priority=request.priority,
            tenant=request.tenant or call.tenant,
            request_id=call.request_id or request.id or self._service.new_request_id(),
            traceparent=call.traceparent,
        )
        return running if size_bytes <= SMALL_BYTES else self._run_large(running, size_bytes)

    async def _run_large(self, running: Coroutine[Any, Any, Outputs], size_bytes: int) -> Outputs:
        """Runs a large request, and counts what it takes until it is answered."""
        with contextlib.closing(running):  # where there is no room for it
            self._buffer(size_bytes)
            try:
                return await running
            finally:
                self._buffered_bytes -= size_bytes

    def _buffer(self, size_bytes: int) -> None:
        if self._buffered_bytes + size_bytes > self._limits.max_buffered_bytes:
            raise TooManyInFlight(
                f"unanswered requests take {self._buffered_bytes} bytes, and {self._limits.max_buffered_bytes} are "
                f"allowed; wait for answers before sending more",
                retry_after_s=1.0,
            )
        self._buffered_bytes += size_bytes

    # A stream of requests

    async def stream(self, context: Any) -> None:
        """`ModelStreamInfer`: answers in the order of the requests, each of which fails for itself.

        Three kinds of tasks: this one writes answers, one reads requests, and each request has one. The queue between
        them is what bounds the requests in flight.
        """
        call = Call(self._service, context)
        call.identity()
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MAX_IN_FLIGHT_PER_STREAM)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read_stream(call, tasks, answers))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
                while (answer := await answers.get()) is not None:
                    await context.write(await answer)
        except* grpc.aio.InternalError:
            pass  # what cannot be written has nobody to read it; its other requests were cancelled
        if self._stopped:
            raise EngineStopped("the server stopped; open another stream with another")

    async def _read_stream(
        self, call: Call, tasks: asyncio.TaskGroup, answers: asyncio.Queue[asyncio.Task[bytes] | None]
    ) -> None:
        try:
            while (data := await call.context.read()) is not END:
                await answers.put(tasks.create_task(self._answer(call, data)))
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        await answers.put(None)

    async def _answer(self, call: Call, data: bytes) -> bytes:
        """What is written for one request of a stream."""
        try:
            if self._draining:
                raise EngineStopped("the server is draining; the request was not taken")
            limits = self._limits
            received = receive(data, max_tensors=limits.max_tensors, max_elements=limits.max_json_elements)
            outputs = await self._run(call, call.identity(), received, len(data))
            return write_stream_answer(received.request, outputs, model=received.model, version=MODEL_VERSION)
        except JaxserveError as error:
            if not error.is_told:
                self._service.turned_away["grpc", status_of(error).code] += 1
            return write_stream_error(text_of(error), **about(data))
        except Exception:
            log_failure("ModelStreamInfer")
            return write_stream_error(FAILED, **about(data))
