"""The bytes in docs/native-protocol.md are those of the codec."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxserve.protocols import messages, native
from jaxserve.protocols.envelopes import MAX_DEPTH, MAX_ELEMENTS, MAX_ITEMS
from jaxserve.protocols.tensors import DTYPES, MAX_NDIM
from jaxserve.request import HIGHEST_PRIORITY, LONGEST_TENANT, LOWEST_PRIORITY
from tests.protocols.comparable import comparable

PAGE = (Path(__file__).parents[2] / "docs" / "native-protocol.md").read_text("utf-8")
# A line of an example: bytes, then perhaps two blanks or more and words.
LINE = re.compile(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  .*)?")

EXAMPLE: list[tuple[str, messages.Message]] = [
    ("server", messages.Hello([1], 2**26, "demo")),
    ("client", messages.Welcome(1, 2**26, 1024, "jaxserve")),
    ("server", messages.Infer(1, "mlp", 0.25, {"x": np.array([[1.0, -2.0, 0.5]], np.float32)})),
    ("server", messages.Infer(2, "minilm", None, {"text": ["hi", "ü"]})),
    ("client", messages.Failure(2, "model_not_found", "no minilm", {})),
    ("client", messages.Result(1, {"output": np.array([[3]], np.int8)})),
    ("server", messages.Infer(3, "minilm", None, {"text": ["hi"]}, priority=5, tenant="web")),
]


def blocks() -> list[bytes]:
    found = []
    for block in re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL):
        lines = [LINE.fullmatch(line) for line in block.splitlines()]
        found.append(b"".join(bytes.fromhex(line[1]) for line in lines if line is not None))
        assert None not in lines
    return found


def test_every_example_is_what_the_codec_writes():
    written = [b"".join(native.encode(message)) for _, message in EXAMPLE]
    for index in (0, 1):
        written[index] = native.PREAMBLE + written[index]
    assert blocks() == written


@pytest.mark.parametrize("end", ["server", "client"])
def test_every_example_is_read_as_what_it_says(end):
    decoder = native.Decoder(end=end)
    read = [
        message
        for block, (reader, _) in zip(blocks(), EXAMPLE, strict=True)
        if reader == end
        for message in decoder.feed(block)
    ]
    assert comparable(read) == comparable([message for reader, message in EXAMPLE if reader == end])


def test_the_dtype_table_is_complete():
    section = PAGE[PAGE.index("## A tensor") : PAGE.index("## Envelopes")]
    table = {int(code): name for code, name in re.findall(r"\| (\d+) \| ([a-z]+\d*)(?= )", section)}
    assert table == {code: dtype.name for code, dtype in DTYPES.items()}


def test_the_limits_on_the_page_are_those_of_the_codec():
    assert f"at most {MAX_NDIM}" in PAGE
    assert f"at most {MAX_ITEMS} elements, and at most {MAX_ELEMENTS} in one envelope together" in PAGE
    assert f"nested at most {MAX_DEPTH} deep" in PAGE
    assert f"that is {native.SMALLEST_FRAME_LIMIT_BYTES}." in PAGE
    assert f"`priority` is from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}:" in PAGE
    assert f"`tenant`, at most {LONGEST_TENANT} characters" in PAGE
    assert list(native.VERSIONS) == [1]
    assert "version 1\n" in PAGE
