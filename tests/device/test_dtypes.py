"""Each dtype goes to the device and comes back as it was, and is computed with as on the CPU.

What a backend does not compile is skipped with what it said; what it computes has to be right.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.device.conftest import FLOAT32

DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "int4",
    "int32",
    "uint8",
    "bool",
)
FLOATS = DTYPES[:5]
EPSILONS = 4  # of the dtype, relative to the largest value, where that is more than FLOAT32


def values(dtype, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-4, 4, shape).astype(np.float32).astype(jnp.dtype(dtype))


def compute(fn, device, *args):
    """The result on a device as float32, or a skip with the reason why it cannot be had."""
    where = jax.device_put(args, device)
    try:
        found = jax.jit(fn)(*where)
        return np.asarray(found.astype(jnp.float32))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        pytest.skip(f"not supported: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_comes_back_as_it_was(dtype, device):
    here = values(dtype, 5, 7)
    there = jax.device_put(here, device)
    assert there.devices() == {device}
    assert there.dtype == here.dtype
    np.testing.assert_array_equal(np.asarray(there), here)
    back = jax.device_put(there, jax.devices("cpu")[0])
    np.testing.assert_array_equal(np.asarray(back), here)


@pytest.mark.parametrize("dtype", [*FLOATS, "int8"])
def test_products_accumulate_exactly(dtype, device):
    # Small whole numbers: every product and sum is one in float32 and int32, in whatever order.
    a, b = values(dtype, 16, 32), values(dtype, 32, 8, seed=1)
    wide = jnp.int32 if dtype == "int8" else jnp.float32
    found = compute(lambda a, b: jnp.dot(a, b, preferred_element_type=wide), device, a, b)
    np.testing.assert_array_equal(found, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("dtype", FLOATS[:3])
@pytest.mark.parametrize(
    "fn",
    [jnp.exp, jnp.tanh, jax.nn.silu, jax.nn.gelu, jax.nn.softmax, jnp.cumsum, jax.lax.rsqrt],
    ids=lambda fn: fn.__name__,
)
def test_functions_agree_with_the_cpu(fn, dtype, device):
    x = np.linspace(0.25, 3, 64, dtype=np.float32).astype(jnp.dtype(dtype))
    found = compute(fn, device, x)
    expected = compute(fn, jax.devices("cpu")[0], x)
    bound = max(EPSILONS * float(jnp.finfo(dtype).eps), FLOAT32) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_is_written_and_looked_up(dtype, device):
    cache, rows = values(dtype, 8, 4), values(dtype, 2, 4, seed=1)

    def write(cache, rows):
        cache = jax.lax.dynamic_update_slice(cache, rows, (3, 0))
        return cache[jnp.array([7, 3, 4])]

    expected = np.stack([cache[7], rows[0], rows[1]]).astype(np.float32)
    np.testing.assert_array_equal(compute(write, device, cache, rows), expected)
