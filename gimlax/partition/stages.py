"""The records of a partition: stages that stand alone, and the edges between them."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from gimlax import _jax
from gimlax.graph import Part, Role, Traced


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Consecutive segments as a closed jaxpr without constants.

    Inputs of `jaxpr`, in this order: `resident` and `carried` parts (whose leaf counts among the
    arguments of that role), `constants` (indices into `traced.jaxpr.consts`), `streamed` argument
    leaves, `received` value ids. Outputs: the updated `carried` parts in the same order, then the
    `produced` value ids.
    """

    index: int
    first_segment: int
    num_segments: int
    jaxpr: _jax.ClosedJaxpr
    resident: tuple[Part, ...]
    carried: tuple[Part, ...]
    constants: tuple[int, ...]
    streamed: tuple[int, ...]
    received: tuple[int, ...]
    produced: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Values that cross from stage `source` to `target = source + 1`; each crosses once, also those
    that a later stage wants and `target` only forwards."""

    source: int
    target: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A traced function as a chain of stages.

    `avals` gives shape and dtype of every value that crosses or comes out. `outputs` holds for each
    output leaf the value id that it is, or None for carried state.
    """

    traced: Traced
    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    avals: Mapping[int, jax.ShapeDtypeStruct]
    outputs: tuple[int | None, ...]

    def leaf(self, role: Role, part: Part) -> int:
        """The argument leaf of a part whose leaf counts among the arguments of `role`."""
        return self.traced.leaves(role)[part.leaf]
