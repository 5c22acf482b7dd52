"""Calls of `tritonclient` about the server and its models, each in success and in error."""

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.protocols_live.flavours import NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, UNIMPLEMENTED, Caller
from tests.protocols_live.live import LiveServer
from tests.protocols_live.models import ODD_NAME, PATIENCE_S

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Call = Callable[[Caller, LiveServer], None]


def _inputs(caller: Caller) -> list[Any]:
    return [caller.flavour.input("x", X)]


# ------------------------------------------------------------------------------------------------------------- health


def is_server_live(caller: Caller, live: LiveServer) -> None:
    assert caller.call("is_server_live") is True
    with Caller(caller.flavour, live.draining) as other:
        assert other.call("is_server_live") is True
    with Caller(caller.flavour, live.guarded) as other:  # probes show no tokens
        assert other.call("is_server_live") is True


def nobody_is_live(caller: Caller, live: LiveServer) -> None:
    _cannot_connect(caller, live, "is_server_live")


def _cannot_connect(caller: Caller, live: LiveServer, method: str) -> None:
    with Caller(caller.flavour, live.public, port=_free_port()) as other:
        if other.flavour.is_grpc:
            other.refuses(UNAVAILABLE, "(?i)connect", other.call, method)
        else:
            with pytest.raises(OSError, match=r"(?i)connect"):
                other.call(method)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_server_ready(caller: Caller, live: LiveServer) -> None:
    assert caller.call("is_server_ready") is True


def server_is_not_ready(caller: Caller, live: LiveServer) -> None:
    with Caller(caller.flavour, live.draining) as other:
        assert other.call("is_server_ready") is False


def is_model_ready(caller: Caller, live: LiveServer) -> None:
    assert caller.call("is_model_ready", "affine") is True
    assert caller.call("is_model_ready", "affine", "1") is True


def model_is_not_ready(caller: Caller, live: LiveServer) -> None:
    assert caller.call("is_model_ready", "nothing") is False
    assert caller.call("is_model_ready", "affine", "7") is False
    with Caller(caller.flavour, live.draining) as other:
        assert other.call("is_model_ready", "affine") is False


# ------------------------------------------------------------------------------------------------------- descriptions


def server_metadata(caller: Caller, live: LiveServer) -> None:
    metadata = caller.ask("get_server_metadata")
    assert metadata["name"] == "jaxserve"
    assert metadata["version"]
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(metadata["extensions"])


def no_server_metadata(caller: Caller, live: LiveServer) -> None:
    _cannot_connect(caller, live, "get_server_metadata")


def model_metadata(caller: Caller, live: LiveServer) -> None:
    for version in ("", "1"):
        metadata = caller.ask("get_model_metadata", "affine", version)
        assert metadata["name"] == "affine"
        assert metadata["versions"] == ["1"]
        assert metadata["platform"]
        assert [_plain(each) for each in metadata["inputs"]] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert [_plain(each) for each in metadata["outputs"]] == [
            {"name": "output", "datatype": "FP32", "shape": [-1, 4]}
        ]
    [text] = caller.ask("get_model_metadata", "letters")["inputs"]
    assert _plain(text) == {"name": "text", "datatype": "BYTES", "shape": [-1]}
    every = caller.ask("get_model_metadata", "every")["inputs"]
    assert all(each["name"] == each["datatype"] for each in every)


def _plain(tensor: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**tensor, "shape": [int(dimension) for dimension in tensor["shape"]]}  # protobuf writes int64 as text


def model_config(caller: Caller, live: LiveServer) -> None:
    for version in ("", "1"):
        config = caller.ask("get_model_config", "affine", version)
        config = config.get("config", config)  # gRPC wraps it
        assert config["name"] == "affine"
        assert config["platform"]
        assert config["backend"]
        assert config["max_batch_size"] == 4
        [given], [made] = config["input"], config["output"]
        assert (given["name"], given["data_type"], [int(dim) for dim in given["dims"]]) == ("x", "TYPE_FP32", [4])
        assert (made["name"], made["data_type"], [int(dim) for dim in made["dims"]]) == ("output", "TYPE_FP32", [4])
        assert len(config["instance_group"]) == 1
        assert config["dynamic_batching"]["preferred_batch_size"] == [1, 2, 4]


def unknown_model(method: str) -> Call:
    def call(caller: Caller, live: LiveServer) -> None:
        caller.refuses(NOT_FOUND, "no model 'nothing'.*affine", caller.call, method, "nothing")
        caller.refuses(NOT_FOUND, "no version '7'.*'1'", caller.call, method, "affine", "7")
        with Caller(caller.flavour, live.guarded) as other:
            other.refuses(UNAUTHENTICATED, "wants a token", other.call, method, "affine")

    return call


# --------------------------------------------------------------------------------------------------------- statistics


def statistics(caller: Caller, live: LiveServer) -> None:
    before = _counted(caller, "affine")
    for _ in range(3):
        caller.call("infer", "affine", _inputs(caller))
    with pytest.raises(InferenceServerException):
        caller.call("infer", "affine", _inputs(caller), timeout=1)
    after = _counted(caller, "affine", "1")
    assert after["inference_count"] - before["inference_count"] == 6  # rows
    assert after["execution_count"] - before["execution_count"] == 3
    grown = {name: after[f"{name}.count"] - before[f"{name}.count"] for name in ("success", "fail", "queue")}
    assert grown == {"success": 3, "fail": 1, "queue": 3}
    assert after["compute_infer.count"] - before["compute_infer.count"] == 3
    took_ns = after["success.ns"] - before["success.ns"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    parts_ns = sum(after[f"{name}.ns"] - before[f"{name}.ns"] for name in parts)
    assert 0 < after["compute_infer.ns"] - before["compute_infer.ns"] <= took_ns
    assert parts_ns == pytest.approx(took_ns, rel=0.01)
    assert after["last_inference"] > before["last_inference"]
    assert after["last_inference"] == pytest.approx(1000 * time.time(), abs=1000 * PATIENCE_S)
    everyone = caller.ask("get_inference_statistics")["model_stats"]
    assert {each["name"] for each in everyone} >= {"identity", "affine", "letters", "gated"}


def _counted(caller: Caller, model: str, version: str = "") -> dict[str, int]:
    """The numbers of a model's statistics; protobuf leaves out what is 0, and writes the others as text."""
    [found] = caller.ask("get_inference_statistics", model, version)["model_stats"]
    assert (found["name"], found["version"]) == (model, "1")
    counted = {name: int(found.get(name, 0)) for name in ("inference_count", "execution_count", "last_inference")}
    times = found.get("inference_stats", {})
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit"):
        counted |= {f"{name}.{unit}": int(times.get(name, {}).get(unit, 0)) for unit in ("count", "ns")}
    batches = found.get("batch_stats", [])
    assert sum(int(each["compute_infer"]["count"]) for each in batches) == counted["execution_count"]
    return counted


def no_statistics(caller: Caller, live: LiveServer) -> None:
    unknown_model("get_inference_statistics")(caller, live)
    with Caller(caller.flavour, live.guarded) as other:
        headers = live.authorization("blind")
        with pytest.raises(InferenceServerException, match="may not see what the server does"):
            other.call("get_inference_statistics", headers=headers)


# --------------------------------------------------------------------------------------------------------- repository


def repository_index(caller: Caller, live: LiveServer) -> None:
    index = caller.index()
    assert {"identity", "affine", "mixed", "every", "letters", "fails", "gated", "spare", ODD_NAME} == set(index)
    assert {each["state"] for each in index.values()} == {"READY"}


def no_repository_index(caller: Caller, live: LiveServer) -> None:
    with Caller(caller.flavour, live.guarded) as other:
        other.refuses(UNAUTHENTICATED, "wants a token", other.call, "get_model_repository_index")
        headers = {"authorization": "Bearer none-of-these"}
        other.refuses(UNAUTHENTICATED, "does not know", other.call, "get_model_repository_index", headers=headers)


def unload(caller: Caller, live: LiveServer) -> None:
    headers = live.authorization("operator")
    with live.restored(), Caller(caller.flavour, live.guarded) as operator:
        operator.call("unload_model", "spare", headers=headers)
        assert caller.index()["spare"]["state"] == "UNAVAILABLE"
        assert caller.index()["spare"]["reason"] == "unloaded"
        assert caller.call("is_model_ready", "spare") is False
        assert caller.call("is_server_ready") is True  # what was taken out on purpose is not missed
        caller.refuses(NOT_FOUND, "no model 'spare'", caller.infer, "spare", {"x": X})
        operator.refuses(NOT_FOUND, "no model 'spare'", operator.call, "unload_model", "spare", headers=headers)


def load(caller: Caller, live: LiveServer) -> None:
    headers = live.authorization("operator")
    with live.restored(), Caller(caller.flavour, live.guarded) as operator:
        operator.call("load_model", "spare", headers=headers)  # it is there, so there is nothing to do
        operator.call("unload_model", "spare", headers=headers)
        operator.call("load_model", "spare", headers=headers)
        np.testing.assert_array_equal(caller.infer("spare", {"x": X[:1]}).as_numpy("output"), X[:1] - 1)
        assert caller.call("is_model_ready", "spare") is True
        assert caller.index()["spare"]["state"] == "READY"


def administration_is_refused(method: str) -> Call:
    def call(caller: Caller, live: LiveServer) -> None:
        caller.refuses(UNAVAILABLE, "not loaded and unloaded through this door", caller.call, method, "spare")
        with Caller(caller.flavour, live.guarded) as other:
            other.refuses(UNAUTHENTICATED, "wants a token", other.call, method, "spare")
            user, operator = live.authorization("user"), live.authorization("operator")
            other.refuses(UNAVAILABLE, "through this door", other.call, method, "spare", headers=user)
            with pytest.raises(InferenceServerException, match="may not administer model 'affine'") as caught:
                other.call(method, "affine", headers=operator)
            assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")

    return call


def load_is_refused(caller: Caller, live: LiveServer) -> None:
    administration_is_refused("load_model")(caller, live)
    headers = live.authorization("operator")
    with Caller(caller.flavour, live.guarded) as other:
        config = json.dumps({"max_batch_size": 8})
        refused = "as the server was given it.*config"
        other.refuses(UNIMPLEMENTED, refused, other.call, "load_model", "spare", headers=headers, config=config)


# ------------------------------------------------------------------------------------------------------------ settings


def trace_settings(caller: Caller, live: LiveServer) -> None:
    for model in (None, "affine"):
        settings = caller.ask("get_trace_settings", model)
        level = settings["settings"]["trace_level"]["value"] if caller.flavour.is_grpc else settings["trace_level"]
        assert level == ["OFF"]


def log_settings(caller: Caller, live: LiveServer) -> None:
    settings = caller.ask("get_log_settings")
    info = settings["settings"]["log_info"]["bool_param"] if caller.flavour.is_grpc else settings["log_info"]
    assert info is True


def no_shared_memory(method: str) -> Call:
    def call(caller: Caller, live: LiveServer) -> None:
        assert caller.ask(method) == ({} if caller.flavour.is_grpc else [])

    return call


def nothing_to_unregister(method: str) -> Call:
    def call(caller: Caller, live: LiveServer) -> None:
        assert caller.call(method) is None
        assert caller.call(method, "nothing") is None

    return call


def needs_a_token(method: str, *args: Any) -> Call:
    def call(caller: Caller, live: LiveServer) -> None:
        with Caller(caller.flavour, live.guarded) as other:
            other.refuses(UNAUTHENTICATED, "wants a token", other.call, method, *args)

    return call
