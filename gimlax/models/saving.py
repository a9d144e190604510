"""Trees of parameters into files, in one of two formats, each with a manifest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from gimlax.errors import BackendError, SpecError
from gimlax.lazy import LazyArray, passing
from gimlax.models.leaves import Progress, counting, flat_paths, name_of
from gimlax.models.manifest import write_manifest
from gimlax.models.orbax_files import write_orbax
from gimlax.models.replacing import replacing
from gimlax.models.writing import SHARD_BYTES, Named, check_names, write_folder

__all__ = ["save_tree"]


def save_tree(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    format: str = "safetensors",
    beside: Mapping[str, bytes] = MappingProxyType({}),
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Saves a tree of arrays, `LazyArray`s among them; see `gimlax.save`.

    `beside` are other files by name; `shard_bytes` is what a file of safetensors may have, unless
    one array has more.
    """
    if format not in ("safetensors", "orbax"):
        raise SpecError(f"format is {format!r}, and there are 'safetensors' and 'orbax'")
    named = [
        Named(name=name_of(of), array=_lazy(name_of(of), leaf)) for of, leaf in flat_paths(tree)
    ]
    if not named:
        raise SpecError(f"'{path}': there is no array to be saved; give the tree of parameters")
    check_names(of.name for of in named)
    if format == "safetensors":
        write_folder(Path(path), named, beside=beside, shard_bytes=shard_bytes, progress=progress)
    else:
        _write_orbax(Path(path), tree, named, beside, progress)


def _write_orbax(
    path: Path,
    tree: Any,
    named: Sequence[Named],
    beside: Mapping[str, bytes],
    progress: Progress | None,
) -> None:
    empty = [of.name for of in named if not of.array.nbytes]
    if empty:
        raise SpecError(
            f"{empty[0]!r} has no numbers, and Orbax saves no such array; leave it out, or save as"
            " safetensors"
        )
    lazy = jax.tree.unflatten(jax.tree.structure(tree), [of.array for of in named])
    count = counting(progress, sum(of.array.nbytes for of in named))
    with replacing(path) as folder:
        try:
            write_orbax(folder, lazy, count)
        except (OSError, SpecError):
            raise
        except Exception as error:
            raise BackendError(
                f"'{path}' could not be saved by Orbax: {str(error)[:400]}"
            ) from error
        for name, content in beside.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        write_manifest(folder)


def _lazy(name: str, leaf: Any) -> LazyArray:
    """A leaf of any kind, which comes to the host when it is read."""
    if jax.numpy.issubdtype(getattr(leaf, "dtype", np.dtype(float)), jax.dtypes.extended):
        raise SpecError(
            f"{name!r} is of dtype {leaf.dtype}, which files have not; save"
            " jax.random.key_data of it"
        )
    if isinstance(leaf, LazyArray):
        return leaf
    array = leaf if isinstance(leaf, jax.Array | np.ndarray) else np.asarray(leaf)
    if array.dtype == object:
        raise SpecError(f"{name!r} is a {type(leaf).__name__}, not an array; leave it out")
    return LazyArray(
        shape=array.shape, dtype=array.dtype, read=lambda index: np.asarray(passing(array))[index]
    )
