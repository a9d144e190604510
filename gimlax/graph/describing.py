"""The sizes of one equation that stands alone: what kind of operation it is, and its dims.

Units: bytes.
"""

import math

import jax

from gimlax import _jax
from gimlax.graph.counting import count, real_dtype
from gimlax.graph.operations import (
    ATTENTION,
    CONVOLUTION,
    GATHER,
    GROUPED,
    MATMUL,
    OTHER,
    SORT,
    Operation,
)

__all__ = ["ATTENTION_NAME", "alone", "chain_dims"]

ATTENTION_NAME = "gimlax.attention"
_Order = tuple[int, ...] | None


def alone(
    eqn: _jax.JaxprEqn, flops: float, resident: tuple[bool, ...], order: tuple[_Order, ...]
) -> Operation:
    """The operation of an equation.

    Args:
        eqn: no elementwise one, no loop.
        flops: its FLOPs.
        resident: which of its operands are parameters.
        order: where an operand is read through a transpose that a product takes along, how that
            permutes dims.
    """
    name = eqn.primitive.name
    operands = [_jax.aval_of(v) for v in eqn.invars]
    out = _jax.aval_of(eqn.outvars[0])
    read = [float(_jax.nbytes(aval)) for aval in operands]
    written = float(sum(_jax.nbytes(_jax.aval_of(v)) for v in eqn.outvars))
    kind, dims, layout = OTHER, (math.prod(out.shape),), ""
    dtype = (operands[0] if operands else out).dtype
    if name == "dot_general":
        kind, dims, layout = _product(eqn, order)
        dtype = max((a.dtype for a in operands), key=lambda d: d.itemsize)
    elif name.startswith("ragged_dot"):
        kind, dims, layout = _grouped(eqn)
        dtype = max((a.dtype for a in operands[:2]), key=lambda d: d.itemsize)
        if kind == GROUPED:  # so many groups at most have a row that asks for their weights
            read[1] *= min(dims[:2]) / max(dims[0], 1)
    elif name == "conv_general_dilated":
        kind, dims = CONVOLUTION, _convolution(eqn)
        dtype = operands[1].dtype
    elif name == "composite":
        kind, dims = ATTENTION, _attention(operands)
    elif name in ("sort", "top_k", "approx_top_k"):
        dim = eqn.params.get("dimension", -1)
        length = operands[0].shape[dim]
        kind, dims = SORT, (math.prod(operands[0].shape) // max(length, 1), length)
    elif name in ("gather", "dynamic_slice", "dynamic_update_slice") or name.startswith("scatter"):
        kind, dims = GATHER, _rows(eqn)
        # Only the rows move, and an index is nothing beside them.
        written = count(eqn).bytes_accessed / 2
        moved = {"dynamic_update_slice": 1, "gather": 0, "dynamic_slice": 0}.get(name, 2)
        read = [written if i == moved else 0.0 for i in range(len(operands))]
        dtype = operands[moved].dtype
    return Operation(
        kind=kind,
        dims=dims,
        dtype=real_dtype(dtype),
        flops=flops,
        bytes_read=sum(read),
        bytes_written=written,
        resident_bytes=sum(size for size, own in zip(read, resident, strict=True) if own),
        layout=layout,
    )


def chain_dims(eqn: _jax.JaxprEqn, *, reduces: bool) -> tuple[int, ...]:
    """Elements that a chain writes; or rows that a reduction keeps and elements in each."""
    size = math.prod(_jax.aval_of(eqn.outvars[0]).shape)
    if not reduces:
        return (size,)
    before = math.prod(_jax.aval_of(eqn.invars[0]).shape)
    return (size, before // max(size, 1))


def _product(
    eqn: _jax.JaxprEqn, order: tuple[_Order, ...]
) -> tuple[str, tuple[int, int, int, int], str]:
    (contract, batch) = eqn.params["dimension_numbers"]
    shapes = [_jax.aval_of(v).shape for v in eqn.invars]
    sizes: list[int] = []
    layout: list[str] = []
    for shape, contracted, shared, free, permutation in zip(
        shapes, contract, batch, "mn", order, strict=True
    ):
        letters = [
            "k" if d in contracted else "b" if d in shared else free for d in range(len(shape))
        ]
        sizes.append(math.prod(s for s, x in zip(shape, letters, strict=True) if x == free))
        if permutation is not None:  # the operand in memory has dim permutation[i] at place i
            before = [""] * len(letters)
            for place, dim in enumerate(permutation):
                before[dim] = letters[place]
            letters = before
        runs = [x for i, x in enumerate(letters) if i == 0 or letters[i - 1] != x]
        layout.append("".join(runs))
    depth = math.prod(shapes[0][d] for d in contract[0])
    groups = math.prod(shapes[0][d] for d in batch[0])
    return MATMUL, (groups, sizes[0], sizes[1], depth), ",".join(layout)


def _grouped(eqn: _jax.JaxprEqn) -> tuple[str, tuple[int, int, int, int], str]:
    """A ragged product: experts where its rows are in groups, else a batch of products."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contract, batch) = numbers.dot_dimension_numbers
    left, right = (_jax.aval_of(v).shape for v in eqn.invars[:2])
    depth = math.prod(left[d] for d in contract[0])
    shared = math.prod(left[d] for d in batch[0])
    rows = math.prod(left) // max(depth * shared, 1)
    if not numbers.rhs_group_dimensions:  # the groups are along what is summed or shared
        return MATMUL, (shared, rows, math.prod(right) // max(depth * shared, 1), depth), ""
    groups = math.prod(right[d] for d in numbers.rhs_group_dimensions)
    columns = math.prod(right) // max(depth * shared * groups, 1)
    return GROUPED, (shared * groups, shared * rows, columns, depth), "mk,gkn"


def _convolution(eqn: _jax.JaxprEqn) -> tuple[int, int, int, int]:
    kernel, out = _jax.aval_of(eqn.invars[1]), _jax.aval_of(eqn.outvars[0])
    numbers = eqn.params["dimension_numbers"]
    depth = math.prod(kernel.shape[d] for d in numbers.rhs_spec[1:])
    groups = eqn.params["feature_group_count"]
    channels = out.shape[numbers.out_spec[1]]
    return groups, math.prod(out.shape) // max(channels, 1), channels // groups, depth


def _attention(operands: list[jax.ShapeDtypeStruct]) -> tuple[int, ...]:
    query, keys = operands[0].shape, operands[1].shape  # [batch, token, head, size] each
    return query[0], query[2], keys[2], query[1], keys[1], query[3]


def _rows(eqn: _jax.JaxprEqn) -> tuple[int, int]:
    name = eqn.primitive.name
    if name == "gather":
        size = math.prod(_jax.aval_of(eqn.outvars[0]).shape)
        row = math.prod(eqn.params["slice_sizes"])
    elif name.startswith("scatter"):
        size = math.prod(_jax.aval_of(eqn.invars[2]).shape)
        window = eqn.params["dimension_numbers"].update_window_dims
        row = math.prod(_jax.aval_of(eqn.invars[2]).shape[d] for d in window)
    else:
        moved = eqn.outvars[0] if name == "dynamic_slice" else eqn.invars[1]
        row = size = math.prod(_jax.aval_of(moved).shape)
    return size // max(row, 1), row
