"""What a mesh holds between calls, and so what it needs while each of its stages runs.

A compiler sees one stage with its arguments; other stages of the same mesh hold theirs at the same
time, and share some. Units: bytes of one device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from gimlax import _jax
from gimlax.program import Program
from gimlax.runtime.forms import Form, form_of
from gimlax.runtime.inventory import Inventory

__all__ = ["Held", "forms_of", "needed_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a stage holds between calls: bytes of each array, by what it is."""

    mesh: str
    arrays: Mapping[tuple[object, ...], int]


def forms_of(
    programs: Sequence[Program], inventory: Inventory
) -> tuple[tuple[Form, ...], tuple[Held, ...]]:
    """The form of every stage of every program, and what it holds, in the order of rows."""
    forms: list[Form] = []
    held: list[Held] = []
    for program in programs:
        for stage, mesh in zip(program.partition.stages, program.placement, strict=True):
            row = len(forms)
            form = form_of(program, stage, row, inventory)
            rows = [(i, of[row]) for i, of in enumerate(inventory.rows) if of[row]]
            states = [
                (i, of[stage.index]) for i, of in enumerate(inventory.states) if of[stage.index]
            ]
            arrays: dict[tuple[object, ...], int] = {}
            for (tree, parts), avals in zip(rows, form.inputs[0], strict=True):
                for (_, part), aval in zip(parts, avals, strict=True):
                    arrays["resident", tree, part] = _shard_bytes(aval)
            for (tree, parts), avals in zip(states, form.inputs[1], strict=True):
                for part, aval in zip(parts, avals, strict=True):
                    arrays["carried", tree, part] = _shard_bytes(aval)
            forms.append(form)
            held.append(Held(mesh=mesh, arrays=arrays))
    return tuple(forms), tuple(held)


def needed_bytes(mesh: str, held: Sequence[Held], by_stage: Sequence[int | None]) -> int | None:
    """What a mesh needs: the most of what any stage needs and the others hold besides.

    Args:
        mesh: its name.
        held: of all stages of all phases.
        by_stage: what each needs while it runs, its own arrays included; None if not known.
    """
    mine = [(of, need) for of, need in zip(held, by_stage, strict=True) if of.mesh == mesh]
    everything = {key: size for of, _ in mine for key, size in of.arrays.items()}
    needs: list[int] = []
    for of, need in mine:
        if need is None:
            return None
        others = sum(size for key, size in everything.items() if key not in of.arrays)
        needs.append(need + others)
    return max(needs, default=0)


def _shard_bytes(aval: jax.ShapeDtypeStruct) -> int:
    assert aval.sharding is not None
    shape = aval.sharding.shard_shape(aval.shape)
    if not math.prod(shape):
        return 0
    return _jax.nbytes(jax.ShapeDtypeStruct(shape, aval.dtype))
