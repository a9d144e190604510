"""What a worker is told to do in one deployment: plain records, sent once.

A worker gets the stages of its meshes and those instructions that one of its meshes has a part in,
in the order that a single thread could follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.errors import InternalError
from gimlax.program import Free, Instruction, Program, Run, Step, Transfer, sequence

__all__ = [
    "CrossingOrder",
    "Orders",
    "PhaseOrder",
    "StageOrder",
    "StepOrder",
    "ValueOrder",
    "phase_order",
]

_RUN, _TRANSFER, _FREE = "run", "transfer", "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """An instruction and its track; of the three kinds, what does not apply is left empty."""

    kind: str
    track: str
    stage: int = 0
    streamed: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    source: str = ""
    target: str = ""

    def step(self) -> Step:
        """As the runtime reads it."""
        return Step(track=self.track, instruction=self._instruction())

    def _instruction(self) -> Instruction:
        if self.kind == _RUN:
            return Run(
                stage=self.stage, streamed=self.streamed, inputs=self.inputs, outputs=self.outputs
            )
        if self.kind == _TRANSFER:
            return Transfer(values=self.values, source=self.source, target=self.target)
        if self.kind == _FREE:
            return Free(values=self.values)
        raise InternalError(f"a worker was sent an instruction {self.kind!r}; please report it")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOrder:
    """A stage of this worker.

    Attributes:
        index: in its phase.
        row: among the stages of all phases.
        mesh: where it runs.
        description: how messages call it.
        artifact: which of the arrays sent with the orders is its StableHLO.
        inputs, results: how arguments and results lie, by axis names.
        platform: that it was lowered for.
        donates: whether it takes over carried state.
        resident, carried: trees that it reads, and whose state it owns.
        constants: which of the arrays sent with the orders are its constants.
        streamed, received, produced: argument leaves and value ids.
    """

    index: int
    row: int
    mesh: str
    description: str
    artifact: int
    inputs: tuple[tuple[tuple[str, ...], ...], ...]
    results: tuple[tuple[tuple[str, ...], ...], ...]
    platform: str
    donates: bool
    resident: tuple[int, ...]
    carried: tuple[int, ...]
    constants: tuple[int, ...]
    streamed: tuple[int, ...]
    received: tuple[int, ...]
    produced: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOrder:
    """A value that goes to another worker: how it lies on both sides.

    A typed PRNG key goes as its data; `key` is then the name of its generator. `narrowing` is what
    float32 goes as, empty for as it is.
    """

    shape: tuple[int, ...]
    dtype: str
    source_spec: tuple[tuple[str, ...], ...]
    target_spec: tuple[tuple[str, ...], ...]
    key: str = ""
    narrowing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingOrder:
    """A transfer between workers: the `place`-th of its link in a phase."""

    track: str
    place: int
    source: str
    target: str
    values: tuple[ValueOrder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOrder:
    """A phase as one worker sees it.

    Attributes:
        name: of the phase.
        num_stages: of all workers.
        steps: of which one end is here.
        stages: that run here.
        outputs: values (mesh, id) that go back to the controller.
        lying: (mesh, value, spec) of what transfers inside this worker bring.
        crossings: transfers of which the other end is another worker.
    """

    name: str
    num_stages: int
    steps: tuple[StepOrder, ...]
    stages: tuple[StageOrder, ...]
    outputs: tuple[tuple[str, int], ...]
    lying: tuple[tuple[str, int, tuple[tuple[str, ...], ...]], ...]
    crossings: tuple[CrossingOrder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """All phases, and about all meshes their axes and owners.

    The owners of a mesh are by device which process of its worker has it.
    """

    phases: tuple[PhaseOrder, ...]
    axes: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    owners: tuple[tuple[str, tuple[int, ...]], ...]


def phase_order(
    program: Program,
    mine: Sequence[str],
    stages: Sequence[StageOrder],
    lying: Sequence[tuple[str, int, tuple[tuple[str, ...], ...]]],
    crossings: Sequence[CrossingOrder],
) -> PhaseOrder:
    """What the worker that has the meshes `mine` is told of a program."""
    outputs = dict.fromkeys(key for key in program.outputs if key is not None and key[0] in mine)
    return PhaseOrder(
        name=program.phase,
        num_stages=len(program.placement),
        steps=tuple(_order(step) for step in sequence(program) if _concerns(step, mine)),
        stages=tuple(stages),
        outputs=tuple(outputs),
        lying=tuple(lying),
        crossings=tuple(crossings),
    )


def _concerns(step: Step, mine: Sequence[str]) -> bool:
    if isinstance(step.instruction, Transfer):
        return step.instruction.source in mine or step.instruction.target in mine
    return step.track in mine


def _order(step: Step) -> StepOrder:
    todo = step.instruction
    if isinstance(todo, Run):
        return StepOrder(
            kind=_RUN,
            track=step.track,
            stage=todo.stage,
            streamed=todo.streamed,
            inputs=todo.inputs,
            outputs=todo.outputs,
        )
    if isinstance(todo, Transfer):
        return StepOrder(
            kind=_TRANSFER,
            track=step.track,
            values=todo.values,
            source=todo.source,
            target=todo.target,
        )
    return StepOrder(kind=_FREE, track=step.track, values=todo.values)
