"""Instruction lists: what each mesh and each link does in one pass, as plain data.

A `Program` says in which order a mesh runs its stages and which values a link carries, and nothing
about time or devices, so the simulator and the runtime read the same one and it can be sent to
another process. Values are numbered per phase; the same number on two meshes is two copies of it.
Chosen over one global list because each mesh and each link issues its work independently.
"""

from dataclasses import dataclass

from gimlax.errors import InternalError
from gimlax.partition import Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Runs a stage: argument leaves it reads from the caller, value ids it reads and produces."""

    stage: int
    streamed: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Copies values from one mesh to another as soon as all of them are on the source."""

    values: tuple[int, ...]
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """Drops this mesh's copies of values once the transfers that read them are done."""

    values: tuple[int, ...]


Instruction = Run | Transfer | Free


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One phase as instruction lists.

    `meshes` and `links` hold the lists, in the order of first use. `outputs` says per flat output
    where it is found, as (mesh name, value id), or None where it is carried state. `placement` and
    `segments` name the mesh and the segments of each stage; `partition` holds the stages.
    """

    phase: str
    meshes: tuple[tuple[str, tuple[Run | Free, ...]], ...]
    links: tuple[tuple[tuple[str, str], tuple[Transfer, ...]], ...]
    outputs: tuple[tuple[str, int] | None, ...]
    placement: tuple[str, ...]
    segments: tuple[tuple[str, ...], ...]
    partition: Partition

    def describe_stage(self, stage: int) -> str:
        """The stage in words for messages: its number, segments and mesh."""
        names = self.segments[stage]
        span = repr(names[0]) if len(names) == 1 else f"{names[0]!r} to {names[-1]!r}"
        plural = "segment" if len(names) == 1 else "segments"
        return (
            f"stage {stage} ({plural} {span}) of {self.phase!r} on mesh {self.placement[stage]!r}"
        )

    def task(self, instruction: Run | Transfer) -> str:
        """How spans of this instruction are called in a timeline; the same in every pass."""
        return task_of(self.phase, instruction)


def task_of(phase: str, instruction: Run | Transfer) -> str:
    """How spans of an instruction of a phase are called in a timeline; the same in every pass."""
    if isinstance(instruction, Run):
        return f"{phase}: stage {instruction.stage}"
    return f"{phase}: {track_of_link(instruction.source, instruction.target)}"


def track_of_link(source: str, target: str) -> str:
    """The name of a link where meshes and links are listed side by side."""
    return f"{source} -> {target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An instruction and the track (mesh name, or `a -> b` for a link) that executes it."""

    track: str
    instruction: Instruction


def sequence(program: Program) -> tuple[Step, ...]:
    """One order of all instructions that a single thread can follow without waiting.

    Raises:
        InternalError: the lists wait for each other, or use a value that is nowhere produced.
    """
    tracks: list[tuple[str, list[Instruction]]] = [
        *((mesh, list(todo)) for mesh, todo in program.meshes),
        *((track_of_link(*link), list(todo)) for link, todo in program.links),
    ]
    present: set[tuple[str, int]] = set()
    unsent = [(t.source, v) for _, todo in program.links for t in todo for v in t.values]
    steps: list[Step] = []

    def ready(track: str, todo: Instruction) -> bool:
        if isinstance(todo, Run):
            return all((track, v) in present for v in todo.inputs)
        if isinstance(todo, Transfer):
            return all((todo.source, v) in present for v in todo.values)
        return all((track, v) not in unsent for v in todo.values)

    while True:
        heads = [(track, todo) for track, todo in tracks if todo]
        if not heads:
            return tuple(steps)
        found = next(((track, todo) for track, todo in heads if ready(track, todo[0])), None)
        if found is None:
            waiting = "; ".join(f"{track!r} waits at {todo[0]}" for track, todo in heads)
            raise InternalError(
                f"the program of phase {program.phase!r} is stuck: {waiting}; please report it"
            )
        track, todo = found
        instruction = todo.pop(0)
        if isinstance(instruction, Run):
            present.update((track, v) for v in instruction.outputs)
        elif isinstance(instruction, Transfer):
            present.update((instruction.target, v) for v in instruction.values)
            for v in instruction.values:
                unsent.remove((instruction.source, v))
        else:
            present.difference_update((track, v) for v in instruction.values)
        steps.append(Step(track=track, instruction=instruction))
