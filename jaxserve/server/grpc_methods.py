"""The methods of the Open Inference Protocol over gRPC other than inference, and gRPC's health service."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from jaxserve.errors import InvalidInput, ModelNotFound, Unsupported
from jaxserve.protocols.grpc_messages import HEALTH, INFERENCE, from_plain, message_class, methods
from jaxserve.server.grpc_calls import Call, Reading, guarded
from jaxserve.server.grpc_infer import Inference
from jaxserve.server.service import Service
from jaxserve.server.v2_forms import LOG_SETTINGS, TRACE_SETTINGS

Answer = dict[str, Any]
Method = Callable[[Call, Any], Awaitable[Answer]]
"""Takes a call and its message; the answer is plain values that have the names of the answering message's fields."""


class Methods:
    """Serves the methods by name.

    Args:
        service: what they tell of.
        inference: the two methods that run models.
        reading: what reads the messages of calls.
    """

    def __init__(self, service: Service, inference: Inference, reading: Reading) -> None:
        self._service = service
        self._inference = inference
        self._reading = reading

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server is given."""
        plain: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
            "SystemSharedMemoryStatus": self._no_shared_memory,
            "SystemSharedMemoryRegister": self._register_shared_memory,
            "SystemSharedMemoryUnregister": self._no_shared_memory,
            "CudaSharedMemoryStatus": self._no_shared_memory,
            "CudaSharedMemoryRegister": self._register_shared_memory,
            "CudaSharedMemoryUnregister": self._no_shared_memory,
        }
        inference = {name: self._plain(INFERENCE, name, method) for name, method in plain.items()}
        inference["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._inference.infer)
        inference["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            guarded("ModelStreamInfer", self._inference.stream, self._service)
        )
        health = {"Check": self._plain(HEALTH, "Check", self._check)}
        return [
            grpc.method_handlers_generic_handler(INFERENCE, inference),
            grpc.method_handlers_generic_handler(HEALTH, health),
        ]

    def _plain(self, service: str, name: str, method: Method) -> grpc.RpcMethodHandler:
        """The handler of a method that answers plain values."""
        described = methods(service)[name]
        package = described.containing_service.file.package
        request_class = message_class(described.input_type.name, package=package)
        response_class = message_class(described.output_type.name, package=package)
        is_open = method in (
            self._server_live,
            self._server_ready,
            self._model_ready,
            self._check,
        )

        async def serve(context: Any) -> bytes:
            call = Call(self._service, context)
            if not is_open:
                call.identity()  # before the message is read
            data = await self._reading.message(context)
            try:
                message = request_class.FromString(data)
            except DecodeError:
                raise InvalidInput(f"the message is not a {described.input_type.name}") from None
            return from_plain(await method(call, message), response_class).SerializeToString()

        return grpc.stream_unary_rpc_method_handler(guarded(name, serve, self._service))

    # Health, for everybody

    async def _server_live(self, call: Call, message: Any) -> Answer:
        return {"live": self._service.is_live()}

    async def _server_ready(self, call: Call, message: Any) -> Answer:
        return {"ready": self._service.is_ready()}

    async def _model_ready(self, call: Call, message: Any) -> Answer:
        return {"ready": self._service.is_model_ready(message.name, message.version)}

    async def _check(self, call: Call, message: Any) -> Answer:
        if message.service in ("", INFERENCE, HEALTH):
            ready = self._service.is_ready()
        else:
            if not self._service.has(message.service):  # the protocol wants to be told so
                raise ModelNotFound(f"no model {message.service!r:.200} is served")
            ready = self._service.is_model_ready(message.service)
        return {"status": "SERVING" if ready else "NOT_SERVING"}

    # What there is

    async def _server_metadata(self, call: Call, message: Any) -> Answer:
        return self._service.server_metadata()

    async def _model_metadata(self, call: Call, message: Any) -> Answer:
        return self._service.model_metadata(message.name, message.version, identity=call.identity())

    async def _model_config(self, call: Call, message: Any) -> Answer:
        return {"config": self._service.model_config(message.name, message.version, identity=call.identity())}

    async def _model_statistics(self, call: Call, message: Any) -> Answer:
        identity = call.identity()
        identity.check_observes()
        return self._service.statistics(message.name, message.version, identity=identity)

    # Administration

    async def _repository_index(self, call: Call, message: Any) -> Answer:
        return {"models": self._service.repository_index(identity=call.identity(), ready_only=message.ready)}

    async def _load(self, call: Call, message: Any) -> Answer:
        if message.parameters:
            raise Unsupported(
                f"a model is loaded as the server was given it; the parameters {sorted(message.parameters)!r:.200} "
                f"change nothing"
            )
        await self._service.load(message.model_name, identity=call.identity())
        return {}

    async def _unload(self, call: Call, message: Any) -> Answer:
        await self._service.unload(message.model_name, identity=call.identity())
        return {}

    async def _trace_setting(self, call: Call, message: Any) -> Answer:
        _refuse_settings(message)
        values = {name: value if isinstance(value, list) else [value] for name, value in TRACE_SETTINGS.items()}
        return {"settings": {name: {"value": value} for name, value in values.items()}}

    async def _log_settings(self, call: Call, message: Any) -> Answer:
        _refuse_settings(message)
        return {"settings": {name: {_KINDS[type(value)]: value} for name, value in LOG_SETTINGS.items()}}

    # Shared memory, of which there is none

    async def _no_shared_memory(self, call: Call, message: Any) -> Answer:
        return {}

    async def _register_shared_memory(self, call: Call, message: Any) -> Answer:
        raise Unsupported("shared memory is not supported by this server; send the data itself")


_KINDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


def _refuse_settings(message: Any) -> None:
    if message.settings:
        raise Unsupported(
            f"{sorted(message.settings)!r:.200} cannot be set while the server runs; see its configuration"
        )
