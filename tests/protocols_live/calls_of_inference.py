"""Calls of `tritonclient` that infer, and those that only the client is concerned with, in success and in error."""

import http.client
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.protocols_live.flavours import INVALID, NOT_FOUND, UNAUTHENTICATED, Caller, Replies
from tests.protocols_live.live import LiveServer
from tests.protocols_live.models import PATIENCE_S

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def _inputs(caller: Caller) -> list[Any]:
    return [caller.flavour.input("x", X)]


# ----------------------------------------------------------------------------------------------------------- inference


def infer(caller: Caller, live: LiveServer) -> None:
    result = caller.infer("affine", {"x": X})
    np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def infer_fails(caller: Caller, live: LiveServer) -> None:
    caller.refuses(NOT_FOUND, "no model 'nothing'", caller.infer, "nothing", {"x": X})
    caller.refuses(INVALID, "dimension 1 must be 4", caller.infer, "affine", {"x": X[:, :3]})


def async_infer(caller: Caller, live: LiveServer) -> None:
    if not caller.flavour.is_grpc:
        asked = [caller.call("async_infer", "affine", _inputs(caller), request_id=str(index)) for index in range(3)]
        results = [each.get_result(timeout=PATIENCE_S) for each in asked]
    else:
        replies = Replies()
        for index in range(3):
            caller.call("async_infer", "affine", _inputs(caller), replies, request_id=str(index))
        results = [replies.next() for _ in range(3)]
    for result in results:
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def async_infer_fails(caller: Caller, live: LiveServer) -> None:
    if not caller.flavour.is_grpc:
        asked = caller.call("async_infer", "nothing", _inputs(caller))
        caller.refuses(NOT_FOUND, "no model 'nothing'", asked.get_result, timeout=PATIENCE_S)
        return
    replies = Replies()
    caller.call("async_infer", "nothing", _inputs(caller), replies)
    caller.refuses(NOT_FOUND, "no model 'nothing'", replies.next)
    with live.gate.closed():
        caller.call("async_infer", "gated", _inputs(caller), replies).cancel()
        with pytest.raises(InferenceServerException, match=r"(?i)cancelled"):
            replies.next()


def stream(caller: Caller, live: LiveServer) -> None:
    replies = Replies()
    caller.call("start_stream", replies)
    for index in range(3):
        caller.call("async_stream_infer", "affine", _inputs(caller), request_id=f"n{index}")
    results = [replies.next() for _ in range(3)]
    assert sorted(result.get_response().id for result in results) == ["n0", "n1", "n2"]
    for result in results:
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)
    caller.call("async_stream_infer", "affine", _inputs(caller), request_id="last", enable_empty_final_response=True)
    assert replies.next().get_response().parameters["triton_final_response"].bool_param is True
    caller.call("stop_stream")
    caller.call("stop_stream")  # there is none any more, so there is nothing to do


def stream_fails(caller: Caller, live: LiveServer) -> None:
    with pytest.raises(InferenceServerException, match="stream not available"):
        caller.call("async_stream_infer", "affine", _inputs(caller))
    replies = Replies()
    caller.call("start_stream", replies)
    with pytest.raises(InferenceServerException, match="already running"):
        caller.call("start_stream", replies)
    caller.call("async_stream_infer", "nothing", _inputs(caller))
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        replies.next()
    caller.call("async_stream_infer", "affine", _inputs(caller))  # the stream has survived that
    np.testing.assert_array_equal(replies.next().as_numpy("output"), 2 * X + 1)
    with live.gate.closed():
        caller.call("async_stream_infer", "gated", _inputs(caller))
        caller.call("stop_stream", cancel_requests=True)
        with pytest.raises(InferenceServerException, match=r"(?i)cancelled"):
            replies.next()
    with Caller(caller.flavour, live.guarded) as other:
        other.call("start_stream", replies)  # which is refused at once, whether anything is sent or not
        with pytest.raises(InferenceServerException, match="wants a token") as caught:
            replies.next()
        assert caught.value.status() == UNAUTHENTICATED.grpc


def stream_infer(caller: Caller, live: LiveServer) -> None:
    async def requests() -> Any:
        for index in range(3):
            yield {"model_name": "affine", "inputs": _inputs(caller), "request_id": f"n{index}"}

    async def answers() -> list[Any]:
        return [each async for each in caller.client.stream_infer(requests())]

    found = caller.run(answers())
    assert sorted(result.get_response().id for result, _ in found) == ["n0", "n1", "n2"]
    for result, error in found:
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def stream_infer_fails(caller: Caller, live: LiveServer) -> None:
    async def requests() -> Any:
        for model in ("nothing", "affine"):
            yield {"model_name": model, "inputs": _inputs(caller)}

    async def answers(client: Any) -> list[Any]:
        return [each async for each in client.stream_infer(requests())]

    (first, wrong), (second, none) = sorted(caller.run(answers(caller.client)), key=lambda each: each[1] is None)
    assert first is None
    assert "no model 'nothing'" in wrong.message()
    assert none is None
    np.testing.assert_array_equal(second.as_numpy("output"), 2 * X + 1)


# ------------------------------------------------------------------------------------------------- the client's own


def generate_and_parse(caller: Caller, live: LiveServer) -> None:
    body, json_bytes = caller.client.generate_request_body(_inputs(caller), request_id="by hand")
    headers = {"Inference-Header-Content-Length": str(json_bytes)}
    answered, fields = _post(live, "affine", body, headers)
    header_length = int(fields["Inference-Header-Content-Length"])
    result = caller.client.parse_response_body(answered, header_length=header_length)
    assert result.get_response()["id"] == "by hand"
    np.testing.assert_array_equal(result.as_numpy("output"), 2 * X + 1)


def _post(live: LiveServer, model: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", live.public.http, timeout=PATIENCE_S)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, dict(headers))
        response = connection.getresponse()
        return response.read(), dict(response.getheaders())
    finally:
        connection.close()


def generate_and_parse_fail(caller: Caller, live: LiveServer) -> None:
    with pytest.raises(InferenceServerException, match="reserved parameter"):
        caller.client.generate_request_body(_inputs(caller), parameters={"priority": 1})
    body, json_bytes = caller.client.generate_request_body(_inputs(caller), parameters={"kind": "custom"})
    answered, _ = _post(live, "affine", body, {"Inference-Header-Content-Length": str(json_bytes - 1)})
    result = caller.client.parse_response_body(answered)
    assert set(result.get_response()) == {"error", "code"}
    assert result.as_numpy("output") is None


def plugins(caller: Caller, live: LiveServer) -> None:
    with Caller(caller.flavour, live.guarded) as other:
        plugin = _Plugin(live.authorization("user"))
        other.client.register_plugin(plugin)
        assert other.client.plugin() is plugin
        assert other.ask("get_model_metadata", "affine")["name"] == "affine"
        other.client.unregister_plugin()
        other.refuses(UNAUTHENTICATED, "wants a token", other.call, "get_model_metadata", "affine")


def plugins_fail(caller: Caller, live: LiveServer) -> None:
    assert caller.client.plugin() is None
    with pytest.raises(InferenceServerException, match="No plugin"):
        caller.client.unregister_plugin()
    with Caller(caller.flavour, live.guarded) as other:
        other.client.register_plugin(_Plugin({"authorization": "Bearer none-of-these"}))
        other.refuses(UNAUTHENTICATED, "does not know", other.call, "get_model_metadata", "affine")
        with pytest.raises(InferenceServerException, match="already registered"):
            other.client.register_plugin(_Plugin({}))


class _Plugin:
    """Adds headers to every request."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> None:
        request.headers = {**(request.headers or {}), **self._headers}


def close(caller: Caller, live: LiveServer) -> None:
    other = Caller(caller.flavour, live.public)
    assert other.call("is_server_live") is True
    other.close()
    other.__exit__()  # closes it once more


def closed(caller: Caller, live: LiveServer) -> None:
    with Caller(caller.flavour, live.public) as other:
        assert other.call("is_server_live") is True
        other.close()
        if other.flavour.name == "http":
            return  # this one connects again
        with pytest.raises(Exception, match=r"(?i)closed"):
            other.call("is_server_live")
