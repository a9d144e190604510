"""Any file or folder that holds parameters, opened as the tree that somebody wants to place.

What it is follows from what is in it, not from its name: a folder with a config.json is one of
Hugging Face, one with a model_index.json is one of diffusers, a file that starts with `GGUF` is one
of those; else tensors go by the key paths of the tree, joined by dots, as `write_tree` writes them.
Nothing is read here but headers.
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.lazy import LazyArray
from gimlax.models.checkpoint import read_checkpoint, read_json
from gimlax.models.decoder import DType
from gimlax.models.diffusers import INDEX, open_stable_diffusion, part_folders
from gimlax.models.gguf import MAGIC
from gimlax.models.huggingface import CONFIG, family_of, open_huggingface
from gimlax.models.leaves import (
    Held,
    KeyPath,
    Leaf,
    ModelFiles,
    Progress,
    Wanted,
    check_fit,
    exact,
    flat_paths,
    leaf_of,
    name_of,
)
from gimlax.models.llama_gguf import open_gguf
from gimlax.models.manifest import verified
from gimlax.models.orbax_files import is_orbax, orbax_leaves
from gimlax.models.replacing import standing

__all__ = ["is_gguf", "open_model", "open_tree", "stored_leaves"]

COMPUTED: tuple[DType, ...] = ("float32", "bfloat16", "float16")


def open_tree(
    path: str | os.PathLike[str],
    shapes: Any,
    *,
    verify: bool = True,
    progress: Progress | None = None,
) -> Any:
    """The parameters at `path` as a tree of `LazyArray`s.

    Args:
        path: a folder of Hugging Face or diffusers, a GGUF file, a checkpoint of Orbax, a
            safetensors file or folder with tensors called by key path.
        shapes: the tree of shapes and dtypes that is wanted. Floats of any kind become those.
        verify: whether files are compared with their manifest, if there is one, before.
        progress: called with bytes of the files that were read, and all that may be, after each
            read; comparing counts, too.

    Raises:
        SpecError: there is nothing that can be read, it is not sound, or it does not fit; lists up
            to ten parameters with both shapes.
    """
    path = standing(Path(path))
    if verify:
        progress = verified(_folders(path), progress)
    wanted = flat_paths(shapes)
    _check_names(path, [of for of, _ in wanted])
    leaves = _leaves(path, wanted)
    fitting = _fitting(path, wanted, leaves)
    total_bytes = sum(leaf.num_bytes for leaf in leaves.values())
    counted = _Counted(progress, total_bytes)
    found = [
        LazyArray(
            shape=aval.shape,
            dtype=aval.dtype,
            read=functools.partial(counted.read, leaf, aval.dtype),
        )
        for (_, aval), (_, leaf) in zip(wanted, fitting, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def stored_leaves(path: Path) -> dict[str, Leaf]:
    """What lies at `path` by the names that it has there: safetensors, or a checkpoint of Orbax.

    Raises:
        SpecError: it is neither, or not sound.
    """
    if is_orbax(path):
        arrays = orbax_leaves(path)
        _check_names(path, [leaf.path for leaf in arrays])
        return {name_of(leaf.path): leaf for leaf in arrays}
    checkpoint = read_checkpoint(path)
    return {
        name: leaf_of(
            (name,),
            checkpoint[name].shape,
            [name],
            checkpoint.read,
            checkpoint.drop,
            dtype=checkpoint[name].numpy,
            num_bytes=checkpoint[name].num_bytes,
        )
        for name in checkpoint.files
    }


class _Counted:
    """Counts bytes of files as parameters are read; each counts once, whoever reads it."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes: Counter[int] = Counter()
        self._last: Leaf | None = None

    def read(self, leaf: Leaf, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        if self._last is not None and self._last is not leaf:
            self._last.drop()  # whoever asks for the next has placed it
        self._last = leaf
        part = leaf.read(index).astype(dtype, copy=False)
        share = part.size / max(1, np.prod(leaf.shape))
        done = self._done_bytes[id(leaf)] + round(leaf.num_bytes * share)
        self._done_bytes[id(leaf)] = min(leaf.num_bytes, done)
        if self._progress is not None:
            self._progress(sum(self._done_bytes.values()), self._total_bytes)
        return part


def open_model(path: Path, *, dtype: DType = "float32") -> ModelFiles:
    """The model at `path`: a GGUF file, a folder of Hugging Face or diffusers, or the checkpoint
    of Orbax that `convert` makes of one.

    Raises:
        SpecError: nothing there says which model it is, or it is not sound.
    """
    if (model := model_at(path)) is not None:
        return model(path, dtype=dtype)
    if not (path / CONFIG).is_file() or not is_orbax(path):
        raise SpecError(
            f"'{path}' holds arrays, and no {CONFIG} that says of which model; give a folder of"
            " Hugging Face or diffusers, a GGUF file, or what scripts/convert.py made of one"
        )
    family, config = family_of(path / CONFIG, read_json(path / CONFIG, "config"), dtype)
    shapes = family.params(config)
    leaves = _fitting(path, flat_paths(shapes), stored_leaves(path))
    target = np.dtype(jax.numpy.dtype(dtype))
    return ModelFiles(
        config=config,
        leaves=tuple(
            dataclasses.replace(
                leaf,
                path=of,
                dtype=target,
                read=lambda index, read=leaf.read: read(index).astype(target, copy=False),
            )
            for of, leaf in leaves
        ),
    )


def model_at(path: Path) -> Callable[..., ModelFiles] | None:
    """What opens the model at `path`; None if arrays go by key path there."""
    if is_gguf(path):
        return open_gguf
    if ((path.parent if path.is_file() else path) / CONFIG).is_file() and not is_orbax(path):
        return open_huggingface
    return open_stable_diffusion if (path / INDEX).is_file() else None


def _fitting(
    path: Path, wanted: Sequence[tuple[KeyPath, Any]], leaves: Mapping[str, Leaf]
) -> list[tuple[KeyPath, Leaf]]:
    """The leaf of each parameter; refuses files that have others."""
    needs = [
        Wanted(name=name_of(of), path=of, shape=aval.shape, dtype=exact(aval.dtype))
        for of, aval in wanted
    ]
    held = {
        name: Held(shape=leaf.shape, dtype=str(leaf.dtype), numpy=leaf.dtype)
        for name, leaf in leaves.items()
    }
    check_fit(f"'{path}'", needs, held)
    return [(of, leaves[name_of(of)]) for of, _ in wanted]


def _leaves(path: Path, wanted: Sequence[tuple[KeyPath, Any]]) -> dict[str, Leaf]:
    """The parameters at `path` by name; those of a model are opened once for each dtype that is
    wanted, so that none is converted by way of another."""
    if (model := model_at(path)) is None:
        return stored_leaves(path)
    dtypes = {name_of(of): _computed(aval.dtype) for of, aval in wanted}
    used = set(dtypes.values()) or {COMPUTED[0]}
    opened = {
        dtype: {name_of(leaf.path): leaf for leaf in model(path, dtype=dtype).leaves}
        for dtype in COMPUTED
        if dtype in used
    }
    first = next(iter(opened))
    return {name: opened[dtypes.get(name, first)][name] for name in opened[first]}


def _folders(path: Path) -> list[Path]:
    """The folders at `path` that may have a manifest."""
    if (path / INDEX).is_file():
        return [path, *part_folders(path)]
    return [path if path.is_dir() else path.parent]


def _check_names(path: Path, paths: Sequence[KeyPath]) -> None:
    """Refuses parameters of which two go by one name."""
    for name, number in Counter(map(name_of, paths)).items():
        if number > 1:
            raise SpecError(
                f"'{path}': {number} parameters go by the name {name!r} here; rename a key of the"
                " tree"
            )


def _computed(dtype: np.dtype) -> DType:
    """The dtype in which a model is opened for a parameter that is wanted in this one."""
    return cast(DType, dtype.name if dtype.name in COMPUTED else COMPUTED[0])


def is_gguf(path: Path) -> bool:
    """Whether a file starts as those of GGUF do; raises `SpecError` if it cannot be read."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise SpecError(f"'{path}' cannot be read: {error.strerror or error}") from error
