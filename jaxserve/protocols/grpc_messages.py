"""The messages of `inference.proto` and `health.proto`, without generated code.

They live in a pool of their own: a program that has tritonclient's definitions of the same messages in protobuf's
common pool (a test, a client that embeds the engine) would else fail on import, for two files that define one name
collide.
"""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

_POOL = DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files("jaxserve.protocols").joinpath("inference.binpb").read_bytes()
).file:
    _POOL.Add(_file)  # pyright: ignore[reportAttributeAccessIssue]  # missing in the stubs


def message_class(name: str, *, package: str = "inference") -> Any:
    """The class of a message."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


def methods(service: str) -> Mapping[str, MethodDescriptor]:
    """The methods of a service by name, in the order of its file."""
    found: Any = _POOL.FindServiceByName(service)
    return MappingProxyType({method.name: method for method in found.methods})


def from_plain(values: dict[str, Any], kind: Any) -> Message:
    """A message of plain values that have the names of its fields, as JSON has them."""
    return json_format.ParseDict(values, kind())


ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")
