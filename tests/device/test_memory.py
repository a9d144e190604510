"""What a device says of its memory, where it says anything."""

import jax
import numpy as np
import pytest

from gimlax import devices
from gimlax.errors import SpecError

MIB = 2**20


@pytest.fixture
def stats(backend, device):
    """Asks the device now."""
    if not backend.capabilities.memory_stats:
        pytest.skip(
            f"memory_stats of {backend.name!r}: {dict(backend.capabilities.how)['memory_stats']}"
        )
    return lambda: device.memory_stats()


def test_an_array_is_counted_while_it_is_there(stats, device):
    before = stats()["bytes_in_use"]
    array = jax.device_put(np.zeros(16 * MIB, np.uint8), device).block_until_ready()
    assert stats()["bytes_in_use"] >= before + 16 * MIB
    array.delete()
    assert stats()["bytes_in_use"] < before + 16 * MIB


def test_its_limit_is_within_what_its_card_says(stats, backend):
    limit = stats().get("bytes_limit")
    if limit is None:
        pytest.skip("it names no limit")
    assert backend.memory_bytes <= limit
    try:
        kind = devices.load_kind(backend.device_kind)
    except SpecError as error:
        pytest.skip(str(error))
    if kind.vendor != "any":  # else a machine has what it has
        assert limit <= 1.1 * kind.memory_bytes
