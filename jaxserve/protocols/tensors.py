"""Tensors on the wire: a msgpack extension object with a fixed header, and raw little-endian data behind it.

    offset  size     field
    0       1        0xc9 (msgpack: ext 32)
    1       4        payload length, big-endian (msgpack's own byte order): 2 + 8 * ndim + data bytes
    5       1        0x01, the extension type of a tensor
    6       1        dtype code
    7       1        ndim
    8       8 * ndim dimensions, little-endian int64
    ...     n        data, C order, little-endian
    ...     0..7     padding to a multiple of 8, which is not part of the payload

A tensor starts at a multiple of 8 in its frame, so its data does too. Reading makes a numpy view of the received bytes;
writing hands out the array's own memory. A server sees the same few headers all day, so reading keeps those that it met
in a small dictionary: one lookup takes the place of parsing, checking and multiplying.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import ml_dtypes
import numpy as np

Buffer = bytes | bytearray | memoryview

ALIGNMENT_BYTES = 8
MAX_NDIM = 32
MAX_PAYLOAD_BYTES = 2**32 - 1

# A tensor up to this size is copied into the frame: that is cheaper than one more buffer for the kernel to gather.
COPY_UP_TO_BYTES = 16 * 1024

PADDING: Sequence[bytes] = tuple(bytes(count) for count in range(ALIGNMENT_BYTES))

_EXT_32 = 0xC9
_TENSOR_TYPE = 1
_HEADER = struct.Struct(">BIbBB")
HEADER_BYTES = _HEADER.size

DTYPES: Mapping[int, np.dtype] = MappingProxyType(
    {
        1: np.dtype(np.bool_),
        2: np.dtype(np.int8),
        3: np.dtype("<i2"),
        4: np.dtype("<i4"),
        5: np.dtype("<i8"),
        6: np.dtype(np.uint8),
        7: np.dtype("<u2"),
        8: np.dtype("<u4"),
        9: np.dtype("<u8"),
        10: np.dtype("<f2"),
        11: np.dtype(ml_dtypes.bfloat16),
        12: np.dtype("<f4"),
        13: np.dtype("<f8"),
    }
)
"""The dtype codes of the wire. Native byte order is little-endian on every platform that jax runs on."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_BOOL = np.dtype(np.bool_)

# numpy multiplies the dimensions as signed 64-bit numbers, empty ones left out; we refuse what would overflow there.
_MAX_SIZE_BYTES = 2**63 - 1

_REMEMBERED_HEADERS = 4096
_Layout = tuple[np.dtype, tuple[int, ...], int]
_layouts: dict[bytes, _Layout] = {}


class Malformed(ValueError):
    """Received bytes that are not what they should be; the envelope they belong to decides what follows from it."""


class Unencodable(ValueError):
    """A value that the wire has no form for."""


def read_tensor(frame: Buffer, start: int, stop: int) -> tuple[np.ndarray, int]:
    """The tensor at `start`, as a view of `frame`, and where the next one starts.

    Raises:
        Malformed: whatever is wrong with it; nothing is allocated before everything is checked.
    """
    if stop - start < HEADER_BYTES:
        raise Malformed(f"a tensor header takes {HEADER_BYTES} bytes, the frame has {stop - start} left")
    ndim = frame[start + 7]
    data_start = start + HEADER_BYTES + 8 * ndim
    if data_start > stop:
        raise Malformed(f"the frame ends inside the {ndim} dimensions of a tensor")
    header = frame[start:data_start]
    if type(header) is not bytes:
        header = bytes(header)
    layout = _layouts.get(header)
    if layout is None:
        layout = _parse_header(header)
        if len(_layouts) >= _REMEMBERED_HEADERS:
            _layouts.clear()  # crude, but it bounds the memory, and a real server never comes near the bound
        _layouts[header] = layout
    dtype, shape, size_bytes = layout
    data_stop = data_start + size_bytes
    if data_stop > stop:
        raise Malformed(
            f"a {dtype.name} tensor of shape {list(shape)} takes {size_bytes} bytes, the frame has "
            f"{stop - data_start} left"
        )
    array = np.ndarray(shape, dtype, frame, data_start)
    if dtype is _BOOL and size_bytes and array.view(np.uint8).max() > 1:
        raise Malformed("a bool tensor holds a byte other than 0 and 1")
    return array, data_stop + (-data_stop % ALIGNMENT_BYTES)


def _parse_header(header: bytes) -> _Layout:
    mark, payload_bytes, kind, code, ndim = _HEADER.unpack_from(header)
    if mark != _EXT_32 or kind != _TENSOR_TYPE:
        raise Malformed(f"expected a tensor (c9 ........ 01), found {header[:6].hex()}")
    if ndim > MAX_NDIM:
        raise Malformed(f"a tensor of {ndim} dimensions; at most {MAX_NDIM} are allowed")
    dtype = DTYPES.get(code)
    if dtype is None:
        raise Malformed(f"dtype code {code} is not one of {min(DTYPES)} to {max(DTYPES)}")
    shape = struct.unpack_from(f"<{ndim}q", header, HEADER_BYTES)
    size_bytes = size_bytes_of(dtype, shape)
    if payload_bytes != 2 + 8 * ndim + size_bytes:
        raise Malformed(
            f"a {dtype.name} tensor of shape {list(shape)} takes {size_bytes} bytes of data, its payload length says "
            f"{payload_bytes - 2 - 8 * ndim}"
        )
    return dtype, shape, size_bytes


def size_bytes_of(dtype: np.dtype, shape: Sequence[int]) -> int:
    """The bytes that a tensor of a shape which a stranger gave takes.

    Raises:
        Malformed: a dimension is negative, or numpy could not hold so many elements.
    """
    if any(dimension < 0 for dimension in shape):
        raise Malformed(f"shape {list(shape)} has a negative dimension")
    if dtype.itemsize * math.prod(max(1, dimension) for dimension in shape) > _MAX_SIZE_BYTES:
        raise Malformed(f"a {dtype.name} tensor of shape {list(shape)} is too large to exist")
    return dtype.itemsize * math.prod(shape)


def tensor_view(array: np.ndarray) -> memoryview:
    """The bytes of an array where they are, which must not change until they are sent; a copy if not C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def make_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of one tensor.

    Raises:
        Unencodable: the wire has no code for the dtype, or the tensor is too large for a frame.
    """
    code = _CODES.get(dtype)
    if code is None:
        names = ", ".join(known.name for known in DTYPES.values())
        raise Unencodable(f"dtype {dtype.name} does not travel; those that do are {names}, and lists of str")
    if len(shape) > MAX_NDIM:
        raise Unencodable(f"a tensor of {len(shape)} dimensions; at most {MAX_NDIM} are allowed")
    payload_bytes = 2 + 8 * len(shape) + dtype.itemsize * math.prod(shape)
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise Unencodable(f"a {dtype.name} tensor of shape {list(shape)} does not fit into a frame of 4 GiB")
    head = _HEADER.pack(_EXT_32, payload_bytes, _TENSOR_TYPE, code, len(shape))
    return head + struct.pack(f"<{len(shape)}q", *shape)
