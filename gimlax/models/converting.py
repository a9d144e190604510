"""A model from one format of files into another, array by array.

From GGUF, folders of Hugging Face and checkpoints of Orbax into the last two. What stands beside
the weights of a folder (config.json, tokenizer) goes along, so that a checkpoint of Orbax can
become a folder again; out of GGUF it is written anew from the metadata. Quantised weights become
numbers.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
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
from gimlax.models.diffusers import INDEX
from gimlax.models.families import Family
from gimlax.models.gguf import read_gguf
from gimlax.models.huggingface import CONFIG, family_of, open_huggingface
from gimlax.models.leaves import Leaf, Progress, flat_shapes, name_of
from gimlax.models.llama_gguf import llama_config
from gimlax.models.opening import is_gguf, open_tree, stored_leaves
from gimlax.models.orbax_files import is_orbax
from gimlax.models.replacing import standing
from gimlax.models.saving import save_tree
from gimlax.models.tokenizer import tokenizer_texts
from gimlax.models.writing import Named, write_folder

__all__ = ["convert"]

TARGETS = ("safetensors", "orbax")
KNOWN = ("float32", "bfloat16", "float16")
DROPPED = ("quantization_config", "dtype")  # the latter is what torch_dtype is called since
MAX_BESIDE_BYTES = 100_000_000
BESIDE = (
    "config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",  # of the modules behind the encoder
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
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
        dtype: of all weights; by default float32 where they are quantised, else what each is.
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
    if (source / INDEX).is_file():
        raise SpecError(
            f"'{source}' has a {INDEX}, so it is a folder of diffusers with a model in each part;"
            f" convert each part, such as '{source / 'transformer'}', to a folder of its own"
        )
    of = _gguf(source) if is_gguf(source) else _folder(source)
    if of.config is None:
        tree = _named(source, dtype, verify)
        save_tree(target, tree, format=to, beside=of.beside, progress=progress)
        return of.lacks
    config = {key: value for key, value in of.config.items() if key not in DROPPED}
    kind = dtype or _dtype_of(of.config)
    diffusers = "_class_name" in config  # whose configs name no dtype
    family, sizes = family_of(source / CONFIG, config, kind)
    shapes = family.params(sizes)
    quantised = is_gguf(source) or of.config.get("quantization_config")
    if dtype is None and not quantised:
        shapes = _as_stored(source, family, sizes)
    if not diffusers:
        config["torch_dtype"] = kind if dtype or _says_dtype(of.config) else _most(shapes)
    beside = {**of.beside, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    tree = open_tree(source, shapes, verify=verify)
    others = () if is_gguf(source) or is_orbax(source) else open_huggingface(source).others
    if to == "orbax":
        save_tree(target, tree, format=to, beside=beside, progress=progress)
        return (*of.lacks, *_left_out(others))
    tensors: list[Named] = []
    for path in flat_shapes(family.params(sizes)):
        array: Any = tree
        for key in path:
            array = array[key]
        names = family.names(sizes, path)
        arrays = [array] if len(names) == 1 else [_row(array, n) for n in range(len(names))]
        tensors += [Named(name=name, array=of) for name, of in zip(names, arrays, strict=True)]
    tensors += [Named(name=name_of(leaf.path), array=_lazy(leaf, dtype)) for leaf in others]
    stem = "diffusion_pytorch_model" if diffusers else "model"
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
    for file in (file for name in BESIDE for file in sorted(folder.glob(name))):
        if file.stat().st_size > MAX_BESIDE_BYTES:
            raise SpecError(f"'{file}' has more than {MAX_BESIDE_BYTES} bytes; leave it out")
        beside[file.relative_to(folder).as_posix()] = file.read_bytes()
    return _Source(config=read_json(folder / CONFIG, "config"), beside=beside)


def _as_stored(source: Path, family: Family, sizes: Any) -> Any:
    """Shapes of the parameters, each in the dtype that it has in the files."""
    stored = {name: leaf.dtype for name, leaf in stored_leaves(source).items()}

    def one(keys: Any, leaf: Any) -> Any:
        path = tuple(key.key for key in keys)
        names = [name_of(path)] if is_orbax(source) else family.names(sizes, path)
        found = [stored[name] for name in names if name in stored]
        fits = found and all(dtype.name in KNOWN for dtype in found)
        dtype = functools.reduce(jax.numpy.promote_types, found) if fits else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(one, family.params(sizes))


def _left_out(others: Sequence[Leaf]) -> tuple[str, ...]:
    """What is said of tensors that a checkpoint of Orbax does not get."""
    if not others:
        return ()
    return (
        f"no {name_of(others[0].path)!r}"
        + (f" and {len(others) - 1} other tensors" if len(others) > 1 else "")
        + ", which the model does not need: a checkpoint of Orbax holds its parameters alone",
    )


def _lazy(leaf: Leaf, dtype: DType | None) -> LazyArray:
    """A tensor that goes along, in the dtype that is asked for if it is of floats."""
    wanted = np.dtype(_wanted(leaf, dtype))
    return LazyArray(
        shape=leaf.shape,
        dtype=wanted,
        read=lambda index: leaf.read(index).astype(wanted, copy=False),
    )


def _dtype_of(config: Mapping[str, Any]) -> DType:
    """What the weights of a config are, float32 where they are quantised or it does not say."""
    found = config.get("torch_dtype", config.get("dtype"))
    return cast(DType, found) if _says_dtype(config) else "float32"


def _says_dtype(config: Mapping[str, Any]) -> bool:
    found = config.get("torch_dtype", config.get("dtype"))
    return found in KNOWN and not config.get("quantization_config")


def _most(shapes: Any) -> str:
    """The dtype of most numbers of a tree."""
    sizes: Counter[str] = Counter()
    for leaf in jax.tree.leaves(shapes):
        sizes[leaf.dtype.name] += leaf.size
    return sizes.most_common(1)[0][0]


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
