"""One pass over a program: what it holds, and how a single instruction of it is executed.

Both ways to run a pass, in the caller's thread and through the workers, execute instructions with
the functions here; they differ only in who calls them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import BackendError
from gimlax.program import Free, Instruction, Program, Run, Step, Transfer, sequence, task_of
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.handles import Carried, Placed
from gimlax.runtime.stores import Cell
from gimlax.runtime.tapping import LocalTap, Tap

Key = tuple[str, int]  # (mesh name, value id), or (mesh name, argument leaf)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CompiledPhase:
    """Compiled stages and the instructions that run them, in an order that one thread can follow.

    `outputs` says per flat output on which mesh which value it is, None where it is carried state;
    `lying` how a value that a transfer brings lies on its target.
    """

    name: str
    stages: tuple[CompiledStage, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Key | None, ...]
    lying: Mapping[Key, jax.sharding.NamedSharding]

    @classmethod
    def build(
        cls,
        program: Program,
        stages: Sequence[CompiledStage],
        arrangement: Arrangement,
    ) -> "CompiledPhase":
        """Orders the instructions of a program."""
        return cls(
            name=program.phase,
            stages=tuple(stages),
            steps=sequence(program),
            outputs=program.outputs,
            lying={
                (todo.target, value): arrangement.value(todo.target, program, value)
                for _, transfers in program.links
                for todo in transfers
                for value in todo.values
            },
        )

    def task(self, instruction: Run | Transfer) -> str:
        """How spans of this instruction are called in a timeline."""
        return task_of(self.name, instruction)

    def stage_of(self, instruction: Instruction) -> CompiledStage | None:
        """The stage that an instruction runs, None for a transfer and the like."""
        return self.stages[instruction.stage] if isinstance(instruction, Run) else None


class Pass:
    """What one pass holds while it is under way; filled by `run_stage` and `send`.

    `state` are the cells taken from the `handles` that the caller gave, `next_state` those of the
    handles that the pass returns, one tuple with a cell per stage for each carried tree. A pass
    that is to be checked has a `tap`.
    """

    __slots__ = (
        "handles",
        "next_handles",
        "next_state",
        "phase",
        "placed",
        "state",
        "streamed",
        "tap",
        "values",
    )

    def __init__(
        self,
        phase: CompiledPhase,
        placed: Sequence[Placed],
        handles: Sequence[Carried],
        streamed: dict[Key, Any],
    ) -> None:
        self.phase = phase
        self.placed = placed
        self.handles = handles
        self.streamed = streamed
        self.values: dict[Key, jax.Array] = {}
        self.state: list[tuple[Cell, ...]] = []
        self.next_state: list[tuple[Cell, ...]] = []
        self.next_handles: tuple[Carried, ...] = ()
        self.tap: Tap | None = None

    def take_state(self) -> None:
        """Takes the carried state out of its handles, all or none, and prepares the next handles.

        Raises:
            SpecError: a state has been used before.
        """
        fresh: list[Carried] = []
        try:
            for handle in self.handles:
                cells = handle._take()
                self.state.append(cells)
                filled_later = tuple([cell.fresh() for cell in cells])
                self.next_state.append(filled_later)
                fresh.append(handle._next(filled_later))
        except BaseException:
            self.give_back()
            raise
        self.next_handles = tuple(fresh)

    def give_back(self) -> None:
        """Returns the carried state to its handles: nothing of the pass was dispatched."""
        for handle, cells in zip(self.handles, self.state, strict=False):
            handle._give_back(cells)
        self.state = []

    def lose_state(self, reason: str) -> None:
        """Marks what the pass was given and what it would have returned as lost."""
        for handle in (*self.handles, *self.next_handles):
            handle._lose(reason)

    def result(self) -> list[Any]:
        """The flat outputs; None where the output is carried state."""
        values = self.values
        return [None if key is None else values[key] for key in self.phase.outputs]


def run_stage(work: Pass, stage: CompiledStage) -> jax.Array:
    """Dispatches a stage and keeps its outputs in the pass; returns its completion token.

    Raises:
        BackendError: the backend refused; names stage, segments and mesh.
    """
    index, placed, values = stage.index, work.placed, work.values
    rows = tuple([placed[tree]._rows[stage.row] for tree in stage.resident])
    cells = [work.state[tree][index] for tree in stage.carried]
    state = tuple([cell.arrays for cell in cells])
    for cell in cells:
        cell.arrays = None  # donated, or not needed any more
    inputs = [work.streamed[key] for key in stage.streamed]
    inputs += [values[key] for key in stage.received]
    tap = work.tap
    if tap is not None:
        assert isinstance(tap, LocalTap)
        tap.before(stage, state, inputs[len(stage.streamed) :])
    try:
        state, produced, token = stage.call(rows, state, stage.constants, tuple(inputs))
    except Exception as error:
        raise stage_error(stage, error) from error
    if tap is not None:
        tap.after(stage, state, produced)
    for tree, arrays in zip(stage.carried, state):
        work.next_state[tree][index].arrays = arrays
    for key, array in zip(stage.produced, produced):
        values[key] = array
    return token


def send(work: Pass, transfer: Transfer) -> None:
    """Copies values to another mesh; between two clients this waits until they are computed.

    Raises:
        BackendError: a copy failed.
    """
    arrays = outgoing(work, transfer)
    lying = work.phase.lying
    try:
        copies = _jax.copy_arrays(arrays, [lying[transfer.target, v] for v in transfer.values])
    except Exception as error:
        raise BackendError(
            f"transfer of {len(arrays)} values of {work.phase.name!r} from mesh"
            f" {transfer.source!r} to {transfer.target!r} failed: {first_line(error)}; check that"
            " both backends still answer"
        ) from error
    for value, copy in zip(transfer.values, copies, strict=True):
        work.values[transfer.target, value] = copy


def outgoing(work: Pass, transfer: Transfer) -> list[jax.Array]:
    """The values that a transfer takes away."""
    keys = [(transfer.source, value) for value in transfer.values]
    arrays = [work.values[key] for key in keys]
    if work.tap is not None:
        assert isinstance(work.tap, LocalTap)
        work.tap.hand_on(keys, arrays)
    return arrays


def execute(work: Pass, step: Step) -> jax.Array | None:
    """Executes one instruction in this thread; returns the token of a stage."""
    instruction = step.instruction
    if isinstance(instruction, Run):
        return run_stage(work, work.phase.stages[instruction.stage])
    if isinstance(instruction, Transfer):
        send(work, instruction)
    elif isinstance(instruction, Free):
        for value in instruction.values:
            del work.values[step.track, value]
    return None


def stage_error(stage: CompiledStage, error: BaseException) -> BackendError:
    """What a failed stage is called, in the user's terms."""
    return BackendError(
        f"{stage.description} failed: {first_line(error)}; carried state that the pass was given"
        " is lost, so start again from init() or from a copy() taken before"
    )


def first_line(error: BaseException) -> str:
    """What a backend said, in one line: of a Python traceback inside it, what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in lines[0] else lines[0]
