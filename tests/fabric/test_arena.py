"""Memory is given out once at a time, and comes back when the last array over it is gone."""

import gc
import mmap

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax import _jax
from gimlax.errors import InternalError
from gimlax.fabric.arena import Landing, Loans, Ranges
from gimlax.fabric.landing import land

PAGE = 4096
steps = st.lists(st.one_of(st.integers(1, 5 * PAGE), st.integers(-8, -1)), max_size=40)


class SlowRanges:
    """A letter for each page."""

    def __init__(self, num_pages):
        self.pages = ["free"] * num_pages

    def take(self, num_bytes):
        wanted = -(-num_bytes // PAGE)
        for start in range(len(self.pages) - wanted + 1):
            if set(self.pages[start : start + wanted]) == {"free"}:
                self.pages[start : start + wanted] = [start] * wanted
                return start * PAGE
        return None

    def give_back(self, start):
        self.pages = ["free" if owner == start // PAGE else owner for owner in self.pages]


@given(st.integers(0, 12), steps)
def test_ranges_are_those_of_a_list_of_pages(num_pages, steps):
    fast, slow = Ranges(num_pages * PAGE + 17), SlowRanges(num_pages)
    taken = []
    for step in steps:
        if step > 0:
            start = fast.take(step)
            assert start == slow.take(step)
            if start is not None:
                taken.append(start)
        elif taken:
            start = taken.pop(step % len(taken))
            fast.give_back(start)
            slow.give_back(start)


def test_what_was_not_taken_is_not_given_back():
    with pytest.raises(InternalError, match=r"no block lies at byte 4096"):
        Ranges(2 * PAGE).give_back(PAGE)


@pytest.fixture(params=["cpu", "plugin"])
def device(request):
    if request.param == "cpu":
        return jax.devices("cpu")[0]
    name = request.getfixturevalue("plugin_name")
    return jax.devices(name)[0]


@pytest.fixture
def other_device(device, request):
    """One of another client."""
    name = request.getfixturevalue("plugin_name")
    cpu = jax.devices("cpu")[0]
    return jax.devices(name)[0] if device is cpu else cpu


class Loan:
    """Memory, an array over it on a device, and whether its loan has ended."""

    def __init__(self, device):
        self.memory = mmap.mmap(-1, 2**16)
        self.ended = []
        self.loans = Loans(self.memory)
        root = self.loans.lend(0, 2**16, lambda: self.ended.append(1))
        root[:] = 1
        landed = land(root.view(np.float32), device)
        assert landed.aliased
        self.array = landed.array

    def over(self):
        gc.collect()
        assert len(self.loans) == 1 - len(self.ended)
        return bool(self.ended)


HOLDERS = {
    "the array": lambda loan, other: loan.array,
    "a view for NumPy": lambda loan, other: np.asarray(loan.array),
    "a view of a view": lambda loan, other: np.asarray(loan.array)[3:9].reshape(2, 3),
    "a second array": lambda loan, other: jax.device_put(loan.array, loan.array.device),
    "its shard": lambda loan, other: loan.array.addressable_shards[0].data,
    "DLPack": lambda loan, other: np.from_dlpack(loan.array),
    "an array of another client": lambda loan, other: jax.device_put(loan.array, other),
    "an array of another client by way of NumPy": lambda loan, other: jax.device_put(
        np.asarray(loan.array), other
    ),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_loan_lasts_while_anything_lies_over_it(device, other_device, hold):
    loan = Loan(device)
    held = hold(loan, other_device)
    jax.block_until_ready(held)
    del loan.array
    assert not loan.over()
    del held
    assert loan.over()


def test_a_loan_lasts_while_a_program_reads_it(device):
    """The array is deleted as soon as the program was dispatched."""

    @jax.jit
    def slowly(x):
        return jax.lax.fori_loop(0, 2000, lambda _, a: a * 1.0001 + jax.numpy.sin(x), x).sum()

    jax.block_until_ready(slowly(jax.device_put(np.ones(2**14, np.float32), device)))
    loan = Loan(device)
    expected = float(slowly(loan.array))
    result = slowly(loan.array)
    loan.array.delete()
    if loan.over():  # then nobody may read it any more
        np.frombuffer(loan.memory, np.uint8)[:] = 7
    assert float(result) == expected
    del result
    assert loan.over()


def test_memory_is_not_written_by_a_program_that_it_was_donated_to(device):
    loan = Loan(device)
    before = loan.memory[:]
    result = jax.jit(lambda x: x + 1, donate_argnums=0)(loan.array)
    jax.block_until_ready(result)
    assert loan.memory[:] == before
    assert loan.over()
    np.frombuffer(loan.memory, np.uint8)[:] = 7
    assert set(np.asarray(result).tolist()) == {float(np.frombuffer(b"\1" * 4, "f4")[0]) + 1}


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "float16", "bfloat16", "float8_e4m3fn", "complex64"]
)
def test_what_is_aligned_is_taken_over_as_it_is(device, dtype):
    data = Landing(mmap.mmap(-1, 2**16)).allocate(PAGE)
    data[:] = 1
    landed = land(data.view(jax.numpy.dtype(dtype)), device)
    assert landed.aliased
    assert _jax.backend_name_of(landed.array.device) == _jax.backend_name_of(device)


def test_what_a_client_copies_is_said_to_be_copied(device):
    data = Landing(mmap.mmap(-1, 2**16)).allocate(PAGE)
    data[:] = 1
    assert not land(data.view(jax.numpy.int4.dtype), device).aliased
    assert not land(data[4:].view(np.float32), device).aliased
    assert not land(data[:0], device).aliased


def test_a_dtype_that_jax_would_change_is_refused(device):
    with pytest.raises(ValueError, match=r"a float64 array came, which JAX turns into float32"):
        land(np.zeros(3), device)


def test_landing_uses_memory_again_and_never_what_is_held():
    memory = mmap.mmap(-1, 4 * PAGE)
    landing = Landing(memory)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    held = [landing.allocate(PAGE) for _ in range(4)]
    assert [array.ctypes.data - start for array in held] == [0, PAGE, 2 * PAGE, 3 * PAGE]
    outside = landing.allocate(PAGE)
    assert not start <= outside.ctypes.data < start + len(memory)
    assert outside.ctypes.data % 64 == 0
    del held[2]
    assert landing.allocate(PAGE).ctypes.data - start == 2 * PAGE
    assert landing.allocate(100).ctypes.data % 64 == 0
