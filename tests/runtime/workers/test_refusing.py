"""What cannot go to another process is refused by name, before a worker hears of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from tests.runtime.workers.conftest import compile_on

PARAMS = [np.eye(8, dtype=np.float32)] * 4
X = np.ones((2, 8), np.float32)


def host(x):
    return jax.pure_callback(lambda v: np.asarray(v) + 1, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def plain(params, x):
    for w in params[:2]:
        x = jnp.tanh(x @ w)
    return host(x) @ params[2] @ params[3]


def in_a_branch(params, x):
    for w in params[:2]:
        x = jnp.tanh(x @ w)
    x = jax.lax.cond(x.sum() > 0, host, lambda x: x, x)
    return x @ params[2] @ params[3]


@pytest.mark.parametrize("fn", [plain, in_a_branch])
def test_a_callback_is_named_with_its_segment(fn, workers, monkeypatch):
    monkeypatch.setattr("gimlax.runtime.workers.peers.Peer.begin", None)  # nobody is asked
    told = rf"^segment '[\w.]+' of '{fn.__name__}' has 'pure_callback': .* compile without workers$"
    with pytest.raises(gx.SpecError, match=told):
        compile_on(workers, trace(fn, PARAMS, X), ("one", "two"))
