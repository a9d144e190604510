"""What the handles of one compilation hold: which rows of which argument lie on which mesh.

All phases of a workload share resident parameters and carried state, so there is one inventory for
all of them. A resident part is kept once per mesh, whoever uses it; a carried part belongs to one
stage. Leaves count among the arguments of their role, which means the same in every phase.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gimlax.errors import InternalError, SpecError
from gimlax.graph import Part, Role, Traced
from gimlax.program import Program
from gimlax.runtime.arrangement import Arrangement


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A positional argument with the role resident or carried.

    `index` counts the trees of its role, `first` is the place of its first leaf among all leaves of
    the role. `name` is how messages call it.
    """

    role: Role
    index: int
    first: int
    name: str
    treedef: Any
    paths: tuple[str, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]

    def owns(self, part: Part) -> bool:
        """Whether a part of this role belongs to this argument."""
        return self.first <= part.leaf < self.first + len(self.paths)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Inventory:
    """Where the rows of resident and carried arguments lie.

    `shelves[i]` holds the (mesh, part) pairs of resident tree i. `rows[i][n]` are those among them
    that stage n reads, n counting the stages of all phases, phase by phase. `states[i][s]` are the
    parts of carried tree i that stage s owns; `placement` names the mesh of each stage.
    """

    resident: tuple[Tree, ...]
    carried: tuple[Tree, ...]
    shelves: tuple[tuple[tuple[str, Part], ...], ...]
    rows: tuple[tuple[tuple[tuple[str, Part], ...], ...], ...]
    states: tuple[tuple[tuple[Part, ...], ...], ...]
    placement: tuple[str, ...]
    arrangement: Arrangement


def take_inventory(programs: Sequence[Program], arrangement: Arrangement) -> Inventory:
    """The inventory of all phases of a plan.

    Args:
        programs: one per phase, with the same placement.
        arrangement: how arrays lie on each mesh.

    Raises:
        SpecError: phases group their shared arguments into different trees.
        InternalError: carried state is missing, or held in two places.
    """
    first = programs[0]
    resident, carried = (_trees(first, role) for role in (Role.RESIDENT, Role.CARRIED))
    for program in programs[1:]:
        for mine, role in ((resident, Role.RESIDENT), (carried, Role.CARRIED)):
            _check_same(first.phase, mine, program.phase, _trees(program, role))
    rows = tuple(
        tuple(
            tuple((mesh, part) for part in stage.resident if tree.owns(part))
            for program in programs
            for stage, mesh in zip(program.partition.stages, program.placement, strict=True)
        )
        for tree in resident
    )
    held = [_stage_states(programs, s) for s in range(len(first.placement))]
    states = tuple(
        tuple(tuple(part for part in parts if tree.owns(part)) for parts in held)
        for tree in carried
    )
    _check_states(carried, held)
    return Inventory(
        resident=resident,
        carried=carried,
        shelves=tuple(tuple(sorted({slot for row in of for slot in row})) for of in rows),
        rows=rows,
        states=states,
        placement=first.placement,
        arrangement=arrangement,
    )


def _trees(program: Program, role: Role) -> tuple[Tree, ...]:
    traced: Traced = program.partition.traced
    of_args = jax.tree_util.treedef_children(traced.in_tree)[0]
    treedefs = jax.tree_util.treedef_children(of_args)
    trees: list[Tree] = []
    first = 0
    for position, (found, treedef) in enumerate(zip(traced.positions, treedefs, strict=True)):
        if found is not role:
            continue
        leaves = [a for a in traced.arguments if a.position == position]
        trees.append(
            Tree(
                role=role,
                index=len(trees),
                first=first,
                name=f"{role.value} argument {position} of {traced.name!r}",
                treedef=treedef,
                paths=tuple(a.path for a in leaves),
                avals=tuple(a.aval for a in leaves),
            )
        )
        first += len(leaves)
    return tuple(trees)


def _check_same(phase: str, trees: tuple[Tree, ...], other: str, others: tuple[Tree, ...]) -> None:
    if [tree.treedef for tree in trees] != [tree.treedef for tree in others]:
        raise SpecError(
            f"phases {phase!r} and {other!r} take their shared arguments as different trees:"
            f" {[str(t.treedef) for t in trees]} and {[str(t.treedef) for t in others]}; trace both"
            " with the same positional arguments"
        )


def _stage_states(programs: Sequence[Program], stage: int) -> tuple[Part, ...]:
    """Carried parts that a stage owns, those that only some phases read included."""
    parts = {p for program in programs for p in program.partition.stages[stage].carried}
    return tuple(sorted(parts))


def _check_states(trees: tuple[Tree, ...], held: Sequence[tuple[Part, ...]]) -> None:
    parts = [part for stage in held for part in stage]
    for tree in trees:
        for leaf, (path, aval) in enumerate(zip(tree.paths, tree.avals, strict=True), tree.first):
            mine = [part for part in parts if part.leaf == leaf]
            whole = [part for part in mine if part.whole]
            rows = sorted(row for part in mine for row in range(part.start, part.stop))
            if not (len(mine) == 1 if whole else mine and rows == list(range(aval.shape[0]))):
                raise InternalError(
                    f"carried leaf {path} is held as {mine} by the stages of all phases, which is"
                    " not each row once; please report it"
                )
