"""The tasks of one mesh or link that are ready: run one at a time, in the order they became ready.

Every lane has a thread. In a process that serves one mesh, whoever makes a task ready runs it at
once instead if the lane is idle and the task is short: waking a thread takes longer than a short
task (20 to 60 µs against 10 to 30 for a small stage; AMD Genoa, 2 cores shared with others,
November 2026), and nothing else could run there meanwhile. Between several meshes of a process it
could, so there every task is its lane's thread's.
"""

from collections import deque
from queue import SimpleQueue

from gimlax.runtime.jobs import Job, Running
from gimlax.runtime.lines import Line
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule

__all__ = ["Lane", "Task"]

Task = tuple[Job, int]  # a pass, and the place of the task in its schedule
_Times = dict[tuple[Schedule, int], float]

_SHORT_S = 2e-4  # for which a thread that has other things to do may be kept
_BRIEF_S = 1e-4  # for which a thread waits rather than calls another one to wait
_FORGETS = 8  # how slowly a task that took longer once is taken for a long one


class Lane:
    """Ready tasks of one track. The pipeline's lock guards it.

    Attributes:
        track: name of the mesh or link.
        ready: tasks that wait for their turn.
        busy: whether somebody runs a task of it just now.
        ahead: stages that were dispatched and are not done; at most `most_ahead`.
        calls: wakes the lane's thread; False ends it.
        tokens: dispatched stages for the watcher of a mesh; None ends it.
        last_end_s: when its last stage was done.
    """

    __slots__ = (
        "_done_s",
        "_took_s",
        "ahead",
        "busy",
        "calls",
        "last_end_s",
        "most_ahead",
        "ready",
        "tokens",
        "track",
    )

    def __init__(self, track: str, *, ahead: int, in_order: bool = False) -> None:
        """Has no task yet.

        Args:
            track: name of the mesh or link.
            ahead: stages that may be dispatched and not done.
            in_order: whether tasks wait until those that were expected before them were run.
        """
        self.track = track
        self.most_ahead = ahead
        self.ready: deque[Task] | Line[Task] = Line() if in_order else deque()
        self.busy = False
        self.ahead = 0
        self.calls: SimpleQueue[bool] = SimpleQueue()
        self.tokens: SimpleQueue[Running | None] = SimpleQueue()
        self.last_end_s = float("-inf")
        self._took_s: _Times = {}
        self._done_s: _Times = {}

    @property
    def is_free(self) -> bool:
        """Whether a task waits, and may be run."""
        return bool(self.ready) and not self.busy and self.ahead < self.most_ahead

    def expect(self, task: Task) -> None:
        """Announces a task where the order of tasks is that of the announcements."""
        if isinstance(self.ready, Line):
            self.ready.expect(task)

    def is_short(self, job: Job, index: int) -> bool:
        """Whether a task kept its thread for a short time lately; one that never ran did not."""
        return self._took_s.get((job.schedule, index), _SHORT_S) < _SHORT_S

    def is_brief(self, job: Job, index: int) -> bool:
        """Whether a stage was soon done lately, counted from its dispatch."""
        return self._done_s.get((job.schedule, index), _BRIEF_S) < _BRIEF_S

    def took(self, job: Job, index: int, took_s: float) -> None:
        """Notes for how long a task kept its thread."""
        _note(self._took_s, (job.schedule, index), took_s)

    def stamp(self, running: Running, end_s: float, recording: Recording | None) -> None:
        """Notes when a stage was done, and how long after its dispatch began, or the one before."""
        job = running.job
        start_s, self.last_end_s = max(running.start_s, self.last_end_s), end_s
        _note(self._done_s, (job.schedule, running.index), end_s - start_s)
        if recording is not None:
            task = job.schedule.tasks[running.index]
            recording.add(self.track, job.work.phase.task(task), start_s, end_s)


def _note(times: _Times, task: tuple[Schedule, int], took_s: float) -> None:
    """What was slow only once counts little: others may have used the processor."""
    known_s = times.get(task, took_s)
    times[task] = min(took_s, known_s + (took_s - known_s) / _FORGETS)
