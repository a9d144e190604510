"""Equations that are not run as they are written, because of what a mesh is or can do.

A layer of experts is written so that it runs everywhere. On a backend with a kernel for products in
groups it runs by that. Where a mesh holds its experts, or the inside of each, in parts, no compiler
would find out by itself that each device needs its own part alone: which rows go where is data. So
each device is told what to do (`shard_map`), and the parts are summed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gimlax import _jax, experts
from gimlax.graph.routing import is_expert_layer
from gimlax.partition.flattening import Step
from gimlax.partition.groups import Group, Split
from gimlax.partition.specs import partition_spec

__all__ = ["Mesh", "bind_step", "evaluate", "run_in_parts"]

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
_GATE = 3  # its place among the operands of a layer of experts


def bind_step(eqn: _jax.JaxprEqn, inputs: Sequence[Any], *, grouped: bool) -> list[Any]:
    """The outputs of an equation; with `grouped` those of experts by products in groups."""
    if grouped and is_expert_layer(eqn):
        return [experts.ragged(*inputs)]
    return _jax.bind(eqn, inputs)


def evaluate(closed: _jax.ClosedJaxpr, *, grouped: bool) -> Callable[..., list[Any]]:
    """A callable that evaluates `closed` on flat inputs; `grouped` as in `bind_step`."""
    if not grouped or not any(map(is_expert_layer, closed.jaxpr.eqns)):
        return _jax.evaluate(closed)

    def run(*inputs: Any) -> list[Any]:
        env: dict[_jax.Var, Any] = {}
        env.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(closed.jaxpr.invars, inputs, strict=True))

        def read(atom: _jax.Atom) -> Any:
            return env[atom] if isinstance(atom, _jax.Var) else atom.val

        for eqn in closed.jaxpr.eqns:
            outputs = bind_step(eqn, [read(atom) for atom in eqn.invars], grouped=grouped)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    return run


def run_in_parts(
    step: Step, inputs: Sequence[Any], group: Group, splits: Mapping[str, Split], mesh: Mesh
) -> Any:
    """The result of a layer of experts that is split, each device told its part.

    Args:
        step: the layer, alone in its group.
        inputs: its operands.
        group: that of the step.
        splits: by axis.
        mesh: with these axes.
    """
    (made,) = step.outputs
    gate = step.inputs[_GATE]
    assert gate is not None
    axes = [axis for axis in mesh.axis_names if axis in splits]
    by_expert = [axis for axis in axes if group.dim(gate, splits[axis].label) == 0]

    def spec(value: int | None, rank: int, dim_of: Callable[[str, int], int | None]) -> Any:
        if value is None:
            return jax.sharding.PartitionSpec()
        dims = {axis: dim_of(axis, value) for axis in axes}
        of_dims = (tuple(axis for axis in axes if dims[axis] == dim) for dim in range(rank))
        return partition_spec(tuple(of_dims))

    def one(*local: Any) -> Any:
        block: Any = 0
        for axis in by_expert:
            block = block * mesh.shape[axis] + jax.lax.axis_index(axis)
        total = experts.part(*local, first=block * len(local[_GATE]))
        for axis in axes:
            if made not in splits[axis].sums:
                continue
            dim = group.after(splits[axis], made)
            if dim is None:
                total = jax.lax.psum(total, axis)
            else:
                total = jax.lax.psum_scatter(total, axis, scatter_dimension=dim, tiled=True)
        return total

    return jax.shard_map(
        one,
        mesh=mesh,
        in_specs=tuple(
            spec(value, x.ndim, lambda axis, v: group.before(splits[axis], v))
            for value, x in zip(step.inputs, inputs, strict=True)
        ),
        out_specs=spec(made, 2, lambda axis, v: group.after(splits[axis], v)),
        check_vma=False,
    )(*inputs)
