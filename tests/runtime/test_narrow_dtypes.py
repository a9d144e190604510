"""Numbers of less than a byte: as parameters, state, inputs, outputs and between stages."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from tests.runtime.conftest import on_cpu, over_backends
from tests.runtime.workers.conftest import compile_on, workers  # noqa: F401

NARROW = ("int4", "uint4", "float4_e2m1fn", "int2", "uint2")


def model(dtype):
    """Two stages with a value of the dtype between them, and everything else in it, too."""
    dtype = np.dtype(getattr(ml_dtypes, dtype))

    def apply(params, state, x):
        first = (x.astype(jnp.float32) @ params[0].astype(jnp.float32) > 1.5).astype(dtype)
        second = (first.astype(jnp.float32) @ params[1].astype(jnp.float32) > 0.5).astype(dtype)
        state = [(s.astype(jnp.float32) * 0.5 + 1 > 1.2).astype(dtype) for s in state]
        return second, [
            (s.astype(jnp.float32) + 0 * y[:1, :6].astype(jnp.float32)).astype(dtype)
            for s, y in zip(state, (first, second), strict=True)
        ]

    rng = np.random.default_rng(0)
    some = [rng.integers(0, 2, shape).astype(dtype) for shape in ((6, 6), (6, 6), (1, 6), (1, 6))]
    return apply, (some[:2], some[2:], rng.integers(0, 2, (5, 6)).astype(dtype))


def check(step, fn, params, state, x):
    placed, carried = step.place(params), step.init(state)
    expected_state = state
    for pass_number in range(3):
        run = step if pass_number % 2 else lambda *args: step.submit(*args).result()
        out, carried = run(placed, carried, x)
        expected, expected_state = on_cpu(fn, params, expected_state, x)
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))
    jax.tree.map(np.testing.assert_array_equal, gx.gather(carried), jax.device_get(expected_state))
    jax.tree.map(np.testing.assert_array_equal, gx.gather(placed), params)


@over_backends
@pytest.mark.parametrize("placement", [("cpu",), ("cpu", "cpu:1"), ("cpu", "plugin")], ids="-".join)
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_numbers_pass_through_the_stages_of_a_process(dtype, placement, deploy):
    fn, args = model(dtype)
    check(deploy(trace(fn, *args, carried={1: 1}), placement), fn, *args)


@pytest.mark.parametrize("placement", [("one",), ("one", "two"), ("other", "one")], ids="-".join)
@pytest.mark.parametrize("dtype", NARROW[:3])
def test_narrow_numbers_pass_between_workers(dtype, placement, workers):  # noqa: F811
    fn, args = model(dtype)
    with compile_on(workers, trace(fn, *args, carried={1: 1}), placement) as step:
        check(step, fn, *args)


@pytest.mark.parametrize("dtype", NARROW[3:])
def test_what_cannot_be_exported_is_refused_by_name(dtype, workers):  # noqa: F811
    fn, args = model(dtype)
    where = r"stage 0 \(.*\) of 'apply' on mesh 'one'"
    told = rf"{where} has argument 'params\[0\]' of dtype {dtype}, .* keep it as int8"
    with pytest.raises(gx.BackendError, match=told):
        compile_on(workers, trace(fn, *args, carried={1: 1}), ("one", "two"))

    def between(params, x):
        return (x @ params[0]).astype(dtype).astype(np.float32) @ params[1]

    square = np.ones((4, 4), np.float32)
    with pytest.raises(gx.BackendError, match=rf"has a value \(4, 4\) of dtype {dtype}"):
        compile_on(workers, trace(between, [square] * 2, square), ("one", "two"))
