"""Protobuf's wire format, as far as it takes to find the fields of a message without parsing it.

A field is a tag, which is its number times eight and a wire type, and a value. Of the wire types, groups are left out:
nobody sends them any more.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxserve.protocols.tensors import Malformed

VARINT, FIXED_64, DELIMITED, FIXED_32 = 0, 1, 2, 5


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        tag: its number times eight and its wire type.
        start: where it starts.
        value_start: where its value does, behind the length if it has one.
        stop: where it ends.
    """

    tag: int
    start: int
    value_start: int
    stop: int


def tag_of(number: int, wire_type: int = DELIMITED) -> int:
    """The tag of a field."""
    return number << 3 | wire_type


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields between two positions of a message.

    Raises:
        Malformed: there is something else.
    """
    position = start
    while position < end:
        field_start = position
        tag, value_start = _varint(data, position, end)
        wire_type = tag & 7
        if wire_type == DELIMITED:
            length, value_start = _varint(data, value_start, end)
            position = value_start + length
        elif wire_type == VARINT:
            _, position = _varint(data, value_start, end)
        elif wire_type == FIXED_64:
            position = value_start + 8
        elif wire_type == FIXED_32:
            position = value_start + 4
        else:
            raise Malformed(f"a field of wire type {wire_type}")
        if position > end:
            raise Malformed("a field is longer than its message")
        yield Field(tag, field_start, value_start, position)


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of seven bits in each byte, the lowest first, and where it stops."""
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise Malformed("a number without end")


def varint(number: int) -> bytes:
    """A number as it is written."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
