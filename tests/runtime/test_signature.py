"""What a call takes is what was traced, and the error says by key path what is not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import TraceError
from gimlax.graph import trace
from tests import zoo
from tests.runtime.conftest import trace_specimen


@pytest.fixture(scope="module")
def plain(deploy_once):
    specimen = zoo.plain()
    params, *rest = specimen.args
    step = deploy_once(trace_specimen(specimen), ("cpu",))
    return step, (step.place(params), *rest)


def test_a_shape_that_was_not_traced(plain):
    step, (params, cache, tokens, position) = plain
    message = r"streamed argument 2 of 'plain_model': tokens is int32\[3\], traced as int32\[6\]"
    for run in (step, step.submit):
        with pytest.raises(TraceError, match=message):
            run(params, cache, tokens[:3], position)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_dtype_that_was_not_traced(kind, plain):
    step, (params, cache, tokens, position) = plain
    with pytest.raises(TraceError, match=r"position is float32\[\], traced as int32\[\]"):
        step(params, cache, tokens, kind(np.float32(position)))


def test_what_is_no_array(plain):
    step, (params, cache, tokens, position) = plain
    with pytest.raises(TraceError, match=r"position is a str, traced as int32\[\]"):
        step(params, cache, tokens, "2")
    shape = jax.ShapeDtypeStruct((6,), np.int32)
    with pytest.raises(TraceError, match="pass arrays: shapes are enough to plan, not to run"):
        step(params, cache, shape, position)


def test_host_numbers_of_wider_types_are_taken_as_jax_takes_them(plain):
    step, (params, cache, tokens, position) = plain
    expected, _ = step(params, cache, tokens, position)
    for wider in (2, np.int64(2), np.array(2), jnp.int32(2)):
        found, _ = step(params, cache, tokens.astype(np.int64), wider)
        np.testing.assert_array_equal(found, expected)


def test_tracers_are_refused(plain):
    step, (params, cache, tokens, position) = plain
    message = (
        r"tokens is a tracer .*; compiled stages cannot be transformed: call them outside of jit"
    )
    with pytest.raises(TraceError, match=message):
        jax.jit(lambda x: step(params, cache, x, position)[0])(tokens)
    with pytest.raises(TraceError, match="is a tracer"):
        jax.vmap(lambda x: step(params, cache, tokens, x)[0])(np.arange(2, dtype=np.int32))


def test_the_number_of_arguments(plain):
    step, (params, cache, tokens, _) = plain
    message = "'plain_model' was called with 3 positional arguments and traced with 4"
    with pytest.raises(TraceError, match=message):
        step(params, cache, tokens)


def test_keyword_arguments_that_were_not_traced(deploy):
    traced = trace(lambda w, x, *, scale: w * x * scale, np.float32(1), np.float32(2), scale=1.0)
    step = deploy(traced, ("cpu",))
    placed = step.place(np.float32(1))
    assert float(step(placed, np.float32(2), scale=3.0)) == 6
    with pytest.raises(TraceError, match=r"\['scale'\] is missing; \['size'\] is extra"):
        step(placed, np.float32(2), size=1.0)
    with pytest.raises(TraceError, match=r"\['scale'\] is missing"):
        step(placed, np.float32(2))


def test_an_unplaced_tree_is_placed_with_one_warning_that_says_its_bytes(deploy):
    specimen = zoo.plain()
    step = deploy(trace_specimen(specimen), ("cpu", "plugin"))
    params = specimen.args[0]
    nbytes = step.place(params).nbytes
    with pytest.warns(UserWarning, match=f"its {nbytes} bytes are placed anew") as caught:
        first, _ = step(*specimen.args)
        second, _ = step(*specimen.args)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(*specimen.args)
        step(step.place(params), *specimen.args[1:])
