"""The tasks of a program as a graph: what each waits for, so that passes can interleave.

Derived from the instruction lists and read-only: a pass in flight keeps its own counters.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from gimlax.errors import InternalError
from gimlax.program import Free, Run, Transfer
from gimlax.runtime.passes import CompiledPhase, Key


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Schedule:
    """The tasks of a phase, Runs and Transfers, and what each waits for.

    Task i uses the values `reads[i]` and makes `writes[i]`; `missing[i]` of what it uses have to
    arrive before it is ready, and the tasks `wakes[i]` wait for what it makes, one entry a value.
    `readers` counts the tasks that read a value which is dropped after the last of them; of these
    task i reads `counted[i]`, and makes `unread[i]`, which nobody reads. `task_of_stage` is None
    for a stage that runs in another process; the transfers in `inbound` are made there too, and
    those in `outbound` go to one. `links` has the transfers of each link, in order: both its ends
    count them alike. `num_awaited` tasks, stages and what goes to other processes, are the end of
    the pass.
    """

    tasks: tuple[Run | Transfer, ...]
    tracks: tuple[str, ...]
    reads: tuple[tuple[Key, ...], ...]
    writes: tuple[tuple[Key, ...], ...]
    missing: tuple[int, ...]
    wakes: tuple[tuple[int, ...], ...]
    readers: Mapping[Key, int]
    counted: tuple[tuple[Key, ...], ...]
    unread: tuple[tuple[Key, ...], ...]
    task_of_stage: tuple[int | None, ...]
    inbound: frozenset[int]
    outbound: frozenset[int]
    links: Mapping[str, tuple[int, ...]]
    num_awaited: int

    def task_at(self, track: str, place: int) -> int:
        """The task that is a link's transfer of this place.

        Raises:
            InternalError: nothing comes in there.
        """
        found = self.links.get(track, ())[place : place + 1]
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
        reads = tuple(_reads(task, track) for task, track in found)
        inbound, outbound = (
            frozenset(
                i
                for i, (task, _) in enumerate(found)
                if isinstance(task, Transfer) and getattr(task, end) in elsewhere
            )
            for end in ("source", "target")
        )
        needed = [() if i in inbound else keys for i, keys in enumerate(reads)]
        writes = tuple(_writes(task, track) for task, track in found)
        waiting: dict[Key, list[int]] = {}
        for index, keys in enumerate(needed):
            for key in keys:
                waiting.setdefault(key, []).append(index)
        freed = {
            (step.track, value)
            for step in phase.steps
            if isinstance(step.instruction, Free)
            for value in step.instruction.values
        }
        readers = {key: len(waiting.get(key, ())) for key in freed}
        stages = {task.stage: i for i, (task, _) in enumerate(found) if isinstance(task, Run)}
        links: dict[str, list[int]] = {}
        for index, (task, track) in enumerate(found):
            if isinstance(task, Transfer):
                links.setdefault(track, []).append(index)
        return cls(
            tasks=tuple(task for task, _ in found),
            tracks=tuple(track for _, track in found),
            reads=reads,
            writes=writes,
            missing=tuple(len(keys) for keys in needed),
            wakes=tuple(tuple(i for key in of for i in waiting.get(key, ())) for of in writes),
            readers=readers,
            counted=tuple(tuple(key for key in of if key in readers) for of in reads),
            unread=tuple(tuple(key for key in of if readers.get(key) == 0) for of in writes),
            task_of_stage=tuple(stages.get(s) for s in range(len(phase.stages))),
            inbound=inbound,
            outbound=outbound,
            links={track: tuple(of) for track, of in links.items()},
            num_awaited=len(stages) + len(outbound),
        )


def _reads(task: Run | Transfer, track: str) -> tuple[Key, ...]:
    """The values that a task needs, as (mesh, value id)."""
    if isinstance(task, Run):
        return tuple((track, value) for value in task.inputs)
    return tuple((task.source, value) for value in task.values)


def _writes(task: Run | Transfer, track: str) -> tuple[Key, ...]:
    """The values that a task makes, as (mesh, value id)."""
    if isinstance(task, Run):
        return tuple((track, value) for value in task.outputs)
    return tuple((task.target, value) for value in task.values)
