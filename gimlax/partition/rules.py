"""Which dims of an equation go together: what may be split along a mesh axis, and what it costs.

Each dim of an operand or a result belongs to a *factor*. A factor that operands and results share
can be split: each device then does its share of the equation alone. A factor that is summed over
can be split too, and leaves a partial sum on each device. A dim without a factor has to be whole.
What is not known here has no factors, so it runs replicated: right for every equation, if slow.
Chosen over asking a compiler's propagation, which gives one answer and no price.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gimlax import _jax
from gimlax.graph.counting import CHEAP
from gimlax.graph.routing import is_expert_layer

__all__ = ["Dims", "Rule", "is_chain", "rule"]

Dims = tuple[int | None, ...]  # the factor of each dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Factors of one equation.

    `sizes[f]` is what the number of devices has to divide; `summed` are the factors that the
    results are partial sums over.
    """

    inputs: tuple[Dims, ...]
    outputs: tuple[Dims, ...]
    sizes: tuple[int, ...]
    summed: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Draft:
    """Factors of dims while a rule is written; operands and results count in one list."""

    eqn: _jax.JaxprEqn
    sizes: list[int] = field(default_factory=list)
    summed: set[int] = field(default_factory=set)
    inputs: list[list[int | None]] = field(default_factory=list)
    outputs: list[list[int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = [[None] * len(_jax.aval_of(v).shape) for v in self.eqn.invars]
        self.outputs = [[None] * len(_jax.aval_of(v).shape) for v in self.eqn.outvars]

    def shape(self, operand: int) -> tuple[int, ...]:
        return _jax.aval_of(self.eqn.invars[operand]).shape

    def out_shape(self, result: int = 0) -> tuple[int, ...]:
        return _jax.aval_of(self.eqn.outvars[result]).shape

    def join(
        self,
        inputs: Sequence[tuple[int, int]],
        outputs: Sequence[tuple[int, int]],
        size: int,
        *,
        summed: bool = False,
    ) -> None:
        """One factor for these (operand, dim) and (result, dim)."""
        if size < 2:
            return
        for operand, dim in inputs:
            self.inputs[operand][dim] = len(self.sizes)
        for result, dim in outputs:
            self.outputs[result][dim] = len(self.sizes)
        if summed:
            self.summed.add(len(self.sizes))
        self.sizes.append(size)

    def rule(self) -> Rule:
        return Rule(
            inputs=tuple(map(tuple, self.inputs)),
            outputs=tuple(map(tuple, self.outputs)),
            sizes=tuple(self.sizes),
            summed=frozenset(self.summed),
        )


def rule(eqn: _jax.JaxprEqn) -> Rule:
    """The factors of an equation."""
    draft = _Draft(eqn)
    name = eqn.primitive.name
    if is_expert_layer(eqn):
        _experts(draft)
    elif name in _RULES:
        _RULES[name](draft, eqn.params)
    elif name.startswith("reduce_") and "axes" in eqn.params and len(eqn.outvars) == 1:
        _reduce(draft, eqn.params)
    elif name.startswith("scatter"):
        _scatter(draft, eqn.params)
    elif name in CHEAP:
        _elementwise(draft, eqn.params)
    return draft.rule()


def is_chain(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation joins what produces its operands: nothing is contracted or looked up."""
    name = eqn.primitive.name
    return name in CHEAP or (name.startswith("reduce_") and "axes" in eqn.params)


def _elementwise(draft: _Draft, params: dict[str, Any]) -> None:
    """Dims of one place go together; an operand of size 1 there is stretched."""
    del params
    for dim, size in enumerate(draft.out_shape()):
        operands = [o for o in range(len(draft.inputs)) if draft.shape(o)[dim : dim + 1] == (size,)]
        results = range(len(draft.outputs))
        draft.join([(o, dim) for o in operands], [(r, dim) for r in results], size)


def _barrier(draft: _Draft, params: dict[str, Any]) -> None:
    del params
    for operand in range(len(draft.inputs)):
        for dim, size in enumerate(draft.shape(operand)):
            draft.join([(operand, dim)], [(operand, dim)], size)


def _broadcast(draft: _Draft, params: dict[str, Any]) -> None:
    before, after = draft.shape(0), draft.out_shape()
    source = {out: dim for dim, out in enumerate(params["broadcast_dimensions"])}
    for out, size in enumerate(after):
        dim = source.get(out)
        inputs = [(0, dim)] if dim is not None and before[dim] == size else []
        draft.join(inputs, [(0, out)], size)


def _transpose(draft: _Draft, params: dict[str, Any]) -> None:
    for out, dim in enumerate(params["permutation"]):
        draft.join([(0, dim)], [(0, out)], draft.out_shape()[out])


def _reshape(draft: _Draft, params: dict[str, Any]) -> None:
    """Of dims that are merged or taken apart only the slowest can be split."""
    del params
    for before, after in _blocks(draft.shape(0), draft.out_shape()):
        size = math.gcd(draft.shape(0)[before], draft.out_shape()[after])
        draft.join([(0, before)], [(0, after)], size)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    """First dims, those of size 1 left out, of the shortest runs with equal products."""
    left = [d for d, size in enumerate(before) if size != 1]
    right = [d for d, size in enumerate(after) if size != 1]
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        found.append((left[i], right[j]))
        a, b = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * before[left[i]], i + 1
            else:
                b, j = b * after[right[j]], j + 1
    return found


def _reduce(draft: _Draft, params: dict[str, Any]) -> None:
    axes = tuple(params["axes"])
    kept = [dim for dim in range(len(draft.shape(0))) if dim not in axes]
    for out, dim in enumerate(kept):
        results = range(len(draft.outputs))
        draft.join([(0, dim)], [(r, out) for r in results], draft.shape(0)[dim])
    for dim in axes:
        draft.join([(0, dim)], [], draft.shape(0)[dim], summed=True)


def _arg_reduce(draft: _Draft, params: dict[str, Any]) -> None:
    kept = [dim for dim in range(len(draft.shape(0))) if dim not in params["axes"]]
    for out, dim in enumerate(kept):
        draft.join([(0, dim)], [(0, out)], draft.shape(0)[dim])


def _dot(draft: _Draft, params: dict[str, Any]) -> None:
    (left_k, right_k), (left_b, right_b) = params["dimension_numbers"]
    left, right = draft.shape(0), draft.shape(1)
    out = 0
    for a, b in zip(left_b, right_b, strict=True):
        draft.join([(0, a), (1, b)], [(0, out)], left[a])
        out += 1
    for operand, shape, gone in ((0, left, (*left_k, *left_b)), (1, right, (*right_k, *right_b))):
        for dim in range(len(shape)):
            if dim not in gone:
                draft.join([(operand, dim)], [(0, out)], shape[dim])
                out += 1
    for a, b in zip(left_k, right_k, strict=True):
        draft.join([(0, a), (1, b)], [], left[a], summed=True)


def _ragged_dot(draft: _Draft, params: dict[str, Any]) -> None:
    """Rows are grouped by data, so only the width and the depth of the product can be split."""
    if len(draft.shape(1)) != 3 or len(draft.shape(0)) != 2:
        return
    rows, depth, width = draft.shape(0)[0], *draft.shape(1)[1:]
    if draft.out_shape() == (rows, width) and draft.shape(0)[1] == depth:
        draft.join([(1, 2)], [(0, 1)], width)
        draft.join([(0, 1), (1, 1)], [], depth, summed=True)


def _experts(draft: _Draft) -> None:
    """Rows, experts, or the width inside of each; of the last two each device sums its part."""
    (rows, _), (number, inner, _) = draft.shape(0), draft.shape(3)
    draft.join([(0, 0), (1, 0), (2, 0)], [(0, 0)], rows)
    draft.join([(3, 0), (4, 0), (5, 0)], [], number, summed=True)
    draft.join([(3, 1), (4, 1), (5, 2)], [], inner, summed=True)


def _all_but(dim_of: Callable[[dict[str, Any], int], int]) -> Callable[..., None]:
    """Dims stay as they are, except one, which has to be whole."""

    def write(draft: _Draft, params: dict[str, Any]) -> None:
        rank = len(draft.out_shape())
        whole = dim_of(params, rank)
        for dim in range(rank):
            if dim != whole:
                operands = [(o, dim) for o in range(len(draft.inputs)) if draft.inputs[o]]
                results = [(r, dim) for r in range(len(draft.outputs))]
                draft.join(operands, results, draft.out_shape()[dim])

    return write


def _unsliced(draft: _Draft, params: dict[str, Any]) -> None:
    """Dims that keep their whole extent stay; for slices and pads of one operand."""
    del params
    for dim, size in enumerate(draft.out_shape()):
        if size == draft.shape(0)[dim]:
            draft.join([(0, dim)], [(0, dim)], size)


def _reverse(draft: _Draft, params: dict[str, Any]) -> None:
    for dim, size in enumerate(draft.out_shape()):
        if dim not in params["dimensions"]:
            draft.join([(0, dim)], [(0, dim)], size)


def _update_slice(draft: _Draft, params: dict[str, Any]) -> None:
    del params
    for dim, size in enumerate(draft.out_shape()):
        if size == draft.shape(1)[dim]:
            draft.join([(0, dim), (1, dim)], [(0, dim)], size)


def _gather(draft: _Draft, params: dict[str, Any]) -> None:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    table = draft.shape(0)
    paired = dict(
        zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    batch = [d for d in range(len(draft.out_shape())) if d not in numbers.offset_dims]
    for index_dim, out in enumerate(batch):
        inputs = [(1, index_dim)]
        if index_dim in paired:
            inputs.append((0, paired[index_dim]))
        draft.join(inputs, [(0, out)], draft.out_shape()[out])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [d for d in range(len(table)) if d not in gone]
    for dim, out in zip(window, sorted(numbers.offset_dims), strict=True):
        if sizes[dim] == table[dim]:
            draft.join([(0, dim)], [(0, out)], table[dim])
    if len(numbers.start_index_map) == 1 and not paired:
        (row,) = numbers.start_index_map
        if row in numbers.collapsed_slice_dims:  # each device has some rows and zeros for others
            draft.join([(0, row)], [], table[row], summed=True)


def _scatter(draft: _Draft, params: dict[str, Any]) -> None:
    numbers = params["dimension_numbers"]
    table, updates = draft.shape(0), draft.shape(2)
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [d for d in range(len(table)) if d not in gone]
    for dim, update in zip(window, numbers.update_window_dims, strict=True):
        if updates[update] == table[dim]:
            draft.join([(0, dim), (2, update)], [(0, dim)], table[dim])
    rest = [d for d in range(len(updates)) if d not in numbers.update_window_dims]
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    for dim, index_dim in pairs:
        draft.join([(0, dim), (1, index_dim), (2, rest[index_dim])], [(0, dim)], table[dim])


def _convolution(draft: _Draft, params: dict[str, Any]) -> None:
    numbers = params["dimension_numbers"]
    out = draft.out_shape()
    if params["batch_group_count"] != 1:
        return
    batch, channels = numbers.out_spec[0], numbers.out_spec[1]
    draft.join([(0, numbers.lhs_spec[0])], [(0, batch)], out[batch])
    if params["feature_group_count"] == 1:
        draft.join([(1, numbers.rhs_spec[0])], [(0, channels)], out[channels])
        depth = draft.shape(0)[numbers.lhs_spec[1]]
        draft.join([(0, numbers.lhs_spec[1]), (1, numbers.rhs_spec[1])], [], depth, summed=True)


_RULES: dict[str, Callable[[_Draft, dict[str, Any]], None]] = {
    "optimization_barrier": _barrier,
    "sharding_constraint": _elementwise,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "argmax": _arg_reduce,
    "argmin": _arg_reduce,
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "concatenate": _all_but(lambda params, rank: params["dimension"]),
    "split": _all_but(lambda params, rank: params["axis"]),
    "sort": _all_but(lambda params, rank: params["dimension"] % max(rank, 1)),
    "top_k": _all_but(lambda params, rank: params.get("axis", -1) % rank),
    "cumsum": _all_but(lambda params, rank: params["axis"]),
    "cummax": _all_but(lambda params, rank: params["axis"]),
    "cumprod": _all_but(lambda params, rank: params["axis"]),
    "cumlogsumexp": _all_but(lambda params, rank: params["axis"]),
    "slice": _unsliced,
    "pad": _unsliced,
    "dynamic_slice": _unsliced,
    "rev": _reverse,
    "dynamic_update_slice": _update_slice,
    "gather": _gather,
    "conv_general_dilated": _convolution,
}
