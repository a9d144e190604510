"""What a trace leaves behind: a jaxpr whose inputs each have a role, and nothing that is live.

A role says how long an argument lives: *resident* ones (parameters) stay on their mesh between
calls, *carried* ones come back updated and take the place of what was passed, *streamed* ones
travel with each call. Chosen over JAX's donated/not donated because a cut needs to know both where
an array may stay and what must never travel. Units: bytes.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from gimlax import _jax


class Role(enum.Enum):
    """How an argument of a traced function lives."""

    RESIDENT = "resident"
    CARRIED = "carried"
    STREAMED = "streamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One array among the flattened arguments.

    `position` is the positional argument that it belongs to, -1 for a keyword argument.
    """

    path: str
    position: int
    role: Role
    aval: jax.ShapeDtypeStruct


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One array among the flattened outputs; `carried` is the argument leaf that it replaces."""

    path: str
    aval: jax.ShapeDtypeStruct
    carried: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A function traced for one set of shapes.

    `jaxpr` has one input per argument and one output per output; nested calls are opened and closed
    constants are kept in `jaxpr.consts`. `in_tree` is the tree of `(args, kwargs)`. `positions`
    holds the role of each positional argument, `carried` pairs of (positional argument, output
    position), where position 0 of a function that returns no tuple is its whole result.
    """

    name: str
    jaxpr: _jax.ClosedJaxpr
    arguments: tuple[Argument, ...]
    outputs: tuple[Output, ...]
    in_tree: Any
    out_tree: Any
    positions: tuple[Role, ...]
    carried: tuple[tuple[int, int], ...]
    config: tuple[tuple[str, Any], ...]
    _leaves: Mapping[Role, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        roles = [argument.role for argument in self.arguments]
        leaves = {role: tuple(i for i, r in enumerate(roles) if r is role) for role in Role}
        object.__setattr__(self, "_leaves", leaves)

    def leaves(self, role: Role) -> tuple[int, ...]:
        """Indices of the argument leaves that have this role."""
        return self._leaves[role]


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """An argument leaf, or rows `start:stop` of its leading dim where a scan over layers was cut.

    A whole leaf has `start == stop == -1`, so that parts can be ordered.
    """

    leaf: int
    start: int = -1
    stop: int = -1

    @property
    def whole(self) -> bool:
        """Whether this is the whole leaf."""
        return self.start < 0


def part_aval(traced: Traced, part: Part) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a part."""
    aval = traced.arguments[part.leaf].aval
    if part.whole:
        return aval
    return jax.ShapeDtypeStruct((part.stop - part.start, *aval.shape[1:]), aval.dtype)


def part_bytes(traced: Traced, part: Part) -> int:
    """Bytes of a part."""
    return _jax.nbytes(part_aval(traced, part))


def merge_parts(parts: Iterable[Part], traced: Traced) -> tuple[Part, ...]:
    """The same rows as sorted parts: neighbours joined, all rows of a leaf as the whole leaf."""
    merged: list[Part] = []
    for part in sorted(set(parts)):
        last = merged[-1] if merged and merged[-1].leaf == part.leaf else None
        if last is None or (not last.whole and part.start > last.stop):
            merged.append(part)
        elif not last.whole:
            merged[-1] = Part(part.leaf, last.start, max(last.stop, part.stop))
    return tuple(
        Part(p.leaf)
        if not p.whole and p.stop - p.start == traced.arguments[p.leaf].aval.shape[0]
        else p
        for p in merged
    )
