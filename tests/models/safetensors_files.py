"""Writes small safetensors files and folders for tests, sound and others: nothing is checked."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gimlax.models import LlamaConfig, MixtralConfig, abstract_params, init_params
from gimlax.models.decoder_files import LLAMA
from gimlax.models.leaves import flat_shapes

NAMES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
}


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A header, as an object or as text, and what follows it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def head_of(header: dict[str, Any]) -> bytes:
    """A header alone, for a file whose data are somewhere else."""
    return file_of(header)


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def tensors_file(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.tobytes()
        kind = NAMES[values.dtype.name]
        header[name] = entry(kind, list(values.shape), len(data), len(data) + len(raw))
        data += raw
    return file_of(header, data)


def config_of(config: LlamaConfig | MixtralConfig, **changes: Any) -> dict[str, Any]:
    """A config.json; `changes` replace, add or (None) drop keys."""
    found: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }
    if isinstance(config, MixtralConfig):
        found |= {
            "model_type": "mixtral",
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_chosen,
            "sliding_window": config.sliding_window,
        }
    return {key: value for key, value in (found | changes).items() if value is not None}


def tensors_of(config: LlamaConfig | MixtralConfig) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors by the names of Hugging Face, and the parameters that they came from."""
    params = init_params(config)
    tensors = {}
    for path in flat_shapes(abstract_params(config)):
        leaf: Any = params
        for key in path:
            leaf = leaf[key]
        names = LLAMA.names(config, path)
        values = np.asarray(leaf)
        tensors.update(zip(names, values if len(names) > 1 else [values], strict=True))
    return tensors, params


def write_folder(
    folder: Path,
    config: dict[str, Any],
    shards: dict[str, dict[str, np.ndarray]],
    *,
    index: dict[str, str] | None = None,
) -> Path:
    """A config and files by name, with an index where one is given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in shards.items():
        (folder / name).write_bytes(tensors_file(tensors))
    if index is not None:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder
