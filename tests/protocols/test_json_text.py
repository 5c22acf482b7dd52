"""JSON from strangers: what is read, what is refused, and how much memory it takes."""

import contextlib
import json
import math
import tracemalloc

import pytest
from hypothesis import given

from jaxserve.errors import InvalidInput
from jaxserve.protocols.json_text import ELEMENTS_PER_CONTAINER, MAX_DEPTH, MAX_ELEMENTS, read_json
from tests.protocols import strategies

SIZE_BYTES = 2**22


@given(strategies.plain)
def test_what_json_writes_is_read(value):
    text = json.dumps(value).encode()
    assert repr(read_json(text)) == repr(json.loads(text))


def test_a_name_may_be_in_many_objects_and_in_strings():
    value = {"a": [{"a": 1, "b": '"a":'}, {"a": 2, '"': ":", "\\": '\\"a": 3'}], "b": "a"}
    assert read_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(buffer):
    assert read_json(buffer(b'{"a":[1]}')) == {"a": [1]}


def test_the_words_that_json_lacks_are_numbers():
    assert read_json(b'[NaN,Infinity,-Infinity,1,"NaN"]')[1:] == [math.inf, -math.inf, 1, "NaN"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is not JSON: .*line 1 column 1"),
        (b"[1", "it is not JSON"),
        (b"[1]x", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b'"\\ud800"', "it is not JSON"),
        (b"[nan]", "it is not JSON"),
        (b"[1e999]", "it is not JSON"),
        (b'[NaN,"\\ud800"]', "it is not JSON"),
        (b'[NaN,"\xff"]', "it is not JSON"),
        (b"[NaN,18446744073709551616]", "it is not JSON"),
        (b"[NaN,1e400]", "it is not JSON"),
        (b"[NaN," + b"1" * 5000 + b"]", "it is not JSON"),
        (b"\xff\xfe[\x00N\x00a\x00N\x00]\x00", "it is not JSON"),
        (b'{"a":1,"b":{"a":2,"c":3,"a":4}}', "it has the name 'a' twice in one object"),
        (b'{"a\\u0062":1,"ab":2}', "it has the name 'ab' twice in one object"),
        (b'[NaN,{"a":1,"a":1}]', "it has the name 'a' twice in one object"),
        (b"[" * 2000 + b"NaN" + b"]" * 2000, "it is not JSON"),
        (b"[" * 65 + b"]" * 65, "it has more than 64 lists and objects inside one another"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "it has more than 64 lists and objects inside one another"),
        (b'["]",' * 65 + b"1" + b',"["]' * 65, "it has more than 64 lists and objects inside one another"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        read_json(text, what="it")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 64 + b"]" * 64,
        b"[" + b"[]," * 100 + b"[]]",
        b'"' + b"[" * 1000 + b'"',
        b'[{"a":{"b":[]}},' * 10 + b"1" + b"]" * 10,
    ],
)
def test_what_is_not_too_deep(text):
    assert read_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        (b"[1,2,3]", True),
        (b"[1,2,3,4]", False),
        (b'["a,b,c,d"]', False),  # commas in strings count as well: the scan does not know them
        (b"[      1      ]", True),
    ],
)
def test_the_number_of_elements_is_bounded(text, is_read):
    if is_read:
        assert read_json(text, max_elements=3) == json.loads(text)
    else:
        with pytest.raises(InvalidInput, match="more than 3 elements; send large tensors as binary data"):
            read_json(text, max_elements=3)


def test_the_number_of_containers_is_bounded():
    most = MAX_ELEMENTS // ELEMENTS_PER_CONTAINER
    assert len(read_json(b"[" + b"[]," * (most - 2) + b"[]]")) == most - 1
    with pytest.raises(InvalidInput, match=f"more than {most} lists and objects; send tensors as flat lists"):
        read_json(b"[" + b"[]," * (most - 1) + b"[]]")


def test_few_elements_may_still_be_as_deep_as_is_allowed():
    assert read_json(b"[" * 8 + b"]" * 8, max_elements=16, max_depth=MAX_DEPTH) == [[[[[[[[]]]]]]]]


@pytest.mark.parametrize(
    "piece",
    [b"[],", b"{},", b'{"a":1},', b"1.5,", b'"aa",', b"[[[[1]]]],", b"1234567,", b"null,", b"NaN,", b"[NaN,{}],"],
)
def test_memory_is_a_small_multiple_of_the_text_or_bounded(piece):
    text = b"[" + piece * (SIZE_BYTES // len(piece)) + b"1]"
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidInput):
            read_json(text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 128 * 2**20
