"""State that only one of the stages uses."""

import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.graph import trace


def count_and_scale(params, total, x):
    total = total + x @ params["first"]
    return jnp.tanh(total) @ params["second"], total


PARAMS = {"first": np.eye(4, dtype=np.float32), "second": np.full((4, 4), 0.5, np.float32)}
X = np.ones((2, 4), np.float32)


@pytest.mark.parametrize("way", ["call", "submit"])
def test_a_stage_without_state_waits_for_none(deploy, way):
    total = np.zeros((2, 4), np.float32)
    traced = trace(count_and_scale, PARAMS, total, X, resident=(0,), carried={1: 1})
    run = deploy(traced, ("cpu", "plugin"))
    placed, state = run.place(PARAMS), run.init(total)
    for count in (1, 2, 3):
        if way == "call":
            y, state = run(placed, state, X)
        else:
            y, state = run.submit(placed, state, X).result(timeout=60)
        np.testing.assert_allclose(y, np.tanh(X * count) @ PARAMS["second"], rtol=1e-6)
