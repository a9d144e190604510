"""`gx.load`: parameters out of files onto the meshes of a compiled plan.

`executable.place(params)` wants arrays, and a host that is to give them has to hold the model.
`load` gives it arrays that nobody has read yet: each device reads what it holds of them, one after
the other, so that the host holds no more than the largest tensor beyond what its own meshes keep.
"""

import os
from collections.abc import Callable
from typing import Any

from gimlax.errors import SpecError
from gimlax.runtime import Executable, Executables

__all__ = ["load"]

Path = str | os.PathLike[str]


def load(
    path: Path | tuple[Path, ...],
    *,
    plan: Executable | Executables,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Loads parameters from files straight onto the meshes of their stages.

    Args:
        path: a folder of Hugging Face (config.json and safetensors, one file or many with an
            index), a GGUF file, or what has tensors called by key path, such as 'layers.0.kernel'.
            A tuple of them where there are several resident arguments.
        plan: the plan as `gx.compile` made it run: it knows which rows each stage reads, and its
            meshes are live. Numbers become those of the dtypes that were traced.
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
        open_tree(of, shapes, progress=progress)
        for of, shapes in zip(paths, plan.resident, strict=True)
    ]
    return plan.place(*trees)
