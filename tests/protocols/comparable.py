"""Messages as values that can be compared: arrays by dtype, shape and bytes, errors by type and text."""

import dataclasses
from typing import Any

import numpy as np


def comparable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.name, value.shape, value.tobytes())
    if isinstance(value, Exception):
        return (type(value).__name__, str(value))
    if isinstance(value, dict):
        return [(comparable(key), comparable(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name != "size_bytes"]
        return (type(value).__name__, [(name, comparable(getattr(value, name))) for name in fields])
    return repr(value)
