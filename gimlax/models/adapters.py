"""Flax modules as plain functions of their variables, which is what `gimlax.trace` takes.

Both kinds work on modules without weights (`jax.eval_shape(module.init, ...)`, `nnx.eval_shape`):
planning needs shapes only. What a module changes while it runs has to come out of the function, or
it would be lost without a word:

- Linen: pass `mutable=[...]`; the function then returns (outputs, updates) as `apply` does.
- NNX: `from_nnx` refuses a module that changes a variable (batch statistics, an `nnx.Cache`, the
  counter of a random stream) and names it; `from_stateful_nnx` carries such variables.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from gimlax.errors import TraceError

PyTree = Any


def from_linen(module: linen.Module, **static_kwargs: Any) -> Callable[..., Any]:
    """`module` as `fn(variables, *inputs)`.

    `static_kwargs` go to `module.apply` at every call: `method=...`, `mutable=['batch_stats']`,
    `train=False`.
    """

    def linen_apply(variables: PyTree, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, **static_kwargs)

    linen_apply.__name__ = type(module).__name__
    return linen_apply


def from_nnx(module: nnx.Module) -> tuple[Callable[..., Any], PyTree]:
    """`module` as `fn(variables, *inputs) -> outputs`, and its variables as nested dicts.

    The function raises `TraceError` when a call changes a variable, because the change would be
    lost.
    """
    graphdef, variables = nnx.split(module)

    def nnx_apply(variables: PyTree, *inputs: Any) -> Any:
        merged = nnx.merge(graphdef, variables)
        before = leaves_by_path(variables)
        outputs = merged(*inputs)
        after = leaves_by_path(nnx.to_pure_dict(nnx.state(merged)))
        changed = [path for path, leaf in after.items() if before.get(path) is not leaf]
        if changed:
            raise TraceError(
                f"{type(merged).__name__} changes its variables {', '.join(sorted(changed))} when "
                "called; use gimlax.models.from_stateful_nnx, which carries them"
            )
        return outputs

    nnx_apply.__name__ = type(module).__name__
    return nnx_apply, nnx.to_pure_dict(variables)


def from_stateful_nnx(module: nnx.Module) -> tuple[Callable[..., Any], PyTree, PyTree]:
    """`module` as `fn(params, state, *inputs) -> (outputs, state)`, and its params and state.

    `params` are the variables of type `nnx.Param`, `state` all others, both as nested dicts. Trace
    it with `carried={1: 1}`: the state that comes back replaces the one that went in.
    """
    graphdef, params, state = nnx.split(module, nnx.Param, ...)

    def nnx_apply(params: PyTree, state: PyTree, *inputs: Any) -> tuple[Any, PyTree]:
        merged = nnx.merge(graphdef, params, state)
        outputs = merged(*inputs)
        return outputs, nnx.to_pure_dict(nnx.state(merged, nnx.Not(nnx.Param)))

    nnx_apply.__name__ = type(module).__name__
    return nnx_apply, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves of nested dicts by their key path, e.g. 'layers.0.mean'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}
