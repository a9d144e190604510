"""The arguments of a pass of this process, read where they lie; nothing of the pass is used up."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from gimlax.errors import InternalError
from gimlax.graph import Part, Role, Traced
from gimlax.runtime.handles import to_host
from gimlax.runtime.inventory import Inventory
from gimlax.runtime.passes import Pass
from gimlax.runtime.probing.seam import Given

__all__ = ["from_pass", "state_of_handles"]

State = Sequence[Sequence[Sequence[jax.Array]]]  # [carried tree][stage][part that it owns]


def from_pass(work: Pass, traced: Traced, inventory: Inventory, state: State) -> Given:
    """The arguments of a pass, as a probe takes them.

    Args:
        work: the pass.
        traced: the function.
        inventory: what its handles hold.
        state: the carried arrays that it is given.
    """

    def given(role: Role, part: Part) -> Any:
        if role is Role.STREAMED:
            leaf = traced.leaves(role)[part.leaf]
            return to_host(next(v for (_, of), v in work.streamed.items() if of == leaf))
        if role is Role.RESIDENT:
            trees = zip(inventory.resident, work.placed, strict=True)
            held = (
                (mine, array)
                for tree, handle in trees
                if tree.owns(part)
                for (_, mine), array in handle._shelf.items()
            )
            return _rows(part, held)
        return _rows(
            part,
            (
                (mine, array)
                for tree, parts in enumerate(inventory.states)
                for stage, of in enumerate(parts)
                for mine, array in zip(of, state[tree][stage], strict=True)
            ),
        )

    return given


def state_of_handles(work: Pass) -> State:
    """The state that the handles of a pass hold; waits until it is there."""
    return [[cell.arrays or () for cell in handle._ready()] for handle in work.handles]


def _rows(part: Part, held: Iterable[tuple[Part, jax.Array]]) -> Any:
    """A part, out of the one that has all of it."""
    for mine, array in held:
        if mine.leaf != part.leaf:
            continue
        if mine == part:
            return to_host(array)
        if not part.whole and mine.whole:
            return to_host(array[part.start : part.stop])
        if not part.whole and mine.start <= part.start and part.stop <= mine.stop:
            return to_host(array[part.start - mine.start : part.stop - mine.start])
    raise InternalError(f"no mesh holds all of {part}; please report it")
