"""Checks that what a caller passes is what was traced, and says by key path what is not.

Arrays are compared by shape and dtype only; where they live does not matter here.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gimlax import _jax
from gimlax.errors import TraceError
from gimlax.lazy import LazyArray

_ARRAYS = (jax.Array, np.ndarray, np.generic, LazyArray)
_SHOWN = 10  # mismatches that one message lists


def check_tree(
    name: str,
    tree: Any,
    treedef: Any,
    paths: Sequence[str],
    avals: Sequence[jax.ShapeDtypeStruct],
) -> list[Any]:
    """The leaves of `tree`, if it has the structure, shapes and dtypes that were traced.

    Args:
        name: how messages call the argument.
        tree: what the caller passed.
        treedef: the structure that was traced.
        paths: key path of each leaf.
        avals: shape and dtype of each leaf.

    Raises:
        TraceError: lists up to ten leaves that differ, each with its key path.
    """
    leaves, found = jax.tree.flatten(tree)
    if found != treedef:
        raise TraceError(_structure_message(name, tree, paths, treedef, found))
    wrong = [
        f"{path} is {describe(leaf)}, traced as {describe(aval)}"
        for path, leaf, aval in zip(paths, leaves, avals, strict=True)
        if not fits(leaf, aval)
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise TraceError(f"{name}: {'; '.join(wrong[:_SHOWN])}{more}; {_advice(leaves)}")
    return leaves


def fits(leaf: Any, aval: jax.ShapeDtypeStruct) -> bool:
    """Whether `leaf` is an array or number of this shape and dtype, and no tracer."""
    if isinstance(leaf, _ARRAYS) and not _jax.inside_trace(leaf) and leaf.dtype == aval.dtype:
        return leaf.shape == aval.shape
    if isinstance(leaf, jax.ShapeDtypeStruct) or _jax.inside_trace(leaf):
        return False
    try:
        found = jax.typeof(leaf)
    except TypeError:
        return False
    return found.shape == aval.shape and found.dtype == aval.dtype


def num_bytes(leaf: Any) -> int:
    """Bytes of an array or number."""
    return _jax.nbytes(leaf if isinstance(leaf, LazyArray) else jax.typeof(leaf))


def describe(leaf: Any) -> str:
    """A leaf in words: dtype and shape, or what else it is."""
    if _jax.inside_trace(leaf):
        return f"a tracer ({type(leaf).__name__})"
    if isinstance(leaf, jax.ShapeDtypeStruct | LazyArray):
        return f"{leaf.dtype}{list(leaf.shape)}"
    try:
        found = jax.typeof(leaf)
    except TypeError:
        return f"a {type(leaf).__name__}"
    return f"{found.dtype}{list(found.shape)}"


def _advice(leaves: Sequence[Any]) -> str:
    if any(_jax.inside_trace(leaf) for leaf in leaves):
        return (
            "compiled stages cannot be transformed: call them outside of jit, grad, vmap and scan"
        )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return "pass arrays: shapes are enough to plan, not to run"
    return "pass what was traced, or trace again for these shapes and dtypes"


def _structure_message(name: str, tree: Any, paths: Sequence[str], treedef: Any, found: Any) -> str:
    prefix = paths[0][: len(paths[0]) - len(_keys(treedef)[0])] if paths else ""
    here = {prefix + key for key in _keys(found)}
    missing = [path for path in paths if path not in here]
    extra = sorted(here - set(paths))
    differences = [f"{path} is missing" for path in missing] + [f"{p} is extra" for p in extra]
    if not differences:
        differences = [f"has the tree {found}, traced as {treedef}"]
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    advice = "pass the tree that was traced, a handle of this executable, or trace again"
    return f"{name}: {'; '.join(differences[:_SHOWN])}{more}; {advice}"


def _keys(treedef: Any) -> list[str]:
    tree = jax.tree.unflatten(treedef, range(treedef.num_leaves))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
