"""Every public call of every flavour of `tritonclient`, in success and in error; more of inference is in test_infer.py.

Which calls there are is asked of the clients themselves: one that is new fails here until it is in the tables.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.protocols_live import calls_of_inference as inference
from tests.protocols_live import calls_of_models as models
from tests.protocols_live.flavours import FLAVOURS, UNIMPLEMENTED, Caller, Flavour
from tests.protocols_live.live import LiveServer

Call = Callable[[Caller, LiveServer], None]

SUCCEEDS: Mapping[str, Call] = {
    "is_server_live": models.is_server_live,
    "is_server_ready": models.is_server_ready,
    "is_model_ready": models.is_model_ready,
    "get_server_metadata": models.server_metadata,
    "get_model_metadata": models.model_metadata,
    "get_model_config": models.model_config,
    "get_model_repository_index": models.repository_index,
    "load_model": models.load,
    "unload_model": models.unload,
    "get_inference_statistics": models.statistics,
    "get_trace_settings": models.trace_settings,
    "get_log_settings": models.log_settings,
    "get_system_shared_memory_status": models.no_shared_memory("get_system_shared_memory_status"),
    "get_cuda_shared_memory_status": models.no_shared_memory("get_cuda_shared_memory_status"),
    "unregister_system_shared_memory": models.nothing_to_unregister("unregister_system_shared_memory"),
    "unregister_cuda_shared_memory": models.nothing_to_unregister("unregister_cuda_shared_memory"),
    "infer": inference.infer,
    "async_infer": inference.async_infer,
    "start_stream": inference.stream,
    "async_stream_infer": inference.stream,
    "stop_stream": inference.stream,
    "stream_infer": inference.stream_infer,
    "generate_request_body": inference.generate_and_parse,
    "parse_response_body": inference.generate_and_parse,
    "register_plugin": inference.plugins,
    "plugin": inference.plugins,
    "unregister_plugin": inference.plugins,
    "close": inference.close,
}

FAILS: Mapping[str, Call] = {
    "is_server_live": models.nobody_is_live,
    "is_server_ready": models.server_is_not_ready,
    "is_model_ready": models.model_is_not_ready,
    "get_server_metadata": models.no_server_metadata,
    "get_model_metadata": models.unknown_model("get_model_metadata"),
    "get_model_config": models.unknown_model("get_model_config"),
    "get_model_repository_index": models.no_repository_index,
    "load_model": models.load_is_refused,
    "unload_model": models.administration_is_refused("unload_model"),
    "get_inference_statistics": models.no_statistics,
    "get_trace_settings": models.needs_a_token("get_trace_settings"),
    "get_log_settings": models.needs_a_token("get_log_settings"),
    "get_system_shared_memory_status": models.needs_a_token("get_system_shared_memory_status"),
    "get_cuda_shared_memory_status": models.needs_a_token("get_cuda_shared_memory_status"),
    "unregister_system_shared_memory": models.needs_a_token("unregister_system_shared_memory"),
    "unregister_cuda_shared_memory": models.needs_a_token("unregister_cuda_shared_memory"),
    "infer": inference.infer_fails,
    "async_infer": inference.async_infer_fails,
    "start_stream": inference.stream_fails,
    "async_stream_infer": inference.stream_fails,
    "stop_stream": inference.stream_fails,
    "stream_infer": inference.stream_infer_fails,
    "generate_request_body": inference.generate_and_parse_fail,
    "parse_response_body": inference.generate_and_parse_fail,
    "register_plugin": inference.plugins_fail,
    "plugin": inference.plugins_fail,
    "unregister_plugin": inference.plugins_fail,
    "close": inference.closed,
}

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "register_system_shared_memory": ("region", "/key", 64),
    "register_cuda_shared_memory": ("region", b"aGFuZGxl", 0, 64),
    "update_trace_settings": (None, {"trace_level": ["TIMESTAMPS"]}),
    "update_log_settings": ({"log_verbose_level": 1},),
}
"""What the server does not do, with arguments; each must get 501 UNIMPLEMENTED."""


def _calls(table: Mapping[str, object]) -> list[Any]:
    return [
        pytest.param(flavour, method, id=f"{flavour.name}-{method}")
        for flavour, method in itertools.product(FLAVOURS, table)
        if method in flavour.methods()
    ]


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_the_tables_have_every_method_of_the_client(flavour: Flavour) -> None:
    assert SUCCEEDS.keys() == FAILS.keys()
    assert not SUCCEEDS.keys() & UNSUPPORTED.keys()
    assert set(flavour.methods()) <= SUCCEEDS.keys() | UNSUPPORTED.keys()


def test_the_tables_have_nothing_else() -> None:
    methods = {method for flavour in FLAVOURS for method in flavour.methods()}
    assert methods == SUCCEEDS.keys() | UNSUPPORTED.keys()


@pytest.mark.parametrize(("flavour", "method"), _calls(SUCCEEDS))
def test_a_call_succeeds(live: LiveServer, flavour: Flavour, method: str) -> None:
    with Caller(flavour, live.public) as caller:
        SUCCEEDS[method](caller, live)


def test_a_model_is_ready_once_it_is_loaded(live: LiveServer, caller: Caller) -> None:
    """Clients look right after `load_model`, and give up if it is not."""
    headers = live.authorization("operator")
    with live.restored(), Caller(caller.flavour, live.guarded) as operator:
        operator.call("unload_model", "spare", headers=headers)
        operator.call("load_model", "spare", headers=headers)
        assert operator.call("is_model_ready", "spare") is True
        assert operator.call("is_server_ready") is True


@pytest.mark.parametrize(("flavour", "method"), _calls(FAILS))
def test_a_call_fails(live: LiveServer, flavour: Flavour, method: str) -> None:
    with Caller(flavour, live.public) as caller:
        FAILS[method](caller, live)


@pytest.mark.parametrize(("flavour", "method"), _calls(UNSUPPORTED))
def test_a_call_is_not_supported(live: LiveServer, flavour: Flavour, method: str) -> None:
    with Caller(flavour, live.public) as caller:
        caller.refuses(UNIMPLEMENTED, "not supported|cannot be set", caller.call, method, *UNSUPPORTED[method])
