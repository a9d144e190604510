"""The tasks of a program as a graph: what each waits for, so that passes can interleave.

Derived from the instruction lists and read-only: a pass in flight keeps its own counters.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from gimlax.errors import InternalError
from gimlax.program import Free, Run, Transfer, track_of_link
from gimlax.runtime.passes import CompiledPhase, Key


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Schedule:
    """The tasks of a phase, Runs and Transfers, and what each waits for.

    `missing[i]` values have to arrive before task i is ready; `wakes` says which tasks wait for a
    value; `readers` counts the tasks that read a value which is dropped after the last of them.
    `task_of_stage` is None for a stage that runs in another process; the transfers in `inbound`
    are made there too, and those in `outbound` go to one.
    """

    tasks: tuple[Run | Transfer, ...]
    tracks: tuple[str, ...]
    missing: tuple[int, ...]
    wakes: Mapping[Key, tuple[int, ...]]
    readers: Mapping[Key, int]
    task_of_stage: tuple[int | None, ...]
    inbound: frozenset[int]
    outbound: frozenset[int]

    @property
    def num_awaited(self) -> int:
        """Tasks whose end is the end of the pass here: stages, and what goes to other processes."""
        return len(self.task_of_stage) - self.task_of_stage.count(None) + len(self.outbound)

    def place_of(self, transfer: Transfer) -> int:
        """Which of the transfers of its link it is: both ends of a link count alike."""
        track = track_of_link(transfer.source, transfer.target)
        return [t for t, at in zip(self.tasks, self.tracks) if at == track].index(transfer)

    def task_at(self, track: str, place: int) -> int:
        """The task that `place_of` says; see there.

        Raises:
            InternalError: nothing comes in there.
        """
        found = [i for i, at in enumerate(self.tracks) if at == track][place : place + 1]
        if not found or found[0] not in self.inbound:
            raise InternalError(f"nothing was to come over {track!r} as number {place}")
        return found[0]

    @classmethod
    def build(cls, phase: CompiledPhase, elsewhere: Container[str] = ()) -> "Schedule":
        """Reads the instruction lists of a phase; meshes `elsewhere` are in other processes."""
        found = [
            (step.instruction, step.track)
            for step in phase.steps
            if not isinstance(step.instruction, Free)
        ]
        needed = [
            () if isinstance(task, Transfer) and task.source in elsewhere else reads(task, track)
            for task, track in found
        ]
        wakes: dict[Key, list[int]] = {}
        for index, keys in enumerate(needed):
            for key in keys:
                wakes.setdefault(key, []).append(index)
        freed = {
            (step.track, value)
            for step in phase.steps
            if isinstance(step.instruction, Free)
            for value in step.instruction.values
        }
        stages = {task.stage: i for i, (task, _) in enumerate(found) if isinstance(task, Run)}
        return cls(
            tasks=tuple(task for task, _ in found),
            tracks=tuple(track for _, track in found),
            missing=tuple(len(keys) for keys in needed),
            wakes={key: tuple(of) for key, of in wakes.items()},
            readers={key: len(wakes.get(key, ())) for key in freed},
            task_of_stage=tuple(stages.get(s) for s in range(len(phase.stages))),
            inbound=frozenset(
                i
                for i, (task, _) in enumerate(found)
                if isinstance(task, Transfer) and task.source in elsewhere
            ),
            outbound=frozenset(
                i
                for i, (task, _) in enumerate(found)
                if isinstance(task, Transfer) and task.target in elsewhere
            ),
        )


def reads(task: Run | Transfer, track: str) -> tuple[Key, ...]:
    """The values that a task needs, as (mesh, value id)."""
    if isinstance(task, Run):
        return tuple((track, value) for value in task.inputs)
    return tuple((task.source, value) for value in task.values)


def writes(task: Run | Transfer, track: str) -> tuple[Key, ...]:
    """The values that a task makes, as (mesh, value id)."""
    if isinstance(task, Run):
        return tuple((track, value) for value in task.outputs)
    return tuple((task.target, value) for value in task.values)
