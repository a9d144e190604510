"""State stays on the device from pass to pass, and its memory is used again where that can be."""

import numpy as np

from gimlax.runtime import gather
from tests.device.conftest import assert_close, make, reference, trace


def test_a_cache_on_the_device_grows_token_by_token(deploy):
    specimen = make("llama")
    params, cache, tokens, _ = specimen.args
    expected, _ = reference(specimen.fn, *specimen.args)
    with deploy(trace(specimen), "cpu", "device") as step:
        placed, state = step.place(params), step.init(cache)
        logits, state = step(placed, state, tokens, np.int32(0))
        assert_close(np.asarray(logits), expected)
        _, filled = reference(specimen.fn, params, cache, tokens, np.int32(0))
        expected, filled = reference(specimen.fn, params, filled, tokens, np.int32(5))
        logits, state = step(placed, state, tokens, np.int32(5))
        assert_close(np.asarray(logits), expected)
        assert_close(gather(state), filled)
        assert state.generation == 2


def test_donated_state_is_given_up_if_it_was_found_so(deploy, backend):
    specimen = make("llama")
    params, cache, tokens, position = specimen.args
    with deploy(trace(specimen), "device") as step:
        placed, state = step.place(params), step.init(cache)
        [cell] = state._cells[0]
        arrays = cell.arrays
        step(placed, state, tokens, position)[0].block_until_ready()
        assert {x.is_deleted() for x in arrays} == {backend.capabilities.donation}
