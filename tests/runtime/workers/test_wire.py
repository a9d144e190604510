"""Messages come out as they went in, and what is none is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import BackendError
from gimlax.runtime.workers.telling import PassOrder
from gimlax.runtime.workers.wire import PREFIX_BYTES, Message, decode, encode, read_prefix

integers = st.integers(-(2**63), 2**63 - 1)
plain = st.one_of(integers, st.text(max_size=5), st.booleans())
fields = st.dictionaries(
    st.text(max_size=5), st.one_of(plain, st.lists(plain, max_size=3)), max_size=4
)
arrays = st.lists(
    st.builds(
        lambda size, dtype: np.arange(size).astype(dtype).reshape(1, size),
        st.sampled_from((0, 1, 7, 64, 1025, 5000)),
        st.sampled_from((np.bool_, np.int8, np.float32, np.complex64, jnp.bfloat16)),
    ),
    max_size=4,
)


def through(message):
    """What the other side makes of the bytes of a message."""
    data = b"".join(bytes(buffer) for buffer in encode(message))
    header, payload, numbers = read_prefix(data[:PREFIX_BYTES])
    assert len(data) == PREFIX_BYTES + header + payload
    rest = np.frombuffer(data, np.uint8, offset=PREFIX_BYTES + header)
    return decode(data[PREFIX_BYTES:][:header], rest, numbers)


@given(st.text(max_size=5), fields, arrays, st.lists(integers, max_size=20))
def test_a_message_comes_out_as_it_went_in(kind, fields, arrays, numbers):
    for _ in range(2):  # of the second one the header is known
        found = through(Message(kind=kind, fields=fields, arrays=arrays, numbers=numbers))
        assert (found.kind, found.fields, list(found.numbers)) == (kind, fields, numbers)
        for mine, theirs in zip(arrays, found.arrays, strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert mine.tobytes() == theirs.tobytes()


def test_arrays_lie_where_devices_can_use_them():
    sent = [np.ones(n, np.uint8) for n in (1, 65, 5000, 3)]
    data = b"".join(
        bytes(buffer) for buffer in encode(Message(kind="pass", arrays=sent, numbers=[1]))
    )
    header, payload, numbers = read_prefix(data[:PREFIX_BYTES])
    spare = np.empty(payload + 64, np.uint8)
    start = -spare.ctypes.data % 64
    rest = spare[start : start + payload]
    rest[:] = np.frombuffer(data, np.uint8, offset=PREFIX_BYTES + header)
    found = decode(data[PREFIX_BYTES:][:header], rest, numbers)
    assert [array.ctypes.data % 64 for array in found.arrays] == [0] * 4


@pytest.mark.parametrize("num_numbers", [0, 2, 17])
def test_a_payload_that_is_not_the_headers_is_refused(num_numbers):
    data = b"".join(bytes(b) for b in encode(Message(kind="pass", numbers=[1] * 3)))
    header, payload, numbers = read_prefix(data[:PREFIX_BYTES])
    assert (payload, numbers) == (64, 3)
    rest = np.zeros(payload - 1 if num_numbers == 2 else payload, np.uint8)
    with pytest.raises(BackendError, match=r"cannot be read: ValueError: \d+ bytes described of"):
        decode(data[PREFIX_BYTES:][:header], rest, num_numbers)


def test_an_array_that_cannot_be_sent_is_refused_by_name():
    with pytest.raises(BackendError, match=r"dtype datetime64.* cannot be sent"):
        encode(Message(kind="pass", arrays=[np.zeros(1, "datetime64[s]")], numbers=[1]))


@given(
    st.integers(0, 2**40),
    st.integers(0, 99),
    st.integers(0, 9),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.tuples(*[st.lists(st.integers(0, 2**40), max_size=4)] * 3),
)
def test_an_order_is_what_its_numbers_say(number, epoch, phase, flags, lists):
    finished, placed, cells = lists
    after = [cell + 1 for cell in cells]
    order = PassOrder(number, epoch, phase, *flags, finished, placed, cells, after)
    assert PassOrder.of(order.numbers()) == order
