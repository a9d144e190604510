"""Writes small GGUF files for tests, sound ones and others: nothing here is checked."""

import struct
from typing import Any

import numpy as np

from gimlax.models import LlamaConfig, MixtralConfig, abstract_params, init_params
from gimlax.models.leaves import flat_shapes
from gimlax.models.llama_gguf import tensor_names
from gimlax.models.tokenizer import byte_of_char

U32, F32, BOOL, STRING, ARRAY, U64, I32 = 4, 6, 7, 8, 9, 10, 5
FORMATS = {U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", I32: "<i"}
TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        element, items = content
        packed = b"".join(value(element, item) for item in items)
        return struct.pack("<IQ", element, len(items)) + packed
    return struct.pack(FORMATS[kind], content)


def field(key: str, kind: int, content: Any) -> bytes:
    return string(key) + struct.pack("<I", kind) + value(kind, content)


def tensor_info(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """`dims` in the order of the file: the fastest first."""
    packed = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return string(name) + packed


def file_bytes(
    fields: list[bytes],
    infos: list[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(fields))
    head += b"".join(fields) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment) + data


MERGED = ["he", "ll", "hell", "hello", "Ġw"]
VOCABULARY = ["<|start|>", "<|end|>", *byte_of_char(), *MERGED, "<tool>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokenizer_fields(**changes: bytes | None) -> list[bytes]:
    """Metadata of a small byte-level BPE; `changes` replace or (None) drop fields by short name."""
    types = [3, 3] + [1] * (len(VOCABULARY) - 3) + [4]
    fields = {
        "model": field("tokenizer.ggml.model", STRING, "gpt2"),
        "pre": field("tokenizer.ggml.pre", STRING, "smollm"),
        "tokens": field("tokenizer.ggml.tokens", ARRAY, (STRING, VOCABULARY)),
        "token_type": field("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        "merges": field("tokenizer.ggml.merges", ARRAY, (STRING, MERGES)),
        "bos": field("tokenizer.ggml.bos_token_id", U32, 0),
        "eos": field("tokenizer.ggml.eos_token_id", U32, 1),
        "template": field("tokenizer.chat_template", STRING, TEMPLATE),
        **changes,
    }
    return [content for content in fields.values() if content is not None]


def llama_fields(config: LlamaConfig | MixtralConfig, **changes: bytes | None) -> list[bytes]:
    """Metadata of a model; `changes` replace, add or (None) drop fields by the last name."""
    fields = {
        "architecture": field("general.architecture", STRING, "llama"),
        "vocab_size": field("llama.vocab_size", U32, config.vocab_size),
        "embedding_length": field("llama.embedding_length", U32, config.width),
        "block_count": field("llama.block_count", U32, config.num_layers),
        "head_count": field("llama.attention.head_count", U32, config.num_heads),
        "head_count_kv": field("llama.attention.head_count_kv", U32, config.num_kv_heads),
        "key_length": field("llama.attention.key_length", U32, config.head_size),
        "value_length": field("llama.attention.value_length", U32, config.head_size),
        "feed_forward_length": field("llama.feed_forward_length", U32, config.mlp_width),
        "context_length": field("llama.context_length", U32, config.max_context),
        "freq_base": field("llama.rope.freq_base", F32, config.rope_theta),
        "epsilon": field("llama.attention.layer_norm_rms_epsilon", F32, config.norm_eps),
        "experts": field("llama.expert_count", U32, getattr(config, "num_experts", 0)),
        "chosen": field("llama.expert_used_count", U32, getattr(config, "num_chosen", 0)),
        **changes,
    }
    return [content for content in fields.values() if content is not None]


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head as files have them: first of each half, second of each half, ..."""
    size = rows.shape[0] // num_heads
    order = [
        head * size + half * size // 2 + index
        for head in range(num_heads)
        for index in range(size // 2)
        for half in range(2)
    ]
    return rows[order]


def llama_tensors(
    config: LlamaConfig | MixtralConfig, *, seed: int = 0, single: bool = False
) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors by file name, in the file's row order, and the parameters they came from; `single`
    experts have a tensor each."""
    params = init_params(config, seed=seed)
    tensors = {}
    for path in flat_shapes(abstract_params(config)):
        leaf: Any = params
        for key in path:
            leaf = leaf[key]
        rows = np.asarray(leaf, np.float32)
        if path[-1] == "query":
            rows = interleaved(rows, config.num_heads)
        elif path[-1] == "key":
            rows = interleaved(rows, config.num_kv_heads)
        layer = f"blk.{path[1]}" if path[0] == "layers" else ""
        held = [f"{layer}.ffn_{name}.0.weight" for name in ("gate", "up", "down")]
        names = tensor_names(held if single else (), config, path)
        tensors.update(zip(names, rows if len(names) > 1 else [rows], strict=True))
    return tensors, params


def float_tensors(tensors: dict[str, np.ndarray]) -> tuple[list[bytes], bytes]:
    """Infos and data of float32 tensors, each at a multiple of 32 bytes."""
    infos, data = [], b""
    for name, values in tensors.items():
        data += b"\0" * (-len(data) % 32)
        infos.append(tensor_info(name, values.shape[::-1], TYPE_F32, len(data)))
        data += values.tobytes()
    return infos, data


TINY = LlamaConfig(
    vocab_size=len(VOCABULARY),
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    mlp_width=24,
    max_context=32,
    tied=True,
)
TINY_EXPERTS = MixtralConfig(
    vocab_size=len(VOCABULARY),
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    mlp_width=24,
    max_context=32,
    num_experts=3,
    num_chosen=2,
)


def llama_file(
    config: LlamaConfig | MixtralConfig = TINY, *, single: bool = False, **changes: bytes | None
) -> bytes:
    """A whole model: sizes, tokenizer, chat template and weights."""
    infos, data = float_tensors(llama_tensors(config, single=single)[0])
    return file_bytes(llama_fields(config, **changes) + tokenizer_fields(), infos, data)
