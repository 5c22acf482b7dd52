"""Damage to bytes and to JSON: what truncation, noise, repetition and malice make of what was right."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

_CONTROLS = (
    b"\0",
    b"\r",
    b"\n",
    b"\t",
    b"\x0b",
    b"\x1b",
    b"\x7f",
    b"\x85",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b" ",
)
_NUMBERS = (
    b"-1", b"0", b"00", b"1", b"-0", b"+1", b"0x10", b"1e3", b"1_0", b"255", b"256", b"65536", b"2147483647",
    b"2147483648", b"4294967295", b"4294967296", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"99999999999999999999999999", b"10737418240", b"1.5", b"nan", b"",
    "\u0663".encode(), "\u00b2".encode(),
)  # fmt: skip

# Written into JSON text as they stand: no value of Python is written so.
_LITERALS = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1E5",
    "-0",
    "0.1e-400",
    "123456789012345678901234567890",
)
_MARK = "@literal"


def damage(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """`data`, hurt in one to four places; parts of `other` may come into it."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(_DAMAGES)(rng, data, other)
    return data


def _span(rng: random.Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.randint(0, longest))


def _truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _behead(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[rng.randint(0, min(len(data), 64)) :]


def _flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    if not data:
        return data
    hurt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        hurt[rng.randrange(len(hurt))] ^= 1 << rng.randrange(8)
    return bytes(hurt)


def _replace(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, data, 16)
    return data[:start] + rng.randbytes(rng.randint(0, 16)) + data[stop:]


def _repeat(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 50)) + data[stop:]


def _remove(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, other, 256)
    at = rng.randint(0, len(data))
    return data[:at] + other[start:stop] + data[at:]


def _cross(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _control(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(_CONTROLS) * rng.choice((1, 1, 2, 40)) + data[at:]


def _number(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Another number in the place of one."""
    starts = [i for i in range(len(data)) if 48 <= data[i] <= 57 and (i == 0 or not 48 <= data[i - 1] <= 57)]
    if not starts:
        return data
    start = stop = rng.choice(starts)
    while stop < len(data) and 48 <= data[stop] <= 57:
        stop += 1
    return data[:start] + rng.choice(_NUMBERS) + data[stop:]


def _case(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:start] + data[start:stop].swapcase() + data[stop:]


def _lines(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Lines in another order, twice, missing, or ended in another way."""
    lines = data.split(b"\r\n")
    match rng.randrange(5):
        case 0:
            rng.shuffle(lines)
        case 1:
            lines.insert(rng.randint(0, len(lines)), rng.choice(lines))
        case 2:
            del lines[rng.randrange(len(lines))]
        case 3:
            return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r")))
        case _:
            lines.insert(rng.randint(0, len(lines)), rng.choice((b"", b" ", b"\t folded", b": empty", b"x")))
    return b"\r\n".join(lines)


def _word(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A number of two, four or eight bytes, as lengths are written, made extreme."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    at = rng.randrange(len(data) - size + 1)
    value = rng.choice(
        (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1, rng.getrandbits(8 * size))
    )
    return data[:at] + value.to_bytes(size, rng.choice(("big", "little"))) + data[at + size :]


_Damage = Callable[[random.Random, bytes, bytes], bytes]
_DAMAGES: Sequence[_Damage] = (
    _truncate, _behead, _flip, _flip, _replace, _repeat, _remove, _splice, _cross, _control, _number, _number, _case,
    _lines, _word, _word,
)  # fmt: skip


def hostile_value(rng: random.Random) -> Any:
    """A JSON value that means no good; see `write_json`."""
    match rng.randrange(12):
        case 0:
            return rng.choice((None, True, False, "", [], {}, [[]], [{}], [None], {"": ""}))
        case 1 | 2:
            return rng.choice((-1, 0, 1, 2, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62))
        case 3:
            return rng.choice((2**63 - 1, 2**63, 2**64 - 1, -(2**63), 2**40, 1.5, -0.0, 1e308, 1e-320))
        case 4:
            return _MARK + rng.choice(_LITERALS)
        case 5:
            return rng.choice(
                ("\0", "\ud800", "\U0001f600", "x" * 2000, "../../etc/passwd", "%s%n{0}", "1", "true", "\n")
            )
        case 6:
            return nested(rng.choice((2, 8, 33, 63, 64, 65, 200)), rng.random() < 0.5)
        case 7:
            return [
                rng.choice((0, 1, 0.5, "a", None, True)) for _ in range(rng.choice((0, 1, 2, 3, 4, 31, 32, 33, 300)))
            ]
        case 8:
            return [hostile_value(rng) for _ in range(rng.randint(0, 4))]
        case 9:
            return {rng.choice(("x", "text", "name", "b64", "", "\0", "x" * 300)): hostile_value(rng) for _ in range(2)}
        case 10:
            return [rng.choice((2**31, 2**62, 2**63 - 1, 3, 0, -1)) for _ in range(rng.randint(1, 33))]
        case _:
            return {"b64": rng.choice(("", "AAAA", "/w==", "!!!", "A", 1, None, "AAAA" * 500))}


def nested(depth: int, is_object: bool) -> Any:
    """Lists or objects inside one another."""
    value: Any = 1
    for _ in range(depth):
        value = {"x": value} if is_object else [value]
    return value


def damage_json(rng: random.Random, document: Any) -> Any:
    """A copy of `document` in which one to three values were replaced, removed, added, doubled or moved."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holders = [holder for holder in _containers(document) if holder]
        if not holders:
            return hostile_value(rng)
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        match rng.randrange(7):
            case 0 | 1 | 2:
                holder[key] = hostile_value(rng)
            case 3:
                del holder[key]
            case 4:
                if isinstance(holder, dict):
                    holder[rng.choice(_KEYS)] = hostile_value(rng)
                else:
                    holder.insert(key, hostile_value(rng))
            case 5:
                if isinstance(holder, list):
                    holder += holder[: rng.choice((1, 2, 300))]
                else:
                    holder[rng.choice(_KEYS)] = holder[key]
            case _:
                other = rng.choice(holders)
                if isinstance(other, dict):
                    holder[key] = json.loads(json.dumps(rng.choice(list(other.values()))))
    return document


_KEYS = (
    "x", "data", "shape", "datatype", "name", "parameters", "binary_data_size", "binary_data", "classification", "id",
    "timeout", "priority", "tenant", "binary_data_output", "outputs", "inputs", "instances", "signature_name", "b64",
    "shared_memory_region", "sequence_id", "model", "input", "dimensions", "encoding_format", "user", "", "\0", "text",
)  # fmt: skip


def _containers(value: Any) -> list[Any]:
    found: list[Any] = []
    level = [value]
    while level:
        level = [each for each in level if isinstance(each, list | dict)]
        found += level
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return found


def write_json(rng: random.Random, value: Any) -> bytes:
    """The text of a value, sometimes with spaces, names that occur twice, or escapes; literals as they stand."""
    compact = rng.random() < 0.8
    text = json.dumps(value, separators=(",", ":") if compact else None, ensure_ascii=rng.random() < 0.7)
    if _MARK in text:
        for literal in _LITERALS:
            text = text.replace(f'"{_MARK}{literal}"', literal)
    if rng.random() < 0.03:
        text = text.replace("{", '{"name":"twice",', 1)
    return text.encode("utf-8", "surrogatepass")
