"""What is read is what was written, or an error that says which frame and what was expected."""

import contextlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import SpecError
from gimlax.fabric import FrameError, Limits, LinkClosed, LinkLost, LinkTimeout, Tag
from gimlax.fabric.arena import fresh
from gimlax.fabric.checksums import crc32c
from gimlax.fabric.dtypes import code_of, dtype_of_code
from gimlax.fabric.frames import HEAD_BYTES, Described, Kind, encode, layout_of
from gimlax.fabric.packing import as_bytes
from gimlax.fabric.reading import FrameReader
from tests import reference

TAG = Tag(pass_number=2**63, transfer=7, attempt=2)
LIMITS = Limits(payload_bytes=2**20, arrays=16)


def described(array, index=0):
    return Described(
        index=index,
        dtype=array.dtype,
        whole=array.shape,
        start=(0,) * array.ndim,
        shape=array.shape,
    )


def written(arrays, sequence=0, tag=TAG):
    """The bytes of a frame, put together in the plainest way."""
    layout = layout_of(tuple(described(array, number) for number, array in enumerate(arrays)))
    payload = b""
    for start, array in zip(layout.starts, arrays):
        payload += bytes(start - len(payload)) + array.tobytes()
    head = encode(Kind.DATA, sequence, tag, layout)
    return head + payload + struct.pack("<I", crc32c(payload))


class Source:
    """Bytes in pieces; every `None` among the sizes is a timeout."""

    def __init__(self, data, sizes=()):
        self.data, self.sizes, self.at = data, iter(sizes), 0

    def __call__(self, view):
        size = next(self.sizes, len(view))
        if size is None:
            raise LinkTimeout("a -> b", "not yet")
        piece = self.data[self.at : self.at + min(size, len(view))]
        view[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


def no_loan(head):
    raise FrameError("a -> b", head.sequence, "no loan here")


def reader(data, sizes=(), limits=LIMITS, allocate=fresh):
    return FrameReader("a -> b", limits, Source(data, sizes), allocate, no_loan)


def all_dtypes():
    names = "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 int2 int4 uint2 uint4 "
    names += "float16 float32 float64 complex64 complex128 bfloat16 float4_e2m1fn float8_e3m4 "
    names += "float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 "
    names += "float8_e5m2fnuz float8_e8m0fnu"
    return [np.dtype(getattr(jnp, name).dtype) for name in names.split() if hasattr(jnp, name)]


@pytest.mark.parametrize("dtype", all_dtypes(), ids=str)
def test_every_dtype_of_jax_travels(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    frame = reader(written([array])).read()
    assert frame.layout.described == (described(array),)
    assert frame.payload.tobytes() == array.tobytes()


def test_numbers_of_dtypes_stay_what_they_are():
    """Two versions of gimlax speak with each other."""
    assert [dtype_of_code(code).name for code in (1, 11, 15, 17, 24)] == [
        "bool",
        "float32",
        "bfloat16",
        "int4",
        "float8_e4m3fn",
    ]


@pytest.mark.parametrize("dtype", ["O", "M8[s]", "U3", ">f4", [("a", "i4")]], ids=str)
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(SpecError, match=r"array 3 has dtype .* does not travel"):
        code_of(np.dtype(dtype), "array 3")


def test_typed_keys_are_refused_by_name():
    with pytest.raises(SpecError, match=r"array 0 holds typed PRNG keys \(key<fry>\).*key_data"):
        code_of(jax.random.key(0).dtype, "array 0")


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
payloads = st.lists(
    st.tuples(st.sampled_from(["uint8", "float32", "complex128"]), shapes), max_size=4
).map(lambda kinds: [np.arange(np.prod(s, dtype=int)).reshape(s).astype(d) for d, s in kinds])
pieces = st.lists(st.one_of(st.none(), st.integers(1, 40)), max_size=60)


def read_all(stream):
    """Frames until the end; a timeout is asked again."""
    frames = []
    while True:
        try:
            frames.append(stream.read())
        except LinkTimeout:
            continue
        except LinkLost:
            return frames


@given(st.lists(payloads, max_size=3), pieces)
def test_frames_come_out_as_they_went_in_however_they_are_cut(messages, sizes):
    data = b"".join(written(arrays, number) for number, arrays in enumerate(messages))
    frames = read_all(reader(data, sizes))
    assert [frame.head.sequence for frame in frames] == list(range(len(messages)))
    for frame, arrays in zip(frames, messages):
        assert frame.head.tag == TAG
        assert frame.layout.described == tuple(described(a, k) for k, a in enumerate(arrays))
        for start, array in zip(frame.layout.starts, arrays):
            assert start % 64 == 0
            assert frame.payload[start : start + array.nbytes].tobytes() == array.tobytes()


@given(payloads, st.data())
def test_any_flipped_bit_is_an_error_or_the_end(arrays, data):
    sent = bytearray(written(arrays))
    bit = data.draw(st.integers(0, len(sent) * 8 - 1))
    sent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError, match=r"link 'a -> b': frame 0: "):
        reader(bytes(sent)).read()


@given(payloads, st.data())
def test_any_rewritten_piece_is_an_error_or_the_end(arrays, data):
    sent = written(arrays)
    start = data.draw(st.integers(0, len(sent)))
    end = data.draw(st.integers(start, len(sent)))
    changed = sent[:start] + data.draw(st.binary(max_size=80)) + sent[end:]
    if changed[: len(sent)] != sent:
        with pytest.raises((FrameError, LinkLost)):
            reader(changed).read()


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_an_error_or_the_end(noise, signed):
    """Also where the checksum of the head holds, so that what stands in it is looked at."""
    if signed:
        fields = (b"GXF1\x01" + noise)[: HEAD_BYTES - 4].ljust(HEAD_BYTES - 4, b"\0")
        noise = fields + struct.pack("<I", crc32c(fields)) + noise
    taken = []

    def allocate(num_bytes):
        taken.append(num_bytes)
        return fresh(num_bytes)

    with contextlib.suppress(FrameError, LinkLost, LinkClosed):
        reader(noise, allocate=allocate).read()
    assert sum(taken) <= LIMITS.payload_bytes


def head(**changes):
    names = "magic version kind arrays sequence number transfer attempt description payload"
    values = (b"GXF1", 1, 1, 1, 0, 0, 0, 0, 32, 4)
    fields = dict(zip(names.split(), values)) | changes
    fields = struct.pack("<4sBBHQQIIIQIQ", *fields.values(), 0, 0)
    return fields + struct.pack("<I", crc32c(fields))


def description(*arrays):
    data = b""
    for code, dims in arrays:
        data += struct.pack("<BBHI", code, len(dims), 0, 0)
        data += b"".join(struct.pack("<QQQ", *dim) for dim in dims)
    return data + struct.pack("<I", crc32c(data))


HUGE = 2**63
CASES = {
    "magic": (head(magic=b"HTTP"), "begins with b'HTTP' instead of b'GXF1'"),
    "version": (head(version=9), "version 9, and this gimlax reads 1"),
    "kind": (head(kind=77), "kind 77"),
    "before": (written([], 3), "number 3 came instead; what lies between is missing"),
    "payload": (head(payload=HUGE), f"{HUGE} bytes, and at most 1048576 are taken"),
    "arrays": (head(arrays=17), "17 arrays, and at most 16 are taken"),
    "much described": (head(description=2**32 - 1), "description has 4294967295 bytes"),
    "little described": (head(description=7), "description has 7 bytes"),
    "bytes of nothing": (head(arrays=0, description=0), "4 bytes of no array"),
    "loud farewell": (head(kind=3), "1 arrays, and its kind FAREWELL has none"),
    "loan": (head(kind=2) + description((6, [(4, 0, 4)])), "no loan here"),
    "dtype": (head() + description((200, [(4, 0, 4)])), "dtype 200"),
    "outside": (head() + description((6, [(4, 2, 4)])), "block of 4 from 2 of 4"),
    "wrapping": (head() + description((6, [(HUGE, HUGE, HUGE)])), "block of"),
    "sum": (head() + description((6, [(5, 0, 5)])), "arrays have 5 bytes, and its head says 4"),
    "product": (
        head(description=32 + 24) + description((6, [(2**48, 0, 2**48)] * 2)),
        f"arrays have {2**96} bytes",
    ),
    "dims": (head() + struct.pack("<BBHI", 6, 200, 0, 0) + bytes(28), "checksum of its desc"),
}


@pytest.mark.parametrize(("data", "said"), CASES.values(), ids=CASES)
def test_what_cannot_be_is_refused_before_memory_is_taken(data, said):
    def allocate(num_bytes):
        raise AssertionError(f"{num_bytes} bytes were taken")

    stream = reader(data, allocate=allocate)
    with pytest.raises(FrameError, match=r"link 'a -> b': frame 0: ") as caught:
        stream.read()
    assert said in str(caught.value)
    assert caught.value.sequence == 0
    with pytest.raises(FrameError, match=r"frame 0"):
        stream.read()  # there is no way back into the stream


def test_a_repeated_frame_names_both_numbers():
    first, second = written([], 0), written([], 1)
    stream = reader(first + second + first)
    stream.read(), stream.read()
    with pytest.raises(FrameError, match=r"frame 2: number 0 came instead; it came before"):
        stream.read()


def test_a_farewell_is_no_loss():
    stream = reader(written([], 0) + encode(Kind.FAREWELL, 1, TAG))
    stream.read()
    with pytest.raises(LinkClosed, match=r"the sender closed it after 1 messages"):
        stream.read()


@pytest.mark.parametrize("end", [0, 1, HEAD_BYTES, HEAD_BYTES + 3, -1])
def test_an_end_within_a_frame_is_a_loss(end):
    with pytest.raises(LinkLost, match=r"before frame 0 was complete"):
        reader(written([np.ones(8)])[:end]).read()


def test_a_long_description_and_a_long_payload_are_read_whole():
    arrays = [np.full((k % 3, 1, 1, 1, 1), k, np.float32) for k in range(900)]
    arrays.append(np.arange(300_000, dtype=np.float32))
    limits = Limits(arrays=2000)
    frame = reader(written(arrays) * 1, limits=limits).read()
    assert len(frame.layout.described) == 901
    assert frame.payload[-1_200_000:].tobytes() == arrays[-1].tobytes()


@pytest.mark.parametrize(
    "wrong", [{"pass_number": -1}, {"pass_number": 0, "transfer": 2**32}, {"pass_number": "1"}]
)
def test_a_tag_that_does_not_fit_is_refused(wrong):
    with pytest.raises(SpecError, match=r"tag: \w+ is .*; give 0 to 2\*\*"):
        Tag(**wrong)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_the_checksum_is_crc32c(data, cut):
    array = as_bytes(np.frombuffer(data, np.uint8))
    assert crc32c(array[cut:], crc32c(array[:cut])) == reference.crc32c(data)
