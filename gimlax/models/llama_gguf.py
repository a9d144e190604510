"""Llama out of a GGUF file: its sizes from the metadata, its parameters by name.

Files of architecture `llama` store the rows of query and key weights with the two halves of each
head interleaved (llama.cpp rotates neighbours); our rotary embedding pairs the halves, so those
rows are put back in order here.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.models.decoder import DType, Params, abstract_params
from gimlax.models.gguf import Gguf, read_gguf
from gimlax.models.llama import LlamaConfig

KeyPath = tuple[str | int, ...]
Progress = Callable[[int, int], None]

LAYER_NAMES = {
    ("attention_norm", "scale"): "attn_norm",
    ("attention", "query"): "attn_q",
    ("attention", "key"): "attn_k",
    ("attention", "value"): "attn_v",
    ("attention", "output"): "attn_output",
    ("mlp_norm", "scale"): "ffn_norm",
    ("mlp", "gate"): "ffn_gate",
    ("mlp", "up"): "ffn_up",
    ("mlp", "down"): "ffn_down",
}
MODEL_NAMES = {
    ("embed",): "token_embd.weight",
    ("norm", "scale"): "output_norm.weight",
    ("head",): "output.weight",
}
MAX_LISTED = 10


def llama_config(gguf: Gguf, *, dtype: DType = "float32") -> LlamaConfig:
    """Sizes of the Llama in `gguf`, with parameters, computation and cache in `dtype`.

    Raises `SpecError` for another architecture, and for a variant that `Llama` does not compute.
    """
    architecture = gguf.field("general.architecture", str)
    if architecture != "llama":
        raise SpecError(
            f"'{gguf.path}' holds a model of architecture '{architecture}'; only 'llama' can be "
            "loaded"
        )

    def size(name: str, default: int | None = None) -> int:
        return gguf.field(f"llama.{name}", int, default)

    width, num_heads = size("embedding_length"), size("attention.head_count")
    head_size = size("attention.key_length", width // num_heads if num_heads else 0)
    scaling = gguf.field("llama.rope.scaling.type", str, "none")
    only = {
        "llama.expert_count": (size("expert_count", 0), 0),
        "llama.rope.dimension_count": (size("rope.dimension_count", head_size), head_size),
        "llama.attention.value_length": (size("attention.value_length", head_size), head_size),
        "llama.rope.scaling.type": (scaling, "none"),
    }
    faults = [
        f"{key} is {had!r}, only {can!r} is" for key, (had, can) in only.items() if had != can
    ]
    if faults:
        raise SpecError(f"'{gguf.path}' needs what is not supported: {'; '.join(faults)}")
    num_layers = size("block_count")
    if num_layers * len(LAYER_NAMES) > len(gguf.tensors):  # also bounds what follows
        raise SpecError(
            f"'{gguf.path}' announces {num_layers} layers and has {len(gguf.tensors)} tensors, "
            f"fewer than {len(LAYER_NAMES)} a layer"
        )
    embed = gguf.tensors.get("token_embd.weight")
    sizes: dict[str, Any] = {
        "vocab_size": size("vocab_size", embed.shape[0] if embed else None),
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": size("attention.head_count_kv", num_heads),
        "head_size": head_size,
        "mlp_width": size("feed_forward_length"),
        "max_context": size("context_length"),
        "rope_theta": gguf.field("llama.rope.freq_base", float, 10000.0),
        "norm_eps": gguf.field("llama.attention.layer_norm_rms_epsilon", float),
        "tied": "output.weight" not in gguf.tensors,
    }
    try:
        return LlamaConfig(**sizes).with_dtype(dtype)
    except SpecError as error:
        raise SpecError(f"'{gguf.path}': {error}") from error


def tensor_name(path: KeyPath) -> str:
    """The name that a GGUF file gives to the parameter at `path`."""
    if path[0] == "layers":
        return f"blk.{path[1]}.{LAYER_NAMES[path[2:]]}.weight"  # type: ignore[index]
    return MODEL_NAMES[path]  # type: ignore[index]


def flat_shapes(config: LlamaConfig) -> dict[KeyPath, tuple[int, ...]]:
    """Shape of each parameter by key path."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def check_fit(gguf: Gguf, shapes: dict[KeyPath, tuple[int, ...]]) -> None:
    """Raises one `SpecError` with up to ten parameters that file and model have differently."""
    faults = []
    names = {tensor_name(path): path for path in shapes}
    for name, path in names.items():
        info = gguf.tensors.get(name)
        if info is None or info.shape != shapes[path]:
            had = info.shape if info else "nothing"
            where = "".join(f"[{key!r}]" for key in path)
            faults.append(f"{where} ({name}): model {shapes[path]}, file {had}")
    faults += [
        f"({name}): model nothing, file {info.shape}"
        for name, info in gguf.tensors.items()
        if name not in names
    ]
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise SpecError(
            f"'{gguf.path}': weights do not fit the model: {'; '.join(faults[:MAX_LISTED])}{more}"
        )


def iter_llama(
    gguf: Gguf, config: LlamaConfig, *, progress: Progress | None = None
) -> Iterator[tuple[KeyPath, np.ndarray]]:
    """Yields (key path, array in `config.param_dtype`) of every parameter, read one by one.

    Everything that can be checked without reading weights is checked before the first one.
    `progress(done_bytes, total_bytes)`, in bytes of the file, is called after each.
    """
    shapes = flat_shapes(config)
    check_fit(gguf, shapes)
    names = {path: tensor_name(path) for path in shapes}
    for name in names.values():
        gguf.check_quantization(name)
    total_bytes = sum(gguf.tensors[name].num_bytes for name in names.values())
    done_bytes = 0
    for path, name in names.items():
        values = gguf.dequantize(name, config.param_dtype)
        if path[-1] == "query":
            values = paired_halves(values, config.num_heads)
        elif path[-1] == "key":
            values = paired_halves(values, config.num_kv_heads)
        yield path, values
        done_bytes += gguf.tensors[name].num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)


def paired_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of interleaved pairs (0, half, 1, half + 1, ...) of each head back in plain order."""
    per_head = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(rows.shape)


def load_llama(
    source: str | os.PathLike[str] | Gguf,
    *,
    dtype: DType = "float32",
    progress: Progress | None = None,
) -> tuple[LlamaConfig, Params]:
    """The Llama in a GGUF file: its config and its parameters as numpy arrays of `dtype`.

    The arrays live in host memory: place them on devices (`Executable.place`, `jax.device_put`)
    before calling the model many times. Raises `SpecError` for every fault of the file.
    """
    gguf = source if isinstance(source, Gguf) else read_gguf(source)
    config = llama_config(gguf, dtype=dtype)
    params: dict[str | int, Any] = {}
    for path, values in iter_llama(gguf, config, progress=progress):
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = values
    return config, params  # type: ignore[return-value]
