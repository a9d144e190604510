"""The main job: real weights, cut over two clients, say what the uncut model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax import models

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three primary colours.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Who wrote Hamlet?",
    "Explain what a compiler does.",
    "List two uses of copper.",
    "Tell me a joke about a cat.",
    "How do vaccines work?",
)
NUM_TOKENS = 64
LENGTH = 64  # of the padded prompts
CONTEXT = LENGTH + NUM_TOKENS
NEAR_TIE = 1e-3


@pytest.fixture(scope="module")
def job():
    """(apply, params, prompts as padded tokens [12, LENGTH], their true lengths [12])."""
    try:
        gguf = models.read_gguf(models.find_smollm2())
    except gx.SpecError as error:
        pytest.skip(str(error))
    config, params = models.load_llama(gguf)
    tokenizer, template = models.load_tokenizer(gguf), models.load_chat_template(gguf)
    texts = [template.render([{"role": "user", "content": p}]) for p in PROMPTS]
    ids = [tokenizer.encode(t) for t in texts]
    tokens = np.zeros((len(ids), LENGTH), np.int32)
    for row, prompt in zip(tokens, ids, strict=True):
        row[: len(prompt)] = prompt
    return config, params, tokens, np.array([len(i) for i in ids], np.int32)


def follow(prefill, decode, params, cache, tokens, lengths, given=None):
    """Logits [64, 12, vocab] and the tokens [64, 12] that each step was fed or chose greedily."""
    logits, cache = prefill(params, cache, tokens, np.zeros(len(lengths), np.int32), lengths - 1)
    rows, chosen = [], []
    for step in range(NUM_TOKENS):
        rows.append(np.asarray(logits)[:, 0])
        chosen.append(rows[-1].argmax(-1).astype(np.int32) if given is None else given[step])
        if step < NUM_TOKENS - 1:
            logits, cache = decode(params, cache, chosen[-1][:, None], lengths + np.int32(step))
    return np.stack(rows), np.stack(chosen)


@pytest.fixture(scope="module")
def uncut(job):
    config, params, tokens, lengths = job
    step = jax.jit(models.llama_apply(config), donate_argnums=1)
    cache = models.init_cache(config, len(lengths), CONTEXT)
    params = jax.device_put(params)
    return follow(step, step, params, cache, tokens, lengths)


@pytest.mark.parametrize("num_stages", [2, 3, 5])
def test_greedy_tokens_equal_those_of_the_uncut_model(
    num_stages, job, uncut, cluster, plugin_name, record_property
):
    config, params, tokens, lengths = job
    apply = models.llama_apply(config)
    shapes = models.abstract_params(config), models.abstract_cache(config, len(lengths), CONTEXT)
    index = jax.ShapeDtypeStruct(lengths.shape, jnp.int32)
    prompt = jax.ShapeDtypeStruct(tokens.shape, jnp.int32)
    token = jax.ShapeDtypeStruct((len(lengths), 1), jnp.int32)
    workload = gx.Workload(
        {
            "prefill": gx.trace(apply, *shapes, prompt, index, index, carried={1: 1}),
            "decode": gx.trace(apply, *shapes, token, index, carried={1: 1}),
        },
        calls={"decode": NUM_TOKENS - 1},
    )
    own = next(m.name for m in cluster.meshes if m.backend != plugin_name)
    other = next(m.name for m in cluster.meshes if m.backend == plugin_name)
    meshes = [(own, other)[i % 2] for i in range(num_stages)]
    plan = gx.plan(workload, cluster, cuts=num_stages, meshes=meshes)
    with gx.compile(plan, workload) as steps:
        placed = steps.place(params)
        cache = steps.init(models.init_cache(config, len(lengths), CONTEXT))
        logits, _ = follow(
            steps["prefill"], steps["decode"], placed, cache, tokens, lengths, given=uncut[1]
        )
    expected, _ = uncut
    equal = logits.argmax(-1) == expected.argmax(-1)
    top = np.partition(expected, -2, axis=-1)[..., -2:]
    close = ~equal & (np.ptp(top, axis=-1) <= NEAR_TIE)
    print(
        f"{num_stages} stages: equal at {equal.sum()} of {equal.size} positions, {close.sum()}"
        f" near-ties,"
        f" logits differ by up to {np.abs(logits - expected).max():.2g}"
    )
    record_property("near_ties", int(close.sum()))
    assert (equal | close).all()
    assert close.sum() <= 0.01 * equal.size
