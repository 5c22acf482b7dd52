"""The gRPC server, as tritonclient and the bare library see it."""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from jaxserve import errors
from jaxserve.errors import ConfigError
from jaxserve.protocols.grpc_messages import INFERENCE, message_class, methods
from jaxserve.server import grpc_calls
from jaxserve.server.grpc_calls import Reading
from jaxserve.server.grpc_infer import Inference
from jaxserve.server.grpc_server import GrpcServer, is_fragile
from tests.server.grpc_fakes import ALICE, FakeService, Served, X, client_of, given, run, served
from tests.server.live import LOOPS, PATIENCE_S

INFER = f"/{INFERENCE}/ModelInfer"
BEARER = {"authorization": "Bearer t"}
SHARED_MEMORY = ["SystemSharedMemoryUnregister", "CudaSharedMemoryUnregister"]


def request(model: str = "echo", x: np.ndarray = X, **fields: Any) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[x.tobytes()], **fields)
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return message


async def refused(call: Any, status: str, text: str) -> InferenceServerException:
    with pytest.raises(InferenceServerException, match=text) as caught:
        await call
    assert caught.value.status() == f"StatusCode.{status}"
    return caught.value


async def stopped_at(call: Any, status: grpc.StatusCode, text: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError, match=text) as caught:
        await call
    assert caught.value.code() is status
    return caught.value


# What is served


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_gets_its_answer(loop):
    async def main() -> None:
        async with served() as at:
            result = await at.infer(request_id="7")
            np.testing.assert_array_equal(result.as_numpy("x"), X)
            response = result.get_response()
            assert (response.id, response.model_name, response.model_version) == ("7", "echo", "1")
            texts = await at.infer(x=["ä", "b"])
            assert [text.decode() for text in texts.as_numpy("x")] == ["ä", "b"]
            classes = await at.infer(outputs=[triton.InferRequestedOutput("x", class_count=1)])
            assert classes.as_numpy("x").tolist() == [[b"2.000000:2"], [b"5.000000:2"]]
            large = np.arange(2**20, dtype=np.float32)
            np.testing.assert_array_equal((await at.infer(x=large)).as_numpy("x"), large)
            assert at.server.in_flight == 0

    run(main, loop)


def test_what_a_request_says_reaches_the_service():
    async def main() -> None:
        async with served() as at:
            await at.infer()
            [(model, inputs, plain)] = at.service.calls
            np.testing.assert_array_equal(inputs["x"], X)
            assert model == "echo"
            assert plain == {
                "identity": at.service.identify(None),
                "protocol": "grpc",
                "client": "127.0.0.1",
                "version": "",
                "deadline_s": None,
                "priority": 0,
                "tenant": "",
                "request_id": "made here",
                "traceparent": None,
            }
            headers = {"x-request-id": "r", "x-tenant": "t", "traceparent": "00-a-b-01"}
            await at.infer(model_version="1", priority=1, timeout=2_500_000, headers=headers)
            _, _, full = at.service.calls[1]
            expected = {"version": "1", "deadline_s": 2.5, "priority": 10, "tenant": "t", "request_id": "r"}
            assert {name: full[name] for name in expected} == expected
            assert full["traceparent"] == "00-a-b-01"
            await at.infer(request_id="own", parameters={"tenant": "own"}, headers=headers)
            _, _, own = at.service.calls[2]
            assert (own["request_id"], own["tenant"]) == ("r", "own")

    run(main)


@pytest.mark.parametrize(
    ("client_timeout", "timeout_us", "least_s", "most_s"),
    [(5.0, None, 4.0, 6.0), (5.0, 10**6, 1.0, 1.0), (1, 10**7, 0, 2)],
)
def test_the_nearer_deadline_holds(client_timeout, timeout_us, least_s, most_s):
    async def main() -> None:
        async with served() as at:
            await at.infer(client_timeout=client_timeout, timeout=timeout_us)
            [(_, _, options)] = at.service.calls
            assert least_s <= options["deadline_s"] <= most_s

    run(main)


def test_what_the_server_says_of_itself_and_its_models():
    async def main() -> None:
        async with served() as at:
            client = at.client
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("echo")
            assert await client.is_model_ready("echo", "1")
            assert not await client.is_model_ready("echo", "2")
            assert not await client.is_model_ready("unknown")
            at.service.ready = False
            assert not await client.is_server_ready()
            assert await client.is_server_live()
            assert (await client.get_server_metadata()).extensions == ["classification"]
            metadata = await client.get_model_metadata("echo")
            assert (metadata.inputs[0].datatype, metadata.inputs[0].shape) == ("FP32", [-1, 3])
            config = (await client.get_model_config("echo")).config
            assert (config.max_batch_size, config.input[0].dims) == (8, [3])
            assert config.parameters["a"].string_value == "b"
            statistics = await client.get_inference_statistics("echo")
            assert statistics.model_stats[0].inference_stats.success.ns == 3
            assert [model.name for model in (await client.get_model_repository_index()).models] == ["echo", "held"]
            assert (await client.get_trace_settings()).settings["trace_level"].value == ["OFF"]
            assert (await client.get_log_settings()).settings["log_error"].bool_param
            assert not (await client.get_system_shared_memory_status()).regions
            assert not (await client.get_cuda_shared_memory_status()).regions
            await client.unregister_system_shared_memory()
            await client.unregister_cuda_shared_memory("any")
            await refused(client.get_model_metadata("unknown"), "NOT_FOUND", "no model 'unknown' is served")
            await refused(client.get_model_config("unknown"), "NOT_FOUND", "no model 'unknown' is served")

    run(main)


def test_only_ready_models_where_that_is_asked():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            index = channel.unary_unary(f"/{INFERENCE}/RepositoryIndex")
            data = await index(service_pb2.RepositoryIndexRequest(ready=True).SerializeToString())
            assert [model.name for model in service_pb2.RepositoryIndexResponse.FromString(data).models] == ["echo"]

    run(main)


def test_what_is_not_supported_says_so():
    async def main() -> None:
        async with served(service=FakeService(token="t")) as at:
            client = at.client
            memory = "shared memory is not supported by this server"
            await refused(client.register_system_shared_memory("r", "/k", 8, headers=BEARER), "UNIMPLEMENTED", memory)
            register = client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8, headers=BEARER)
            await refused(register, "UNIMPLEMENTED", memory)
            settings = "cannot be set while the server runs"
            log = client.update_log_settings({"log_info": False}, headers=BEARER)
            await refused(log, "UNIMPLEMENTED", f"'log_info'.* {settings}")
            trace = client.update_trace_settings(settings={"trace_rate": "2"}, headers=BEARER)
            await refused(trace, "UNIMPLEMENTED", f"'trace_rate'.* {settings}")
            load = client.load_model("echo", config="{}", headers=BEARER)
            await refused(load, "UNIMPLEMENTED", r"the parameters \['config'\] change nothing")
            async with at.channel() as channel:
                nothing = channel.unary_unary(f"/{INFERENCE}/Nothing")(b"")
                await stopped_at(nothing, grpc.StatusCode.UNIMPLEMENTED, "Method not found")

    run(main)


def test_models_are_loaded_and_unloaded_by_those_who_may():
    async def main() -> None:
        async with served() as at:
            await refused(at.client.load_model("echo"), "UNAVAILABLE", "through this door")
            await refused(at.client.unload_model("echo"), "UNAVAILABLE", "through this door")
        async with served(service=FakeService(token="t")) as at:
            await at.client.load_model("echo", headers=BEARER)
            await at.client.unload_model("echo", headers=BEARER)
            assert at.service.loaded == [("load", "echo"), ("unload", "echo")]

    run(main)


@pytest.mark.parametrize(
    ("service", "ready", "status"),
    [("", True, 1), ("", False, 2), (INFERENCE, True, 1), ("echo", True, 1), ("held", True, 2)],
)
def test_the_standard_health_service(service, ready, status):
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            at.service.ready = ready
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            asked = message_class("HealthCheckRequest", package="grpc.health.v1")(service=service)
            answer = message_class("HealthCheckResponse", package="grpc.health.v1")
            assert answer.FromString(await check(asked.SerializeToString())).status == status
            asked.service = "unknown"
            await stopped_at(check(asked.SerializeToString()), grpc.StatusCode.NOT_FOUND, "no model 'unknown'")

    run(main)


# Errors


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (errors.InvalidInput("why"), "INVALID_ARGUMENT", None),
        (errors.PermissionDenied("why"), "PERMISSION_DENIED", None),
        (errors.ModelNotFound("why"), "NOT_FOUND", None),
        (
            errors.DeadlineRefused("why", predicted_finish_s=2.0, deadline_s=1.0, retry_after_s=1.2),
            "RESOURCE_EXHAUSTED",
            "2",
        ),
        (errors.QueueFull("why", retry_after_s=0.1), "RESOURCE_EXHAUSTED", "1"),
        (errors.QueueFull("why", retry_after_s=math.inf), "RESOURCE_EXHAUSTED", "3600"),
        (errors.TooManyInFlight("why"), "RESOURCE_EXHAUSTED", "1"),
        (errors.RequestCancelled("why"), "CANCELLED", None),
        (errors.DeadlineExceeded("why"), "DEADLINE_EXCEEDED", None),
        (errors.ModelFailed("why"), "INTERNAL", None),
        (errors.GroupFailed("why"), "UNAVAILABLE", None),
        (errors.EngineStopped("why"), "UNAVAILABLE", None),
    ],
)
def test_errors_of_the_service_are_statuses(error, status, retry_after):
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            at.service.error = error
            await refused(at.infer("fails"), status, "why")
            call = channel.unary_unary(INFER)(request("fails").SerializeToString())
            caught = await stopped_at(call, grpc.StatusCode[status], "why")
            trailing = dict(caught.trailing_metadata() or ())
            assert trailing["jaxserve-code"] == error.code
            assert trailing.get("retry-after") == retry_after

    run(main)


def test_an_unknown_model_and_wrong_inputs():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            await refused(at.infer("unknown"), "NOT_FOUND", "no model 'unknown' is served")
            outputs = [triton.InferRequestedOutput("z")]
            await refused(at.infer(outputs=outputs), "INVALID_ARGUMENT", "no output 'z'; the model has x")
            call = channel.unary_unary(INFER)
            status = grpc.StatusCode.INVALID_ARGUMENT
            for data in (b"\xff", b"\xff" * 2**17):
                await stopped_at(call(data), status, "the message is not a ModelInferRequest")
            await stopped_at(
                channel.unary_unary(f"/{INFERENCE}/ModelReady")(b"\xff"), status, "not a ModelReadyRequest"
            )
            await stopped_at(channel.stream_unary(INFER)(iter(())), status, "the call has no message")
            assert not [model for model, *_ in at.service.calls if model == "echo"]

    run(main)


def test_texts_of_errors_are_bounded():
    async def main() -> None:
        async with served() as at:
            at.service.error = errors.ModelNotFound("ä" * 10_000)
            caught = await refused(at.infer("fails"), "NOT_FOUND", r"^\[StatusCode.NOT_FOUND\] ä+\.\.\.$")
            assert len(caught.message()) == grpc_calls.LONGEST_TEXT

    run(main)


def test_what_the_server_did_wrong_is_for_its_log(caplog):
    async def main() -> None:
        async with served() as at:
            caught = await refused(at.infer("broken"), "INTERNAL", "the server failed; its log says more")
            assert "secret" not in str(caught)
            assert "Traceback" not in str(caught.debug_details())
            [_, error] = await streamed(at, "echo", "broken")
            assert error[1] == "the server failed; its log says more"
            assert at.server.in_flight == 0

    run(main)
    logged = [record for record in caplog.records if record.name == "jaxserve.grpc"]
    assert [record.getMessage() for record in logged] == [
        "the gRPC method ModelInfer failed",
        "the gRPC method ModelStreamInfer failed",
    ]
    assert all("a secret" in str(record.exc_info) for record in logged)


def test_a_deadline_that_passes_and_a_client_that_cancels():
    async def main() -> None:
        async with served() as at:
            await refused(at.infer("held", client_timeout=0.05), "DEADLINE_EXCEEDED", "Deadline Exceeded")
            await at.service.until(lambda: at.service.cancelled == 1)
            task = asyncio.create_task(at.infer("held"))
            await at.service.until(lambda: at.service.running == 1)
            assert at.server.in_flight == 1
            task.cancel()
            await at.service.until(lambda: at.service.cancelled == 2)
            await asyncio.wait([task])
            np.testing.assert_array_equal((await at.infer()).as_numpy("x"), X)

    run(main)


# Who may


def test_only_health_is_for_those_without_a_token():
    async def main() -> None:
        open_methods = {"ServerLive", "ServerReady", "ModelReady"}
        async with served(service=FakeService(token="t")) as at, at.channel() as channel:
            for name, method in methods(INFERENCE).items():
                if method.client_streaming:
                    call = channel.stream_stream(f"/{INFERENCE}/{name}")(iter((b"",))).read()
                else:
                    call = channel.unary_unary(f"/{INFERENCE}/{name}")(b"")
                if name in open_methods:
                    await call
                else:
                    await stopped_at(call, grpc.StatusCode.UNAUTHENTICATED, "this server wants a token")
            await refused(at.infer(headers={"authorization": "Bearer x"}), "UNAUTHENTICATED", "wants a token")
            await at.infer(headers=BEARER)
            [(_, _, options)] = at.service.calls
            assert (options["identity"], options["client"]) == (ALICE, "")
            statistics = at.client.get_inference_statistics("echo", headers=BEARER)
            await refused(statistics, "PERMISSION_DENIED", "'alice' may not see what the server does")

    run(main)


def test_a_stranger_is_turned_away_before_the_message_is_read():
    async def main() -> None:
        async with served(service=FakeService(token="t")) as at, at.channel() as channel:
            call = channel.stream_unary(INFER)()  # and nothing is written
            await stopped_at(call, grpc.StatusCode.UNAUTHENTICATED, "this server wants a token")

    run(main)


# Streams


async def streamed(at: Served, *models: str, **options: Any) -> list[tuple[str, str, bool]]:
    """What a stream answers to a request for each model: id, error, whether it is final."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index, model in enumerate(models):
            yield {"model_name": model, "inputs": [given("x", X)], "request_id": str(index)} | options

    answers: list[tuple[str, str, bool]] = []
    async for result, error in at.client.stream_infer(requests()):
        if error is not None:
            answers.append(("", error.message(), True))
        else:
            np.testing.assert_array_equal(result.as_numpy("x"), X)
            response = result.get_response()
            answers.append((response.id, "", response.parameters["triton_final_response"].bool_param))
    return answers


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_answers_in_order_and_outlives_errors(loop):
    async def main() -> None:
        async with served() as at:
            answers = await streamed(at, "echo", "unknown", "echo", enable_empty_final_response=True)
            assert answers == [("0", "", True), ("", "no model 'unknown' is served", True), ("2", "", True)]
            assert await streamed(at) == []

    run(main, loop)


def test_a_stream_says_which_request_failed():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            for data in (request("unknown", id="a").SerializeToString(), b"\xff"):
                await call.write(data)
            await call.done_writing()
            first, second = [service_pb2.ModelStreamInferResponse.FromString(await call.read()) for _ in range(2)]
            assert (first.infer_response.id, first.infer_response.model_name) == ("a", "unknown")
            assert first.infer_response.parameters["triton_final_response"].bool_param
            assert second.error_message == "the message is not a ModelInferRequest"
            assert await call.read() is grpc.aio.EOF

    run(main)


def test_requests_of_a_stream_run_together_and_are_answered_in_order():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            for index, model in enumerate(("held", "held", "echo")):
                await call.write(request(model, id=str(index)).SerializeToString())
            await at.service.until(lambda: len(at.service.calls) == 3)
            assert at.server.in_flight == 2
            at.service.release.set()
            for index in range(3):
                answer = service_pb2.ModelStreamInferResponse.FromString(await call.read())
                assert answer.infer_response.id == str(index)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    run(main)


def test_a_stream_has_only_so_many_requests_in_flight(monkeypatch):
    monkeypatch.setattr("jaxserve.server.grpc_infer.MAX_IN_FLIGHT_PER_STREAM", 3)

    async def main() -> None:
        async with served() as at, at.channel() as channel:
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            for index in range(20):
                await call.write(request("held", id=str(index)).SerializeToString())
            # One is being awaited, three are in the queue, and one waits for a place in it.
            await at.service.until(lambda: at.service.running == 5)
            np.testing.assert_array_equal((await at.infer()).as_numpy("x"), X)  # all the time in the world for a sixth
            assert at.service.running == 5
            at.service.release.set()
            for index in range(20):
                answer = service_pb2.ModelStreamInferResponse.FromString(await call.read())
                assert answer.infer_response.id == str(index)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    run(main)


def test_a_client_that_cancels_its_stream_cancels_its_requests():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            for _ in range(2):
                await call.write(request("held").SerializeToString())
            await at.service.until(lambda: at.service.running == 2)
            call.cancel()
            await at.service.until(lambda: at.service.cancelled == 2)
            assert at.service.running == 0
            np.testing.assert_array_equal((await at.infer()).as_numpy("x"), X)

    run(main)


def test_a_stream_whose_answers_cannot_be_written_ends_with_its_requests(caplog):
    class Gone:
        """What gRPC has for a stream of two requests whose client has gone without a word."""

        def __init__(self) -> None:
            self.messages = [request("echo").SerializeToString(), request("held").SerializeToString()]

        def invocation_metadata(self) -> tuple[()]:
            return ()

        def peer(self) -> str:
            return "ipv6:%5B::1%5D:4711"

        def time_remaining(self) -> None:
            return None

        async def read(self) -> bytes:
            return self.messages.pop(0) if self.messages else await asyncio.Event().wait()  # pyright: ignore

        async def write(self, answer: bytes) -> None:
            await service.until(lambda: service.running == 1)
            raise grpc.aio.InternalError("failed to write")

    service = FakeService()

    async def main() -> None:
        inference = Inference(service, Reading(1.0))  # pyright: ignore[reportArgumentType]
        await inference.stream(Gone())
        assert service.cancelled == 1
        assert service.calls[0][2]["client"] == "::1"
        assert service.in_flight("grpc") == 0

    run(main)
    assert not caplog.records


def test_the_deadline_of_a_stream_is_that_of_its_requests():
    async def main() -> None:
        async with served() as at:
            [_] = await streamed(at, "echo")
            async for _ in at.client.stream_infer(one_request(), stream_timeout=5.0):
                pass
            assert at.service.calls[0][2]["deadline_s"] is None
            assert 4 < at.service.calls[1][2]["deadline_s"] < 6

    async def one_request() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "echo", "inputs": [given("x", X)]}

    run(main)


# Limits


def test_a_message_that_is_too_large_is_refused_compressed_or_not():
    async def main() -> None:
        async with served(max_body_bytes=2**20) as at, at.channel() as channel:
            call = channel.unary_unary(INFER)
            exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
            await stopped_at(call(bytes(2**20 + 1)), exhausted, "larger than max")
            bomb = call(bytes(2**26), compression=grpc.Compression.Gzip)
            await stopped_at(bomb, exhausted, "larger than max")
            await stopped_at(call(b"", metadata=(("x", "a" * 2**15),)), exhausted, "metadata size exceeds")
            answer = await call(request(x=X).SerializeToString(), compression=grpc.Compression.Gzip)
            assert service_pb2.ModelInferResponse.FromString(answer).raw_output_contents == [X.tobytes()]

    run(main)


def test_a_message_that_does_not_come_is_not_waited_for():
    async def main() -> None:
        async with served(body_timeout_s=0.05) as at, at.channel() as channel:
            call = channel.stream_unary(INFER)()  # and nothing is written
            await stopped_at(call, grpc.StatusCode.CANCELLED, "the message did not come, for 0.05 s or more")
            task = asyncio.create_task(at.infer("held"))  # one that came may take its time
            await at.service.until(lambda: at.service.running == 1)
            call = channel.stream_unary(INFER)()  # and nothing is written
            await stopped_at(call, grpc.StatusCode.CANCELLED, "the message did not come")
            at.service.release.set()
            np.testing.assert_array_equal((await task).as_numpy("x"), X)

    run(main)


def test_large_requests_in_flight_are_bounded():
    async def main() -> None:
        async with served(max_buffered_bytes=2**18) as at:
            large = np.zeros(2**15, np.float32)
            task = asyncio.create_task(at.infer("held", large))
            await at.service.until(lambda: at.service.running == 1)
            await refused(at.infer("echo", large), "RESOURCE_EXHAUSTED", "and 262144 are allowed; wait for answers")
            np.testing.assert_array_equal((await at.infer()).as_numpy("x"), X)
            at.service.release.set()
            await task
            np.testing.assert_array_equal((await at.infer("echo", large)).as_numpy("x"), large)

    run(main)


def test_connections_are_bounded():
    async def main() -> None:
        async with served(max_connections=2) as at:
            assert await at.client.is_server_live()
            _, second = await asyncio.open_connection("127.0.0.1", at.server.port)
            reader, third = await asyncio.open_connection("127.0.0.1", at.server.port)
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
            second.close()
            third.close()

    run(main)


@pytest.mark.skipif(is_fragile(), reason=f"grpcio {grpc.__version__} ends its server at such a path")
def test_a_path_that_is_not_text_ends_nothing():
    def literal(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload

    named = {b":path": b"/\xff/x", b":authority": b"a", b"content-type": b"application/grpc", b"te": b"trailers"}
    headers = b"\x83\x86" + b"".join(literal(name, value) for name, value in named.items())
    call = frame(1, 4, 1, headers) + frame(0, 1, 1, bytes(5))

    async def main() -> None:
        async with served() as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.server.port)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + call)
            async with asyncio.timeout(PATIENCE_S):
                while b"grpc-status" not in await reader.read(2**16):
                    pass
            writer.close()
            np.testing.assert_array_equal((await at.infer()).as_numpy("x"), X)

    run(main)


# Starting and ending


def test_a_port_that_is_taken_is_an_error(capfd):
    async def main() -> None:
        async with served() as at:
            port = at.server.port
            assert at.server.addresses == (f"127.0.0.1:{port}",)
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*in use; choose another port"):
                async with GrpcServer(at.service, port=port or 0):  # pyright: ignore[reportArgumentType]
                    pass
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                async with GrpcServer(FakeService(), port=port):  # pyright: ignore[reportArgumentType]
                    pass
        with pytest.raises(ConfigError, match=r"cannot listen on nowhere\.invalid:0"):
            async with GrpcServer(FakeService(), host="nowhere.invalid"):  # pyright: ignore[reportArgumentType]
                pass

    run(main)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("loop", LOOPS)
def test_a_drain_lets_what_is_in_flight_finish(loop):
    async def main() -> None:
        service = FakeService()
        async with served(service=service) as at, client_of(at.server) as other:
            assert await other.is_server_live()
            task = asyncio.create_task(at.infer("held"))
            await service.until(lambda: service.running == 1)
            drain = asyncio.create_task(at.server.drain(PATIENCE_S))
            await asyncio.sleep(0)  # the drain starts
            assert not drain.done()
            service.release.set()
            np.testing.assert_array_equal((await task).as_numpy("x"), X)
            await drain
            await refused(other.is_server_live(), "UNAVAILABLE", r"^\[StatusCode.UNAVAILABLE\] ")

    run(main, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_in_flight_after_the_grace_is_told(loop):
    async def main() -> None:
        service = FakeService()
        async with served(service=service) as at, at.channel() as channel:
            task = asyncio.create_task(at.infer("held"))
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            await call.write(request("held", id="s").SerializeToString())
            await service.until(lambda: service.running == 2)
            drain = asyncio.create_task(at.server.drain(0.01))
            await refused(task, "UNAVAILABLE", "the server stopped before the request was answered")
            answer = service_pb2.ModelStreamInferResponse.FromString(await call.read())
            assert answer.error_message == "the server stopped before the request was answered"
            assert answer.infer_response.id == "s"
            await stopped_at(call.read(), grpc.StatusCode.UNAVAILABLE, "the server stopped; open another stream")
            await drain
            assert service.stopped
            assert at.server.in_flight == 0

    run(main, loop)


def test_a_stream_takes_nothing_while_the_server_drains():
    async def main() -> None:
        service = FakeService()
        async with served(service=service) as at, at.channel() as channel:
            busy, other = [channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")() for _ in range(2)]
            await busy.write(request("held").SerializeToString())
            await other.write(request("echo").SerializeToString())
            await other.read()
            await service.until(lambda: service.running == 1)
            drain = asyncio.create_task(at.server.drain(PATIENCE_S))
            await asyncio.sleep(0)  # the drain starts
            await other.write(request("echo").SerializeToString())
            answer = service_pb2.ModelStreamInferResponse.FromString(await other.read())
            assert answer.error_message == "the server is draining; the request was not taken"
            service.release.set()
            answer = service_pb2.ModelStreamInferResponse.FromString(await busy.read())
            assert answer.error_message == ""
            for call in (busy, other):
                await stopped_at(call.read(), grpc.StatusCode.UNAVAILABLE, "the server stopped")
            await drain
            assert sorted(model for model, *_ in service.calls) == ["echo", "held"]

    run(main)


def test_an_idle_stream_does_not_hold_up_the_end():
    async def main() -> None:
        async with served() as at, at.channel() as channel:
            call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            await call.write(request().SerializeToString())
            await call.read()
            async with asyncio.timeout(PATIENCE_S):
                await at.server.drain(10 * PATIENCE_S)
            await stopped_at(call.read(), grpc.StatusCode.UNAVAILABLE, "the server stopped")

    run(main)


def test_a_drain_may_lose_its_patience():
    async def main() -> None:
        service = FakeService()
        async with served(service=service) as at:
            task = asyncio.create_task(at.infer("held"))
            await service.until(lambda: service.running == 1)
            first = asyncio.create_task(at.server.drain(10 * PATIENCE_S))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            async with asyncio.timeout(PATIENCE_S):
                await at.server.drain(0.0)
            await refused(task, "UNAVAILABLE", "the server stopped")

    run(main)


def test_tls():
    trustme = pytest.importorskip("trustme", reason="trustme, which makes certificates, is not installed")
    authority = trustme.CA()
    own = authority.issue_cert("localhost")
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair])

    async def main() -> None:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        async with GrpcServer(FakeService(), credentials=credentials) as server:  # pyright: ignore[reportArgumentType]
            async with grpc.aio.secure_channel(f"localhost:{server.port}", trusted) as channel:
                answer = await channel.unary_unary(INFER)(request().SerializeToString())
                assert service_pb2.ModelInferResponse.FromString(answer).raw_output_contents == [X.tobytes()]
            async with client_of(server) as plain:
                await refused(
                    plain.is_server_live(client_timeout=PATIENCE_S), "UNAVAILABLE", r"^\[StatusCode.UNAVAILABLE\] "
                )

    run(main)


def test_what_grpc_says_of_strangers_is_no_error_of_the_server(caplog):
    async def main():
        async with served():
            theirs = logging.getLogger("grpc._cython.cygrpc")
            theirs.error("Invalid encoding on [secret]")
            theirs.error("something else went wrong")

    caplog.set_level(logging.INFO, "jaxserve.grpc")
    run(main, "asyncio")
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert ("jaxserve.grpc.server", "INFO", "gRPC could not go on with a call") in told
    assert ("grpc._cython.cygrpc", "ERROR", "something else went wrong") in told
    assert not any("secret" in message for _, _, message in told)
