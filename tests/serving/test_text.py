"""A small language model, uncut and over its phases."""

import dataclasses

import jax
import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.graph import Role
from gimlax.serving import Request, TextModel, compare, generate
from tests import specimens

CONFIG = dataclasses.replace(
    models.SMOLLM2_135M,
    vocab_size=61,
    width=24,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_size=8,
    mlp_width=40,
)


@pytest.fixture(scope="module")
def model():
    return TextModel(
        apply=models.llama_apply(CONFIG),
        params=models.init_params(CONFIG, seed=1),
        cache=models.abstract_cache(CONFIG, 1, 24),
        context=24,
        chunk=8,
    )


def test_both_phases_share_parameters_and_cache(model):
    workload = model.workload(num_new_tokens=9)
    assert dict(workload.calls) == {"prefill": 1, "decode": 9}
    prefill, decode = workload.phases["prefill"], workload.phases["decode"]
    for role in (Role.RESIDENT, Role.CARRIED):
        paths = [[t.arguments[i].path for i in t.leaves(role)] for t in (prefill, decode)]
        assert paths[0] == paths[1] != []
    assert [o.aval.shape for o in prefill.outputs if o.carried is None] == [(1, 1, 61)]
    assert [o.aval.shape for o in decode.outputs if o.carried is None] == [(1, 1, 61)]


@pytest.mark.parametrize("num_prompt_tokens", [1, 7, 8, 9, 19, 24])
def test_generation_equals_the_whole_sequence_at_once(model, num_prompt_tokens):
    prompt = tuple(int(n) for n in np.random.default_rng(0).integers(0, 61, num_prompt_tokens))
    tokens = [t.id for t in generate(model.uncut(), Request(prompt=prompt, max_tokens=5))]
    cache = models.init_cache(CONFIG, 1, 32)
    whole = np.array([*prompt, *tokens], np.int32)[None]
    logits, _ = jax.jit(model.apply)(model.params, cache, whole, np.int32(0))
    rows = np.asarray(logits)[0, num_prompt_tokens - 1 : -1]
    assert np.argmax(rows, axis=-1).tolist() == tokens


@pytest.mark.parametrize("kind", specimens.LANGUAGE)
@pytest.mark.parametrize("num_prompt_tokens", [1, 8, 9, 16])
def test_a_recurrent_model_generates_what_the_whole_sequence_says(kind, num_prompt_tokens):
    specimen = specimens.LANGUAGE[kind]()
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), specimen.state
    )
    model = TextModel(
        apply=specimen.apply,
        params=specimen.params,
        cache=state,
        context=24,
        chunk=8,
        recurrent=True,
    )
    prompt = tuple(int(n) for n in np.random.default_rng(0).integers(0, 61, num_prompt_tokens))
    tokens = [t.id for t in generate(model.uncut(), Request(prompt=prompt, max_tokens=5))]
    whole = np.array([*prompt, *tokens], np.int32)[None]
    logits, _ = jax.jit(model.apply)(model.params, model.new_cache(), whole, np.int32(0))
    rows = np.asarray(logits)[0, num_prompt_tokens - 1 : -1]
    assert np.argmax(rows, axis=-1).tolist() == tokens
    with pytest.raises(SpecError, match="24 tokens, no multiple of the chunk of 7"):
        dataclasses.replace(model, chunk=7)


def test_phases_are_called_by_name(model):
    class Jitted(dict):
        def init(self, cache):
            return cache

    step = jax.jit(model.apply)
    cut = model.cut(Jitted(prefill=step, decode=step), model.params)
    assert compare(model.uncut(), cut, (3, 4, 5), (6, 7, 8)).agrees


@pytest.mark.parametrize("chunk", [0, 25])
def test_a_chunk_outside_the_context_is_refused(model, chunk):
    with pytest.raises(SpecError, match=f"chunk is {chunk} tokens, but the context holds 24"):
        dataclasses.replace(model, chunk=chunk)
