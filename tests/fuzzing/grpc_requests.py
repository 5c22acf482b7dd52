"""Inference requests as protobuf has them, right or nearly so."""

import math
import random
from typing import Any

import numpy as np

from jaxserve.protocols.datatypes import DTYPES
from jaxserve.protocols.grpc_messages import ModelInferRequest
from tests.fuzzing import native_traffic


def grpc_request(rng: random.Random) -> Any:
    """A request as protobuf, right or nearly so."""
    message = ModelInferRequest(id=rng.choice(("", "1", "\u00fc" * 3, "x" * 1025)))
    model, inputs = native_traffic.inputs_that_fit(rng)
    if rng.random() < 0.3:
        inputs = native_traffic.named_values(rng)
    message.model_name = model
    is_raw = rng.random() < 0.6
    for name, value in inputs.items():
        tensor = message.inputs.add(name=name)
        if isinstance(value, list):
            tensor.datatype = "BYTES"
            tensor.shape.append(len(value))
            encoded = [text.encode() for text in value]
            if is_raw:
                message.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in encoded))
            else:
                tensor.contents.bytes_contents.extend(encoded)
            continue
        tensor.datatype = next(name for name, dtype in DTYPES.items() if dtype == value.dtype)
        tensor.shape.extend(value.shape)
        if is_raw:
            message.raw_input_contents.append(value.tobytes())
        else:
            _fill(rng, tensor, value)
    if rng.random() < 0.3:
        _add_parameters(rng, message)
    return message


def _fill(rng: random.Random, tensor: Any, value: np.ndarray) -> None:
    kinds = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents",
        "FP64": "fp64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    }  # fmt: skip
    field = kinds.get(tensor.datatype, "int_contents") if rng.random() < 0.9 else rng.choice(list(kinds.values()))
    items = value.ravel().tolist()
    if rng.random() < 0.2:
        items = [rng.choice((2**31 - 1, 300, 0, 1, 70000)) for _ in items]
    try:
        getattr(tensor.contents, field).extend(items)
    except (TypeError, ValueError, OverflowError):
        getattr(tensor.contents, field).append(1)


def _add_parameters(rng: random.Random, message: Any) -> None:
    for _ in range(rng.randint(1, 3)):
        holder = rng.choice([message, *message.inputs])
        name = rng.choice(("timeout", "priority", "tenant", "shared_memory_region", "binary_data_output", "x", ""))
        parameter = holder.parameters[name]
        match rng.randrange(5):
            case 0:
                parameter.int64_param = rng.choice((0, 1, -1, 2**62, 5000000))
            case 1:
                parameter.string_param = rng.choice(("", "t", "x" * 500))
            case 2:
                parameter.bool_param = rng.random() < 0.5
            case 3:
                parameter.double_param = rng.choice((math.nan, math.inf, -1.0, 5.0))
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 2, 300))):
            output = message.outputs.add(name=rng.choice(("x", "output", "", "x" * 300)))
            output.parameters["classification"].int64_param = rng.choice((0, 1, 3, -1, 2**40))
