"""Llama and Mixtral cut at every single boundary, over two clients."""

import dataclasses

import jax
import numpy as np
import pytest

from gimlax import experts, models
from gimlax.graph import Workload, chain, trace
from gimlax.runtime import arrangement, gather
from tests.runtime.conftest import on_cpu

SIZES = {
    "vocab_size": 61,
    "width": 24,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_size": 8,
    "mlp_width": 20,
    "max_context": 64,
}
SCALING = models.RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32
)
MIXTRAL = models.MixtralConfig(**SIZES, num_experts=5, num_chosen=2)
CONFIGS = {
    "llama, tied": models.LlamaConfig(**SIZES, tied=True, rope_scaling=SCALING),
    "mixtral, window": dataclasses.replace(MIXTRAL, sliding_window=3),
}
LENGTH = 7


def arguments(config):
    params, cache = jax.tree.map(
        np.asarray, (models.init_params(config), models.init_cache(config, 2, 10))
    )
    tokens = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH) * 7 % config.vocab_size
    return params, cache, tokens


def workload(config):
    """A prompt and a token, which share parameters and cache."""
    params, cache, tokens = arguments(config)
    apply = models.decoder_apply(config)
    phases = {
        name: trace(apply, params, cache, of, np.int32(0), carried={1: 1})
        for name, of in (("prefill", tokens), ("decode", tokens[:, :1]))
    }
    return Workload(phases, calls={"prefill": 1, "decode": 1})


def assert_within(found, expected, relative=5e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max()),
        found,
        jax.tree.map(np.asarray, expected),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_cut_at_every_single_boundary(name, deploy):
    config = CONFIGS[name]
    params, cache, tokens = arguments(config)
    apply = models.decoder_apply(config)
    whole, filled = on_cpu(apply, params, cache, tokens, np.int32(0))
    token = np.asarray(whole[:, -1].argmax(-1), np.int32)[:, None]
    last, ended = on_cpu(apply, params, filled, token, np.int32(LENGTH))
    found = chain(workload(config))
    assert found.num_segments == 2 * config.num_layers + 2
    for boundary in range(1, found.num_segments):
        step = deploy(found, ("plugin", "cpu"), cuts=(boundary,))
        placed, state = step["prefill"].place(params), step["prefill"].init(cache)
        logits, state = step["prefill"](placed, state, tokens, np.int32(0))
        assert_within(logits, whole)
        logits, state = step["decode"](placed, state, token, np.int32(LENGTH))
        assert_within(logits, last)
        assert_within(gather(state), ended)


def test_where_a_backend_has_products_in_groups_experts_are_run_by_them(deploy, monkeypatch):
    used = []
    ragged = experts.ragged
    monkeypatch.setattr(experts, "ragged", lambda *args: used.append(1) or ragged(*args))
    monkeypatch.setattr(arrangement, "_groups", lambda mesh: True)
    params, cache, tokens = arguments(MIXTRAL)
    apply = models.decoder_apply(MIXTRAL)
    traced = trace(apply, params, cache, tokens, np.int32(0), carried={1: 1})
    step = deploy(traced, ("cpu", "cpu:1"))
    logits, _ = step(step.place(params), cache, tokens, np.int32(0))
    assert len(used) == MIXTRAL.num_layers
    assert_within(logits, on_cpu(apply, params, cache, tokens, np.int32(0))[0], 2e-6)
