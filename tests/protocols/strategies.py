"""What hypothesis draws: tensors of every dtype, messages of every type."""

import math

import numpy as np
from hypothesis import strategies as st

from jaxserve.protocols import messages
from jaxserve.protocols.envelopes import MAX_ID
from jaxserve.protocols.tensors import DTYPES
from jaxserve.request import HIGHEST_PRIORITY, LONGEST_TENANT, LOWEST_PRIORITY

ids = st.integers(1, MAX_ID)
names = st.text(min_size=1, max_size=8)
texts = st.text(max_size=12)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    size_bytes = math.prod(shape) * dtype.itemsize
    if dtype == np.bool_:
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=size_bytes, max_size=size_bytes)))
    else:
        data = draw(st.binary(min_size=size_bytes, max_size=size_bytes))
    return np.frombuffer(data, dtype).reshape(shape)


values = tensors() | st.lists(texts, max_size=4)
named_values = st.dictionaries(names, values, max_size=4)
deadlines = st.none() | st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
priorities = st.just(0) | st.integers(LOWEST_PRIORITY, HIGHEST_PRIORITY)
tenants = st.just("") | st.text(max_size=LONGEST_TENANT)
details = st.dictionaries(names, texts | st.integers(-(2**63), 2**64 - 1) | st.floats(), max_size=3)
versions = st.lists(st.integers(0, 2**32), min_size=1, max_size=4)
frame_limits = st.integers(4096, 2**32 - 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

hellos = st.builds(messages.Hello, versions, frame_limits, texts, texts)
welcomes = st.builds(messages.Welcome, st.integers(0, 2**32), frame_limits, st.integers(1, 2**32), texts)
from_clients = (
    st.builds(messages.Infer, ids, texts, deadlines, named_values, priorities, tenants)
    | st.builds(messages.Cancel, ids)
    | st.builds(messages.StatusQuery, ids)
    | st.builds(messages.DescribeQuery, ids)
)
from_servers = (
    st.builds(messages.Result, ids, named_values)
    | st.builds(messages.Failure, st.integers(0, MAX_ID), names, texts, details)
    | st.builds(messages.Report, ids, plain)
    | st.builds(messages.Goodbye, st.floats(0, 1e6), texts)
)
