"""A model from one format of files into another, array by array.

From GGUF, folders of Hugging Face and checkpoints of Orbax into the last two. What stands beside
the weights of a folder (config.json, tokenizer) goes along, so that a checkpoint of Orbax can
become a folder again; out of GGUF it is written anew from the metadata. Quantised weights become
numbers.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.lazy import LazyArray
from gimlax.models.checkpoint import read_json
from gimlax.models.decoder import DType
from gimlax.models.decoder_files import config_json
from gimlax.models.gguf import read_gguf
from gimlax.models.huggingface import CONFIG, family_of
from gimlax.models.leaves import Leaf, Progress, flat_shapes
from gimlax.models.llama_gguf import llama_config
from gimlax.models.opening import is_gguf, open_tree, stored_leaves
from gimlax.models.replacing import standing
from gimlax.models.saving import save_tree
from gimlax.models.tokenizer import tokenizer_texts
from gimlax.models.writing import Named, write_folder

__all__ = ["convert"]

TARGETS = ("safetensors", "orbax")
MAX_BESIDE_BYTES = 100_000_000
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """What is converted: config.json if it is a model that is known, and files beside."""

    config: Mapping[str, Any] | None
    beside: Mapping[str, bytes]
    lacks: tuple[str, ...] = ()


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str = "safetensors",
    dtype: DType | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Converts the model at `source` into a folder at `target`.

    Args:
        source: a GGUF file, a folder of Hugging Face, a checkpoint of Orbax, or safetensors with
            arrays called by key path.
        target: of the folder; what a save has written there is replaced.
        to: 'safetensors', as transformers reads it if the model is known, or 'orbax'.
        dtype: of all weights; by default float32 where they are quantised, else what they are.
        verify: whether the manifest of `source` is checked, if it has one.
        progress: called with bytes that were written, and all.

    Returns:
        What could not be converted beside the weights, and why.

    Raises:
        SpecError: one of both formats is not supported, or a file is not sound.
        BackendError: the disk is full, or may not be written.
    """
    source, target = standing(Path(source)), Path(target)
    if to not in TARGETS:
        raise SpecError(
            f"gimlax writes {' and '.join(TARGETS)}, not {to!r}"
            + (
                "; for GGUF, write safetensors and use llama.cpp's convert_hf_to_gguf.py"
                * (to == "gguf")
            )
        )
    if target.resolve() == source.resolve():
        raise SpecError(f"'{target}' is what is to be converted; give another path for the result")
    of = _gguf(source) if is_gguf(source) else _folder(source)
    if of.config is None:
        tree = _named(source, dtype, verify)
        save_tree(target, tree, format=to, beside=of.beside, progress=progress)
        return of.lacks
    config = {key: value for key, value in of.config.items() if key != "quantization_config"}
    kind = dtype or _dtype_of(of.config)
    config["torch_dtype"] = kind
    beside = {**of.beside, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    family, sizes = family_of(source / CONFIG, config, kind)
    tree = open_tree(source, family.params(sizes), verify=verify)
    if to == "orbax":
        save_tree(target, tree, format=to, beside=beside, progress=progress)
        return of.lacks
    tensors: list[Named] = []
    for path in flat_shapes(family.params(sizes)):
        array: Any = tree
        for key in path:
            array = array[key]
        names = family.names(sizes, path)
        arrays = [array] if len(names) == 1 else [_row(array, n) for n in range(len(names))]
        tensors += [Named(name=name, array=of) for name, of in zip(names, arrays, strict=True)]
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"  # of diffusers
    write_folder(target, tensors, beside=beside, stem=stem, progress=progress)
    return of.lacks


def _gguf(path: Path) -> _Source:
    file = read_gguf(path)
    config, template = llama_config(file), file.metadata.get("tokenizer.chat_template")
    try:
        texts = tokenizer_texts(file, template if isinstance(template, str) else None)
    except SpecError as error:
        return _Source(config=config_json(config), beside={}, lacks=(f"no tokenizer: {error}",))
    beside = {name: text.encode() for name, text in texts.items()}
    return _Source(config=config_json(config), beside=beside)


def _folder(path: Path) -> _Source:
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return _Source(config=None, beside={})
    beside: dict[str, bytes] = {}
    for name in BESIDE:
        file = folder / name
        if not file.is_file():
            continue
        if file.stat().st_size > MAX_BESIDE_BYTES:
            raise SpecError(f"'{file}' has more than {MAX_BESIDE_BYTES} bytes; leave it out")
        beside[name] = file.read_bytes()
    return _Source(config=read_json(folder / CONFIG, "config"), beside=beside)


def _dtype_of(config: Mapping[str, Any]) -> DType:
    """What the weights of a config are, float32 where they are quantised or it does not say."""
    found = config.get("torch_dtype", config.get("dtype"))
    quantised = config.get("quantization_config")
    known = ("float32", "bfloat16", "float16")
    return cast(DType, found) if found in known and not quantised else "float32"


def _named(path: Path, dtype: DType | None, verify: bool) -> Any:
    """A tree of what lies there by key path, nested again."""
    leaves = stored_leaves(path)
    shapes = _nested(
        {
            name: jax.ShapeDtypeStruct(leaf.shape, _wanted(leaf, dtype))
            for name, leaf in leaves.items()
        }
    )
    return open_tree(path, shapes, verify=verify)


def _wanted(leaf: Leaf, dtype: DType | None) -> Any:
    floats = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return jax.numpy.dtype(dtype) if dtype is not None and floats else leaf.dtype


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *keys, last = name.split(".")
        node: Any = tree
        for key in keys:
            node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node:
            raise SpecError(f"{name!r} is an array inside of another one; rename it")
        node[last] = value
    return tree


def _row(array: LazyArray, number: int) -> LazyArray:
    """One row of an array as an array of its own."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return array.read((slice(number, number + 1), *index))[0]

    return LazyArray(shape=array.shape[1:], dtype=array.dtype, read=read)
