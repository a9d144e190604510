"""Llama and Mixtral out of a GGUF file: sizes from the metadata, parameters by name.

Files of architecture `llama` (a Mixtral is one with experts) store the rows of query and key
weights with the two halves of each head interleaved (llama.cpp rotates neighbours); our rotary
embedding pairs the halves, so those rows are put back in order here. Of a scaling of rotary
frequencies they have only what each frequency is divided by.
"""

import math
import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gimlax.errors import SpecError
from gimlax.models.decoder import DecoderConfig, DType, Params, abstract_params
from gimlax.models.gguf import Gguf, read_gguf
from gimlax.models.leaves import (
    Held,
    Index,
    KeyPath,
    Leaf,
    ModelFiles,
    Progress,
    check_fit,
    flat_shapes,
    leaf_of,
    read_leaves,
    read_tree,
    wanted_tensors,
)
from gimlax.models.llama import LlamaConfig, RopeScaling
from gimlax.models.manifest import verified
from gimlax.models.mixtral import MixtralConfig

LAYER_NAMES: dict[KeyPath, str] = {
    ("attention_norm", "scale"): "attn_norm",
    ("attention", "query"): "attn_q",
    ("attention", "key"): "attn_k",
    ("attention", "value"): "attn_v",
    ("attention", "output"): "attn_output",
    ("mlp_norm", "scale"): "ffn_norm",
    ("mlp", "gate"): "ffn_gate",
    ("mlp", "up"): "ffn_up",
    ("mlp", "down"): "ffn_down",
    ("mlp", "router"): "ffn_gate_inp",
}
MODEL_NAMES: dict[KeyPath, str] = {
    ("embed",): "token_embd.weight",
    ("norm", "scale"): "output_norm.weight",
    ("head",): "output.weight",
}
EXPERTS = ("gate", "up", "down")
FREQUENCIES = "rope_freqs.weight"
# What Llama 3.1 and 3.2 have; files keep the result for each frequency, not what it follows from.
LOW, HIGH, ORIGINAL_CONTEXT = 1.0, 4.0, 8192


def llama_config(gguf: Gguf, *, dtype: DType = "float32") -> LlamaConfig | MixtralConfig:
    """Sizes of the model in `gguf`, with parameters, computation and cache in `dtype`.

    Raises `SpecError` for another architecture, and for a variant that is not computed.
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
        "llama.rope.dimension_count": (size("rope.dimension_count", head_size), head_size),
        "llama.attention.value_length": (size("attention.value_length", head_size), head_size),
        "llama.rope.scaling.type": (scaling, "none"),
    }
    faults = [
        f"{key} is {had!r}, only {can!r} is" for key, (had, can) in only.items() if had != can
    ]
    if faults:
        raise SpecError(f"'{gguf.path}' needs what is not supported: {'; '.join(faults)}")
    num_layers, num_experts = size("block_count"), size("expert_count", 0)
    if num_layers * 9 > len(gguf.tensors):  # also bounds what follows
        raise SpecError(
            f"'{gguf.path}' announces {num_layers} layers and has {len(gguf.tensors)} tensors, "
            "fewer than 9 a layer"
        )
    single = "blk.0.ffn_gate.0.weight" in gguf.tensors  # a tensor for each expert
    if single and num_layers * num_experts * len(EXPERTS) > len(gguf.tensors):
        raise SpecError(
            f"'{gguf.path}' announces {num_experts} experts in {num_layers} layers and has"
            f" {len(gguf.tensors)} tensors"
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
    rope = rope_scaling(gguf, head_size, sizes["rope_theta"])
    try:
        if not num_experts:
            return LlamaConfig(**sizes, rope_scaling=rope).with_dtype(dtype)
        if rope is not None:
            raise SpecError("it scales rotary frequencies, which a Mixtral does not")
        chosen = size("expert_used_count")
        config = MixtralConfig(**sizes, num_experts=num_experts, num_chosen=chosen)
        return config.with_dtype(dtype)
    except SpecError as error:
        raise SpecError(f"'{gguf.path}': {error}") from error


def rope_scaling(gguf: Gguf, head_size: int, theta: float) -> RopeScaling | None:
    """The scaling whose divisors are those of the file.

    Raises `SpecError` if they are of no scaling that Llama has.
    """
    info = gguf.tensors.get(FREQUENCIES)
    if info is None:
        return None
    half = head_size // 2
    if info.shape != (half,):
        raise SpecError(
            f"'{gguf.path}': ({FREQUENCIES}) has shape {info.shape}, the heads need {(half,)}"
        )
    divisors = gguf.dequantize(FREQUENCIES)
    found = RopeScaling(
        factor=float(divisors.max()),
        low_freq_factor=LOW,
        high_freq_factor=HIGH,
        original_context=ORIGINAL_CONTEXT,
    )
    turns = ORIGINAL_CONTEXT * theta ** (-np.arange(half) / half) / (2 * np.pi)
    kept = np.clip((turns - LOW) / (HIGH - LOW), 0, 1)
    expected = 1 / (kept + (1 - kept) / found.factor) if found.factor > 0 else np.zeros(half)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise SpecError(
            f"'{gguf.path}': ({FREQUENCIES}) divides rotary frequencies in another way than"
            " Llama 3.1 and 3.2 do, which is not supported"
        )
    return found


def tensor_names(held: Container[str], config: DecoderConfig, path: KeyPath) -> tuple[str, ...]:
    """Names of the tensors in which a file that has `held` keeps the parameter at `path`: one, or
    one an expert, as older files have it."""
    if path[0] != "layers":
        return (MODEL_NAMES[path],)
    layer, own = f"blk.{path[1]}", path[2:]
    name = f"{layer}.{LAYER_NAMES[own]}"
    if not isinstance(config, MixtralConfig) or own[0] != "mlp" or own[1] not in EXPERTS:
        return (f"{name}.weight",)
    if f"{name}.0.weight" in held:
        return tuple(f"{name}.{n}.weight" for n in range(config.num_experts))
    return (f"{name}_exps.weight",)


def open_gguf(source: str | os.PathLike[str] | Gguf, *, dtype: DType = "float32") -> ModelFiles:
    """The model in a GGUF file, with parameters, computation and cache in `dtype`.

    Raises `SpecError` for every fault of the file but those of numbers, which nobody has read yet.
    """
    gguf = source if isinstance(source, Gguf) else read_gguf(source)
    config = llama_config(gguf, dtype=dtype)
    return ModelFiles(config=config, leaves=_leaves(gguf, config))


def _leaves(gguf: Gguf, config: DecoderConfig) -> tuple[Leaf, ...]:
    shapes = flat_shapes(abstract_params(config))
    names = {path: tensor_names(gguf.tensors, config, path) for path in shapes}
    wanted = [w for path, shape in shapes.items() for w in wanted_tensors(path, shape, names[path])]
    held = {
        name: Held(shape=info.shape, dtype=info.quantization) for name, info in gguf.tensors.items()
    }
    check_fit(f"'{gguf.path}'", wanted, held, lambda name: name == FREQUENCIES)
    for want in wanted:
        gguf.check_quantization(want.name)
    heads = {"query": config.num_heads, "key": config.num_kv_heads}

    def read(path: KeyPath) -> Callable[[str, Index], np.ndarray]:
        def one(name: str, index: Index) -> np.ndarray:
            *dims, _ = shape = gguf.tensors[name].shape
            if not dims:
                return gguf.dequantize(name, config.param_dtype)[index]
            order = np.arange(math.prod(dims)).reshape(*dims, 1)
            if path[-1] in heads:
                order = paired_halves(order, heads[path[-1]])
            wanted = order[index[:-1] if len(index) == len(shape) else index]
            values = gguf.dequantize(name, config.param_dtype, wanted.ravel())
            values = values.reshape(*wanted.shape[:-1], shape[-1])
            return values[..., index[-1]] if len(index) == len(shape) else values

        return one

    return tuple(
        leaf_of(
            path,
            shape,
            names[path],
            read(path),
            gguf.drop,
            dtype=np.dtype(config.param_dtype),
            num_bytes=sum(gguf.tensors[name].num_bytes for name in names[path]),
        )
        for path, shape in shapes.items()
    )


def iter_llama(
    gguf: Gguf, config: DecoderConfig, *, progress: Progress | None = None
) -> Iterator[tuple[KeyPath, np.ndarray]]:
    """Yields (key path, array in `config.param_dtype`) of every parameter, read one by one.

    Everything that can be checked without reading weights is checked before the first one.
    `progress(done_bytes, total_bytes)`, in bytes of the file, is called after each.
    """
    yield from read_leaves(_leaves(gguf, config), progress)


def paired_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of interleaved pairs (0, half, 1, half + 1, ...) of each head back in plain order."""
    per_head = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(rows.shape)


def load_llama(
    source: str | os.PathLike[str] | Gguf,
    *,
    dtype: DType = "float32",
    verify: bool = True,
    progress: Progress | None = None,
) -> tuple[DecoderConfig, Params]:
    """The model in a GGUF file: its config and its parameters as numpy arrays of `dtype`.

    The arrays live in host memory: place them on devices (`Executable.place`, `jax.device_put`)
    before calling the model many times. Raises `SpecError` for every fault of the file;
    with `verify`, its folder is compared with the manifest, if there is one, before.
    """
    if verify:
        path = source.path if isinstance(source, Gguf) else Path(source)
        progress = verified([path.parent], progress)
    found = open_gguf(source, dtype=dtype)
    return found.config, read_tree(found.leaves, progress)
