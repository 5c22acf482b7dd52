"""The messages over gRPC are those of clients that exist: by their definitions, and by bytes there and back."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, json_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from jaxserve import protocols
from jaxserve.protocols import grpc_messages
from jaxserve.protocols.grpc_messages import HEALTH, INFERENCE, from_plain, message_class, methods

FOLDER = Path(protocols.__file__).parent
FILES = ["inference.proto", "health.proto"]
LOADED = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "inference.binpb").read_bytes())

# Of these we declare only a part: readers skip what they do not know.
PARTLY = {"ModelConfig", "ModelInstanceGroup"}

CONFIG = {
    "name": "mlp",
    "platform": "jaxserve",
    "backend": "jaxserve",
    "max_batch_size": 8,
    "version_policy": {"latest": {"num_versions": 1}},
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 128], "optional": True}],
    "output": [{"name": "y", "data_type": "TYPE_BF16", "dims": [4]}],
    "instance_group": [{"name": "group_0", "kind": "KIND_MODEL", "count": 2, "gpus": [0, 1]}],
    "dynamic_batching": {"preferred_batch_size": [1, 8], "default_queue_policy": {"timeout_action": "DELAY"}},
    "parameters": {"deadline_s": {"string_value": "0.1"}},
    "model_transaction_policy": {"decoupled": True},
}
STATISTICS = {
    "model_stats": [
        {
            "name": "mlp",
            "version": "1",
            "last_inference": "17",
            "inference_count": "3",
            "inference_stats": {"success": {"count": "3", "ns": "9"}, "queue": {"count": "1"}},
            "batch_stats": [{"batch_size": "4", "compute_infer": {"count": "1", "ns": "2"}}],
            "memory_usage": [{"type": "GPU", "id": "1", "byte_size": "2"}],
            "response_stats": {"0": {"success": {"count": "1"}}},
        }
    ]
}


def fields(messages: Any, prefix: str = "") -> Iterator[tuple[tuple[str, str], tuple[object, ...]]]:
    """Everything about a field that bytes depend on, by message and name."""
    for message in messages:
        name = prefix + message.name
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
            yield (name, field.name), (field.number, field.type, field.label, field.type_name, oneof)
        for enum in message.enum_type:
            yield (name, enum.name), tuple((value.name, value.number) for value in enum.value)
        yield from fields(message.nested_type, f"{name}.")


def file_of(module: Any) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def test_what_is_loaded_is_made_of_the_files(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which compiles .proto files, is not installed")
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={made}", *FILES], check=True, cwd=FOLDER)
    assert descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()) == LOADED
    assert [file.name for file in LOADED.file] == FILES


def test_every_field_is_what_clients_take_it_for():
    ours = dict(fields(LOADED.file[0].message_type))
    theirs = dict(fields(file_of(service_pb2).message_type)) | dict(fields(file_of(model_config_pb2).message_type))
    assert {key: theirs.get(key) for key in ours} == ours
    shared = {message for message, _ in ours} - PARTLY
    assert {key for key in theirs if key[0] in shared} == {key for key in ours if key[0] in shared}


def test_every_method_is_what_clients_take_it_for():
    def told(methods_: Any) -> dict[str, tuple[str, str, bool, bool]]:
        return {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for method in methods_
        }

    [service] = LOADED.file[0].service
    assert told(service.method) == told(file_of(service_pb2).service[0].method)
    assert set(methods(INFERENCE)) == set(told(service.method))
    assert set(methods(HEALTH)) == {"Check"}


def test_enumerations_are_theirs():
    [ours] = LOADED.file[0].enum_type
    assert ours == file_of(model_config_pb2).enum_type[0]


def test_health_is_the_standard_one():
    standard = pytest.importorskip("grpc_health.v1.health_pb2", reason="grpcio-health-checking is not installed")
    for name in ("HealthCheckRequest", "HealthCheckResponse"):
        ours = message_class(name, package="grpc.health.v1").DESCRIPTOR
        theirs = standard.DESCRIPTOR.message_types_by_name[name]
        assert ours.full_name == theirs.full_name
        assert [(f.name, f.number, f.type) for f in ours.fields] == [(f.name, f.number, f.type) for f in theirs.fields]
        assert [(e.name, e.values_by_name.keys()) for e in ours.enum_types] == [
            (e.name, e.values_by_name.keys()) for e in theirs.enum_types
        ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ModelConfigResponse", {"config": CONFIG}),
        ("ModelStatisticsResponse", STATISTICS),
        ("ServerMetadataResponse", {"name": "jaxserve", "version": "1", "extensions": ["a", "b"]}),
        (
            "ModelMetadataResponse",
            {"name": "m", "versions": ["1"], "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]},
        ),
        ("RepositoryIndexResponse", {"models": [{"name": "m", "version": "1", "state": "READY", "reason": "r"}]}),
        ("TraceSettingResponse", {"settings": {"trace_level": {"value": ["OFF"]}}}),
        ("LogSettingsResponse", {"settings": {"log_info": {"bool_param": True}, "log_file": {"string_param": ""}}}),
        ("SystemSharedMemoryStatusResponse", {"regions": {"r": {"name": "r", "key": "k", "byte_size": "4"}}}),
        ("CudaSharedMemoryStatusResponse", {"regions": {"r": {"name": "r", "device_id": "1"}}}),
    ],
)
def test_plain_values_reach_clients(name, values):
    sent = from_plain(values, message_class(name)).SerializeToString()
    received = getattr(service_pb2, name).FromString(sent)
    assert received == json_format.ParseDict(values, getattr(service_pb2, name)())
    assert message_class(name).FromString(received.SerializeToString()).SerializeToString() == sent


names = st.text(max_size=5)
parameters = st.dictionaries(
    names,
    st.one_of(
        st.builds(lambda value: {"bool_param": value}, st.booleans()),
        st.builds(lambda value: {"int64_param": value}, st.integers(-(2**63), 2**63 - 1)),
        st.builds(lambda value: {"uint64_param": value}, st.integers(0, 2**64 - 1)),
        st.builds(lambda value: {"double_param": value}, st.floats(allow_nan=False, allow_infinity=False)),
        st.builds(lambda value: {"string_param": value}, names),
    ),
    max_size=3,
)
tensors = st.fixed_dictionaries(
    {"name": names, "datatype": names, "shape": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)},
    optional={"parameters": parameters, "contents": st.just({"fp32Contents": [0.5, 2.0], "intContents": [-1]})},
)
requests = st.fixed_dictionaries(
    {"model_name": names, "model_version": names, "id": names, "parameters": parameters},
    optional={
        "inputs": st.lists(tensors, max_size=3),
        "outputs": st.lists(st.fixed_dictionaries({"name": names, "parameters": parameters}), max_size=3),
        "raw_input_contents": st.lists(st.just("AAAA"), max_size=3),
    },
)


@given(requests)
def test_requests_are_the_same_bytes_to_both(values):
    theirs = json_format.ParseDict(values, service_pb2.ModelInferRequest())
    ours = grpc_messages.ModelInferRequest.FromString(theirs.SerializeToString())
    assert json_format.MessageToDict(ours) == json_format.MessageToDict(theirs)
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == theirs
