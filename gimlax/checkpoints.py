"""`gx.load` and `gx.save`: parameters from files onto meshes, and from meshes into files.

`executable.place(params)` wants arrays, and a host that is to give them has to hold the model.
`load` gives it arrays that nobody has read yet: each device reads what it holds of them, one after
the other, so that the host holds no more than the largest tensor beyond what its own meshes keep.
Files stay in use: meshes of the CPU work on them as they are mapped, and workers that take over
read them again.
`save` brings them back one by one.
"""

import os
from collections.abc import Callable
from typing import Any

import jax

from gimlax.checking import check_arguments
from gimlax.errors import SpecError
from gimlax.runtime import Carried, Executable, Executables, Placed, gather

__all__ = ["load", "save"]

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]


def load(
    path: Path | tuple[Path, ...],
    *,
    plan: Executable | Executables,
    verify: bool = True,
    progress: Progress | None = None,
) -> Any:
    """Loads parameters from files straight onto the meshes of their stages.

    Args:
        path: a folder of Hugging Face (config.json and safetensors, one file or many with an
            index) or of diffusers (model_index.json, and a folder for each part), a GGUF file, or
            what has arrays called by key path, such as 'layers.0.kernel': safetensors, or a
            checkpoint of Orbax. A tuple of them where there are several resident arguments. Files
            must not be written into while the parameters are in use: meshes of the CPU work on
            them as they are mapped, and what is read again later is refused. `gimlax.save` writes
            others, so that it may replace safetensors in use; a checkpoint of Orbax it may not.
        plan: the plan as `gx.compile` made it run: it knows which rows each stage reads, and its
            meshes are live. Numbers become those of the dtypes that were traced.
        verify: whether files are compared first with the check sums that `gimlax.save` wrote beside
            them; files without any are read as they are.
        progress: called with the bytes that were read so far, and with all, after each part.

    Returns:
        What `plan.place(params)` returns: a `Placed` for one resident argument, a tuple of them for
        several.

    Raises:
        SpecError: files are not sound, or do not hold what was traced; names up to ten parameters.
        BackendError: a mesh has no room.
    """
    # Models import flax, which takes longer than the rest, and workers never load.
    from gimlax.models.opening import open_tree

    if not isinstance(plan, Executable | Executables):
        raise SpecError(
            f"gimlax.load was given a {type(plan).__name__} as plan, which has no live meshes to"
            " load onto; give what gimlax.compile(plan, ...) returns"
        )
    paths = path if isinstance(path, tuple) else (path,)
    if len(paths) != len(plan.resident):
        raise SpecError(
            f"gimlax.load was given {len(paths)} paths, and there are {len(plan.resident)} resident"
            " arguments; give a tuple with one path for each, in order"
        )
    trees = [
        open_tree(of, shapes, verify=verify, progress=progress)
        for of, shapes in zip(paths, plan.resident, strict=True)
    ]
    return plan.place(*trees)


def save(
    path: Path,
    params: Any,
    *,
    format: str = "safetensors",
    progress: Progress | None = None,
) -> None:
    """Saves parameters as a folder, with a manifest of the sha256 of each file.

    The folder is written beside `path` and takes its place when all of it is on the disk: a save
    that is killed leaves what was there before. One save at a time per path.

    Args:
        path: of the folder; what an earlier save has written there is replaced.
        params: a `Placed`, or a tree of arrays with handles in it. Arrays come to the host one by
            one.
        format: 'safetensors', one file or several with an index, or 'orbax'. Arrays are called by
            their key path in both, so that either can be loaded for any plan of the model.
        progress: called with the bytes that were written so far, and with all, after each array.

    Raises:
        SpecError: an array cannot be written in this format, or a folder is there that no save has
            written.
        BackendError: the disk is full, or may not be written.
    """
    from gimlax.models.saving import save_tree  # see load

    check_arguments("gimlax.save", save, locals())
    save_tree(path, jax.tree.map(_lazily, params), format=format, progress=progress)


def _lazily(leaf: Any) -> Any:
    """A tree whose arrays come to the host when they are read."""
    if isinstance(leaf, Placed):
        return leaf.lazy()
    return gather(leaf) if isinstance(leaf, Carried) else leaf
