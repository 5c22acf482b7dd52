"""The codec: what is written is read again, in whatever pieces, and nothing but messages comes out of garbage."""

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import (
    ConnectionLost,
    FrameTooLarge,
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ProtocolError,
    Unauthenticated,
    VersionMismatch,
)
from jaxserve.protocols import envelopes, messages, native, shortcuts
from jaxserve.protocols.envelopes import MAX_ITEMS
from jaxserve.protocols.tensors import COPY_UP_TO_BYTES, Unencodable
from tests.protocols import strategies
from tests.protocols.comparable import comparable

HELLO = messages.Hello([1], 2**26, "test")
WELCOME = messages.Welcome(1, 2**26, 8, "test")
X = np.zeros(2, np.float32)
GREETING = {"server": HELLO, "client": WELCOME}


def encoded(message: messages.Message) -> bytes:
    return b"".join(native.encode(message))


def opened(end: str, **options: int) -> native.Decoder:
    """A decoder that has the handshake behind it."""
    decoder = native.Decoder(end=end, **options)  # pyright: ignore[reportArgumentType]
    assert len(decoder.feed(native.PREAMBLE + encoded(GREETING[end]))) == 1
    return decoder


def frame(envelope: object, tensors: bytes = b"") -> bytes:
    """A frame of an arbitrary envelope."""
    packed = envelope if isinstance(envelope, bytes) else msgpack.packb(envelope)
    body = struct.pack("<I", len(packed)) + packed + bytes(-len(packed) % 8) + tensors
    return struct.pack("<I", len(body)) + body


def tensor(
    code: int = 12, shape: tuple[int, ...] = (2,), data: bytes = bytes(8), *, claim: int | None = None, kind: int = 1
) -> bytes:
    size_bytes = 2 + 8 * len(shape) + len(data) if claim is None else claim
    head = struct.pack(">BIbBB", 0xC9, size_bytes, kind, code, len(shape)) + struct.pack(f"<{len(shape)}q", *shape)
    return head + data + bytes(-len(data) % 8)


def infer(
    tensors: bytes = b"", *, id: object = 7, model: object = "m", deadline_s: object = None, inputs: object = None
):
    return frame([3, id, deadline_s, model, {"x": None} if inputs is None else inputs], tensors)


def long_infer(priority: object, tenant: object):
    return frame([3, 7, None, "m", {"x": None}, priority, tenant], tensor())


def feed_in_pieces(decoder: native.Decoder, data: bytes, cuts: list[int]) -> list[object]:
    received: list[object] = []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        received += decoder.feed(data[start:stop])
    return received


@given(st.lists(strategies.from_clients, max_size=4), st.data())
def test_a_server_reads_what_a_client_writes_in_whatever_pieces(sent, data):
    stream = native.PREAMBLE + encoded(HELLO) + b"".join(map(encoded, sent))
    assert len(stream) % 8 == 0
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    received = feed_in_pieces(native.Decoder(end="server"), stream, cuts)
    assert comparable(received) == comparable([HELLO, *sent])


@given(st.lists(strategies.from_servers, max_size=4), strategies.welcomes, st.data())
def test_a_client_reads_what_a_server_writes_in_whatever_pieces(sent, welcome, data):
    stream = native.PREAMBLE + encoded(welcome) + b"".join(map(encoded, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    received = feed_in_pieces(native.Decoder(end="client"), stream, cuts)
    assert comparable(received) == comparable([welcome, *sent])


@given(strategies.hellos)
def test_hello_round_trip(hello):
    decoder = native.Decoder(end="server")
    assert comparable(decoder.feed(native.PREAMBLE + encoded(hello))) == comparable([hello])


@settings(max_examples=30)
@given(strategies.from_clients)
def test_truncated_anywhere_it_waits_and_then_goes_on(message):
    stream = encoded(message)
    for cut in range(len(stream)):
        decoder = opened("server")
        assert decoder.feed(stream[:cut]) == []
        assert comparable(decoder.feed(stream[cut:])) == comparable([message])


@given(strategies.ids, strategies.deadlines, strategies.named_values, strategies.priorities, strategies.tenants)
def test_priority_and_tenant_are_written_only_where_one_is_not_the_default(id, deadline_s, values, priority, tenant):
    def envelope(sent: bytes) -> list[object]:
        _, envelope_bytes = shortcuts.HEAD.unpack_from(sent)
        return envelopes.unpack(sent[8 : 8 + envelope_bytes])

    plain = encoded(messages.Infer(id, "m", deadline_s, values))
    assert len(envelope(plain)) == 5
    for _ in range(2):  # the second time with what was remembered
        written = encoded(messages.Infer(id, "m", deadline_s, values, priority, tenant))
        if priority == 0 and tenant == "":
            assert written == plain
        else:
            assert envelope(written) == [*envelope(plain), priority, tenant]


@pytest.mark.parametrize(
    ("sent", "priority", "tenant"),
    [
        (infer(tensor()), 0, ""),
        (long_infer(0, ""), 0, ""),
        (long_infer(-10, "a"), -10, "a"),
        (long_infer(10, "ü" * 128), 10, "ü" * 128),
    ],
)
def test_priority_and_tenant_may_be_there_or_not(sent, priority, tenant):
    for _ in range(2):  # the second time with what was remembered
        [received] = opened("server").feed(sent)
        assert isinstance(received, messages.Infer)
        assert (received.priority, received.tenant) == (priority, tenant)
        np.testing.assert_array_equal(received.inputs["x"], X)


def check_received(received: list[object], end: str) -> None:
    """Nothing but messages of this direction, and an error only as the last."""
    kinds = {
        "server": (
            *(messages.Hello, messages.Infer, messages.BadInfer),
            *(messages.Cancel, messages.StatusQuery, messages.DescribeQuery),
        ),
        "client": (messages.Welcome, messages.Result, messages.Failure, messages.Report, messages.Goodbye),
    }[end]
    assert all(isinstance(message, kinds) for message in received[:-1])
    assert not received or isinstance(received[-1], (*kinds, ProtocolError))


@given(st.binary(max_size=200), st.sampled_from(["server", "client"]), st.booleans(), st.data())
def test_arbitrary_bytes_give_messages_or_one_protocol_error(garbage, end, greeted, data):
    def decoder() -> native.Decoder:
        return opened(end) if greeted else native.Decoder(end=end)

    whole = decoder().feed(garbage)
    check_received(whole, end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(garbage)), max_size=6)))
    pieces = feed_in_pieces(decoder(), garbage, cuts)
    assert comparable(pieces[:-1]) == comparable(whole[:-1])
    assert [type(message) for message in pieces] == [type(message) for message in whole]  # the text shows what was seen


@given(st.lists(strategies.from_clients, min_size=1, max_size=3), st.data())
def test_damaged_streams_give_messages_or_one_protocol_error(sent, data):
    stream = bytearray(b"".join(map(encoded, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(stream) - 1))
        stream[position] = data.draw(st.integers(0, 255))
    damaged = bytes(stream[: data.draw(st.integers(0, len(stream)))])
    whole = opened("server").feed(damaged)
    check_received(whole, "server")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(damaged)), max_size=6)))
    assert comparable(feed_in_pieces(opened("server"), damaged, cuts)) == comparable(whole)


@given(st.binary(max_size=120))
def test_any_msgpack_envelope_gives_a_message_or_a_protocol_error(envelope):
    check_received(opened("server").feed(frame(envelope)), "server")
    check_received(opened("client").feed(frame(envelope)), "client")


@given(st.integers(0, 12), strategies.ids, st.lists(strategies.plain, max_size=5), strategies.tensors())
def test_envelopes_of_any_fields_give_a_message_or_a_protocol_error(kind, id, fields, array):
    tensors = b"".join(native.encode_result(1, {"x": array})[2:])
    for end in ("server", "client"):
        check_received(opened(end).feed(frame([kind, id, *fields], tensors)), end)


# Shortcuts


@given(st.lists(strategies.from_clients | strategies.from_servers, min_size=1, max_size=3), st.data())
def test_shortcuts_change_nothing(sent, data):
    stream = b"".join(map(encoded, sent))
    ends: list[envelopes.End] = ["server", "client"]
    for end in ends:
        opened(end).feed(stream)  # what is seen here is recalled below
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for end in ends:
        for received in (stream, bytes(damaged), bytes(damaged[: data.draw(st.integers(0, len(damaged)))])):
            slowly = opened(end)
            slowly._recall = shortcuts.recall_nothing
            assert comparable(opened(end).feed(received)) == comparable(slowly.feed(received))


@given(
    strategies.ids,
    strategies.deadlines,
    st.sampled_from([(0, ""), (3, ""), (-3, "team")]),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=12, max_size=12),
)
def test_what_was_seen_before_is_read_with_its_own_id_deadline_and_data(id, deadline_s, share, first, second):
    def inputs(first: bytes, second: bytes) -> dict[str, np.ndarray]:
        return {"a": np.frombuffer(first, np.float32), "b": np.frombuffer(second, np.uint8).reshape(3, 4)}

    decoder = opened("server")
    for deadline in (None, 1.0):
        decoder.feed(encoded(messages.Infer(1, "m", deadline, inputs(bytes(8), bytes(12)), *share)))
    sent = messages.Infer(id, "m", deadline_s, inputs(first, second), *share)
    frame = encoded(sent)
    recalled = shortcuts.recall_infer(frame, 0, shortcuts.HEAD.unpack_from(frame))
    assert comparable(recalled) == comparable(sent)
    assert isinstance(recalled, messages.Infer)
    assert recalled.size_bytes == len(frame)


@pytest.mark.parametrize("share", [(0, ""), (1, "team")])
def test_what_was_seen_before_is_not_recalled_for_another_number_of_elements(share):
    sent = encoded(messages.Infer(1, "m", None, {"x": X}, *share))
    assert isinstance(opened("server").feed(sent)[0], messages.Infer)
    other = {0x95: 0x97, 0x97: 0x95}[sent[8]]
    [error] = opened("server").feed(sent[:8] + bytes([other]) + sent[9:])
    assert isinstance(error, ProtocolError)


def test_what_is_remembered_is_bounded():
    for number in range(1500):
        x = np.zeros(number, np.uint8)
        opened("server").feed(b"".join(native.encode_infer(1, "m", None, {"x": x})))
        opened("server").feed(b"".join(native.encode_infer(1, "m", None, {"x": X}, tenant=str(number))))
        opened("client").feed(b"".join(native.encode_result(1, {"x": x})))
    for name, known in vars(shortcuts).items():
        if isinstance(known, dict) and name.startswith("_") and not name.startswith("__"):
            assert len(known) <= 1024, name


# Where an error belongs: to the request, or to the connection


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (infer(tensor(), deadline_s=0.0), "deadline_s is 0.0"),
        (infer(tensor(), deadline_s=-1.0), "deadline_s is -1.0"),
        (infer(tensor(), deadline_s=-1), "deadline_s is -1"),
        (infer(tensor(), deadline_s=float("nan")), "deadline_s is nan"),
        (infer(tensor(), deadline_s=float("inf")), "deadline_s is inf"),
        (infer(tensor(), deadline_s="soon"), "deadline_s is 'soon'"),
        (infer(tensor(), deadline_s=True), "deadline_s is True"),
        (infer(tensor(), model=5), "model's name is a int"),
        (infer(tensor(), inputs=[1]), "must be a map"),
        (infer(tensor(), inputs={"x": 1.5}), "'x' must be nil"),
        (infer(tensor(), inputs={"x": ["a", 1]}), "'x' must be nil"),
        (infer(tensor(code=0)), "'x': dtype code 0"),
        (infer(tensor(code=14)), "'x': dtype code 14"),
        (infer(tensor(kind=2)), "expected a tensor"),
        (infer(tensor(shape=(-2,))), "negative dimension"),
        (infer(tensor(shape=(3,))), "takes 12 bytes of data, its payload length says 8"),
        (infer(tensor(shape=(2**62, 2**62))), "too large to exist"),
        (infer(tensor(shape=(0, 2**62), data=b"")), "too large to exist"),
        (infer(tensor(shape=(1,) * 33, data=bytes(4))), "33 dimensions"),
        (infer(tensor(shape=(100,), claim=410)), "takes 400 bytes, the frame has 8 left"),
        (infer(tensor(code=1, shape=(8,), data=bytes([0, 1, 2, 1, 0, 1, 0, 1]))), "other than 0 and 1"),
        (infer(tensor()[:16][:8]), "the frame ends inside the 1 dimensions"),
        (infer(b""), "a tensor header takes 8 bytes, the frame has 0 left"),
        (infer(tensor() * 2), "24 bytes are left over"),
        (long_infer(11, ""), "priority is 11, but must be a whole number from -10 to 10"),
        (long_infer(-11, ""), "priority is -11, but"),
        (long_infer(1.0, ""), "priority is 1.0, but"),
        (long_infer(True, ""), "priority is True, but"),
        (long_infer(None, "team"), "priority is None, but"),
        (long_infer("high", ""), "priority is 'high', but"),
        (long_infer(0, 5), "tenant is 5, but must be text of at most 128 characters"),
        (long_infer(0, None), "tenant is None, but"),
        (long_infer(0, ["team"]), "tenant is ['team'], but"),
        (long_infer(0, "x" * 129), "tenant is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', but"),
        (frame([3, 7, "m"]), "an infer of 3 elements; 5 are needed, or 7 with priority and tenant"),
        (frame([3, 7, None, "m", {}, 1]), "an infer of 6 elements"),
        (frame([3, 7, None, "m", {}, 1, "team", 1]), "an infer of 8 elements"),
    ],
)
def test_a_bad_request_whose_id_can_be_read_is_a_bad_request_only(sent, says):
    decoder = opened("server")
    good = infer(tensor())
    bad, after = decoder.feed(sent + good)
    assert isinstance(bad, messages.BadInfer)
    assert bad.id == 7
    assert isinstance(bad.error, InvalidInput)
    assert says in str(bad.error)
    assert isinstance(after, messages.Infer)


@pytest.mark.parametrize(
    ("end", "sent", "says"),
    [
        ("server", infer(tensor(), id=0), "id 0"),
        ("server", infer(tensor(), id=-1), "an id from 0"),
        ("server", infer(tensor(), id=2**63), "an id from 0"),
        ("server", infer(tensor(), id="a"), "an id from 0"),
        ("server", infer(tensor(), id=True), "an id from 0"),
        ("server", frame([99, 1]), "type 99"),
        ("server", frame([4, 1, {}]), "type 4, which may not arrive at the server"),
        ("client", frame([3, 1, None, "m", {}]), "type 3, which may not arrive at the client"),
        ("server", frame([1, 0, [1], 65536, "again"]), "type 1"),
        ("server", frame({"a": 1}), "not an array"),
        ("server", frame([3]), "not an array"),
        ("server", frame(b"\xc1"), "not the msgpack"),
        ("server", frame(b""), "not the msgpack"),
        ("server", frame(b"\x93\x06\x01\xc0\xc0"), "not the msgpack"),
        ("server", frame([3, 1, None, "m", {"x": b"binary"}]), "not the msgpack"),
        ("server", frame([3, 1, None, "m", {1: None}]), "not the msgpack"),
        ("server", frame([3, 1, None, "m", {"x": [""] * (MAX_ITEMS + 1)}]), "not the msgpack"),
        ("server", frame(b"\x91" * 3000), "nested more than 16 deep"),
        ("server", frame([3, 1, b"", "m", {"x": "a long name"}]), "binary and extension objects"),
        ("server", frame([6, 1, 2]), "a cancel of 3 elements"),
        ("server", frame([6, 1], tensor()), "24 bytes behind the envelope"),
        ("client", frame([4, 1, {"x": None}]), "malformed result"),
        ("client", frame([5, 1, "code", "message", {"x": [1]}]), "detail 'x'"),
        ("client", frame([5, 1, "code", "message", 3]), "element 4 of a failure is a int"),
        ("client", frame([10, 0, "long", "why"]), "element 2 of a goodbye"),
        ("server", struct.pack("<II", 2**26 + 4, 0), "a frame of 67108868 bytes; at most 67108864"),
        ("server", struct.pack("<I", 2**32 - 4), "at most 67108864"),
        ("server", struct.pack("<II", 13, 0), "multiple of 8"),
        ("server", struct.pack("<II", 12, 9) + bytes(8), "an envelope of 9 bytes in a frame that has room for 8"),
    ],
)
def test_what_cannot_be_a_request_ends_the_connection(end, sent, says):
    decoder = opened(end)
    [error] = decoder.feed(sent)
    assert isinstance(error, ProtocolError)
    assert says in str(error)
    assert decoder.feed(infer(tensor())) == []


@pytest.mark.parametrize(
    ("end", "sent", "says"),
    [
        ("server", b"GET / HTTP/1.1\r\n", "began with b'GET / HTTP/1.1"),
        ("client", b"HTTP/1.1 400 Bad Request", "in place of b'jaxserve'"),
        ("server", b"jaxserv\n", "does not speak"),
        (
            "server",
            native.PREAMBLE + infer(tensor()),
            "type 3, which may not arrive at the server before the handshake",
        ),
        ("server", native.PREAMBLE + struct.pack("<I", 4100), "at most 4096"),
        ("server", native.PREAMBLE + frame([1, 0, [], 65536, ""]), "are an empty array"),
        ("server", native.PREAMBLE + frame([1, 0, ["1"], 65536, ""]), "not an array of integers"),
        ("server", native.PREAMBLE + frame([1, 0, [1], 100, ""]), "frame limit of 100"),
        ("server", native.PREAMBLE + frame([1, 0, [1]]), "a hello of 3 elements"),
        ("client", native.PREAMBLE + frame([2, 0, 1, 65536, 0, ""]), "0 requests in flight"),
    ],
)
def test_a_bad_handshake_ends_the_connection(end, sent, says):
    [error] = native.Decoder(end=end).feed(sent)
    assert isinstance(error, ProtocolError)
    assert says in str(error)


@pytest.mark.parametrize("more", [[{"more": 1}], ["", {"more": 1}], [None, 7], ["token", "x"], [1.5]])
def test_a_later_version_may_add_elements_to_the_handshake(more):
    [hello] = native.Decoder(end="server").feed(native.PREAMBLE + frame([1, 0, [1, 2], 65536, "later", *more]))
    assert hello == messages.Hello([1, 2], 65536, "later", more[0] if isinstance(more[0], str) else "")


def test_a_hello_without_a_token_is_what_it_was_before_there_were_tokens():
    assert encoded(messages.Hello([1], 65536, "x")) == frame([1, 0, [1], 65536, "x"])
    assert encoded(messages.Hello([1], 65536, "x", "t")) == frame([1, 0, [1], 65536, "x", "t"])


def test_the_envelope_may_be_the_largest_that_fits_and_no_larger():
    texts = {"text": ["x" * 100] * 100}
    sent = b"".join(native.encode_infer(1, "m", None, texts))
    limit = len(sent) - 4
    [message] = opened("server", max_frame_bytes=limit).feed(sent)
    assert isinstance(message, messages.Infer)
    assert message.inputs == texts
    assert message.size_bytes == len(sent)
    [error] = opened("server", max_frame_bytes=limit - 8).feed(sent)
    assert isinstance(error, FrameTooLarge)


# Copies and memory


def test_received_tensors_are_aligned_views_of_what_was_received():
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    sent = b"".join(native.encode_infer(1, "m", None, {"x": array, "y": array})) * 2
    received = opened("server").feed(sent)
    whole = np.frombuffer(sent, np.uint8)
    for message in received:
        assert isinstance(message, messages.Infer)
        for value in message.inputs.values():
            assert isinstance(value, np.ndarray)
            assert np.shares_memory(value, whole)
            assert value.flags.aligned
            assert not value.flags.writeable


@given(st.integers(1, 700))
def test_tensors_are_aligned_however_the_bytes_were_cut(cut):
    array = np.arange(6, dtype=np.float64)
    sent = b"".join(native.encode_infer(1, "m", None, {"x": array})) * 8
    received = feed_in_pieces(opened("server"), sent, [min(cut, len(sent))])
    assert len(received) == 8
    for message in received:
        assert isinstance(message, messages.Infer)
        value = message.inputs["x"]
        assert isinstance(value, np.ndarray)
        assert value.flags.aligned
        assert not value.flags.writeable
        np.testing.assert_array_equal(value, array)


def test_large_tensors_are_sent_from_where_they_are():
    array = np.ones(COPY_UP_TO_BYTES // 4 + 1, np.float32)
    assert any(
        isinstance(part, memoryview) and np.shares_memory(np.asarray(part), array)
        for part in native.encode_result(1, {"x": array})
    )


def test_a_large_frame_is_collected_in_one_buffer():
    array = np.arange(2**18, dtype=np.float32)
    sent = b"".join(native.encode_infer(1, "m", None, {"x": array}))
    decoder = opened("server")
    cuts = list(range(1000, len(sent), 1000))
    [message] = feed_in_pieces(decoder, sent, cuts)
    assert isinstance(message, messages.Infer)
    np.testing.assert_array_equal(message.inputs["x"], array)


def test_arrays_of_any_layout_are_sent():
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    big = np.arange(2**16, dtype=np.int32).reshape(256, 256)
    inputs = {"transposed": array.T, "strided": array[::2, ::3], "swapped": array.astype(">i4"), "big": big.T}
    for message in opened("server").feed(
        b"".join([*native.encode_infer(1, "m", None, inputs), *native.encode_infer(1, "m", None, inputs)])
    ):
        assert isinstance(message, messages.Infer)
        for name, value in inputs.items():
            received = message.inputs[name]
            assert isinstance(received, np.ndarray)
            assert received.dtype.isnative
            np.testing.assert_array_equal(received, value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(2, np.complex64), "dtype complex64 does not travel"),
        (np.array([object()]), "dtype object does not travel"),
        (np.array(["2024-01-01"], "datetime64[D]"), "does not travel"),
        (np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (2**33,), (0,)), "does not fit into a frame"),
        ([1, 2], "is a list"),
        ("text", "is a str"),
        (["\ud800"], "surrogates"),
        ([""] * (MAX_ITEMS + 1), "at most 16384"),
        (None, "is a NoneType"),
    ],
)
def test_what_cannot_travel_is_said_before_it_is_sent(value, says):
    with pytest.raises(Unencodable, match=says):
        native.encode_infer(1, "m", None, {"x": value})


def test_too_many_strings_in_all_are_refused_before_they_are_sent():
    texts = [""] * MAX_ITEMS
    with pytest.raises(Unencodable, match="8 named values with 131072 strings in all"):
        native.encode_infer(1, "m", None, {str(number): texts for number in range(8)})
    inputs = {str(number): texts for number in range(7)} | {"rest": texts[: -(7 + 2 * 8)]}
    [message] = opened("server").feed(b"".join(native.encode_infer(1, "m", None, inputs, tenant="team")))
    assert isinstance(message, messages.Infer)
    assert message.inputs == inputs


def array(count: int, content: bytes) -> bytes:
    return struct.pack(">BI", 0xDD, count) + content


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        (array(1023, array(4096, b"\x90" * 4096) * 1023), "more than 131072 elements together"),
        (array(2**22, b"\x90" * 2**22), "more than 131072 elements together"),
        (b"\xdc\x40\x00" * 1000 + b"\xc0" * 2**20, "more than 131072 elements together"),
        (array(1, b"\xde\x40\x00" * 9), "more than 131072 elements together"),
        (b"\x81\xa1x" * 17 + b"\xc0", "nested more than 16 deep"),
        (b"\x93\xd9\x20" + b"\x91" * 32 + b"\x91" * 17, "nested more than 16 deep"),
    ],
)
def test_an_envelope_that_would_become_far_larger_is_refused_before_anything_is_made_of_it(bomb, says, monkeypatch):
    monkeypatch.setattr(envelopes.msgpack, "unpackb", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(ProtocolError, match=says):
        envelopes.unpack(bomb)


@given(strategies.plain | st.lists(st.text(max_size=70_000), max_size=3))
def test_what_is_within_the_limits_is_unpacked(value):
    assert comparable(envelopes.unpack(msgpack.packb([9, 1, value]))) == comparable([9, 1, value])


def test_nesting_up_to_the_limit_is_unpacked():
    value: list[object] = []
    for _ in range(envelopes.MAX_DEPTH - 2):
        value = [value]
    assert envelopes.unpack(msgpack.packb([9, 1, value])) == [9, 1, value]
    with pytest.raises(ProtocolError, match="nested more than 16 deep"):
        envelopes.unpack(msgpack.packb([9, 1, [value]]))


def test_a_frame_over_the_peers_limit_is_not_made():
    with pytest.raises(FrameTooLarge, match="over the receiver's limit of 4096"):
        native.encode(messages.Result(1, {"x": np.zeros(4096, np.uint8)}), max_frame_bytes=4096)


def test_a_bad_request_is_never_sent():
    with pytest.raises(TypeError, match="never sent"):
        native.encode(messages.BadInfer(1, InvalidInput("x")))


# Errors on the wire


@pytest.mark.parametrize("kind", [ProtocolError, FrameTooLarge, VersionMismatch, Unauthenticated, ConnectionLost])
def test_connection_errors_keep_their_type(kind):
    [failure] = opened("client").feed(encoded(native.connection_failure(kind("why"))))
    assert isinstance(failure, messages.Failure)
    assert failure.id == 0
    error = native.connection_error(failure)
    assert type(error) is kind
    assert str(error) == "why"


def test_inference_errors_keep_code_message_and_details():
    class Refusal(InferenceError):
        code = "refusal"

    [failure] = opened("client").feed(encoded(native.failure(3, Refusal("too late", predicted_finish_s=0.5, group=1))))
    assert failure == messages.Failure(3, "refusal", "too late", {"predicted_finish_s": 0.5, "group": 1})


def test_long_messages_and_details_are_cut():
    failure = native.failure(3, ModelNotFound("m" * 2**20, model="n" * 2**20, group=1))
    assert failure.message == "m" * 1997 + "..."
    assert failure.details == {"model": "n" * 197 + "...", "group": 1}
    assert len(native.connection_failure(ProtocolError("m" * 2**20)).message) == 2000


@pytest.mark.parametrize(
    ("text", "details", "kept"),
    [
        ("m" * 2000, {"refused": 1}, {"refused": 1}),
        ("ü" * 2000, {"refused": 1}, {"refused": 1}),
        ("\N{OLD PERSIAN SIGN A}" * 2000, {"model": "m" * 2000}, {"model": "m" * 2000}),
        ("m" * 2000, {"model": "m" * 4000}, {}),
    ],
)
def test_a_failure_is_cut_to_the_peers_limit(text, details, kept):
    sent = messages.Failure(3, "engine_stopped", text, details)
    parts = native.encode_failure(sent, max_frame_bytes=4096)
    assert sum(map(len, parts)) <= 4100
    [received] = opened("client", max_frame_bytes=4096).feed(b"".join(parts))
    assert isinstance(received, messages.Failure)
    assert (received.id, received.code, received.details) == (3, "engine_stopped", kept)
    assert text.startswith(received.message)
    assert len(received.message.encode()) > 1000
