"""Who runs a task: the thread of its lane, or whoever made it ready."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.graph import trace
from gimlax.runtime.jobs import Ending, Job
from gimlax.runtime.lines import Line
from gimlax.runtime.passes import Pass
from gimlax.runtime.pipeline import Pipeline
from gimlax.runtime.schedule import Schedule

ONES = np.ones(4, np.float32)
PARAMS = [np.eye(4, dtype=np.float32)] * 3


def steps(params, x):
    for weights in params:
        x = jnp.tanh(x @ weights)
        x = x / (1 + jnp.abs(x).mean())
    return x


class Watched:
    """A pipeline over the stages of an executable; notes which thread called a stage."""

    def __init__(self, step, took_s=0.0, **settings):
        self.phase = step._phase
        self.placed = step.place(PARAMS)
        self.schedule = Schedule.build(self.phase)
        self.took_s, self.now_s = took_s, 0.0
        self.threads, self.ended = [], []
        stages = [self.watch(stage) for stage in self.phase.stages]
        object.__setattr__(self.phase, "stages", tuple(stages))
        meshes = tuple(dict.fromkeys(stage.mesh for stage in stages))
        links = tuple((a, b) for a in meshes for b in meshes if a != b)
        self.pipeline = Pipeline(
            meshes,
            links,
            max_in_flight=None,
            clock=lambda: self.now_s,
            recording=lambda: None,
            **settings,
        )

    def watch(self, stage):
        call = stage.call

        def watched(*args):
            self.threads.append(threading.current_thread().name)
            self.now_s += self.took_s
            return call(*args)

        fields = {name: getattr(stage, name) for name in stage.__slots__}
        return type(stage)(**{**fields, "call": watched})

    def run(self):
        """Runs a pass to its end; the threads that called its stages."""
        self.threads.clear()
        done = threading.Event()
        ending = Ending(lambda result, error: (self.ended.append(error), done.set()))
        (key,) = self.phase.stages[0].streamed
        work = Pass(self.phase, (self.placed,), (), {key: ONES})
        assert self.pipeline.begin(Job(work, self.schedule, ending, lambda _: None))
        assert done.wait(60)
        assert self.ended.pop() is None
        return set(self.threads)


@pytest.fixture
def watched(deploy):
    made = []

    def watch(placement, **settings):
        step = deploy(trace(steps, PARAMS, ONES), placement)
        made.append(Watched(step, **settings))
        return made[-1]

    yield watch
    for each in made:
        each.pipeline.stop()


ME = threading.current_thread().name


def test_short_stages_run_where_they_become_ready_once_that_is_known(watched):
    pipeline = watched(("cpu", "cpu"), try_send=lambda *_: False)
    assert pipeline.run() == {"gimlax cpu"}
    assert pipeline.run() == {ME}


def test_long_stages_run_in_the_thread_of_their_mesh(watched):
    pipeline = watched(("cpu", "cpu"), took_s=1.0, try_send=lambda *_: False)
    for _ in range(3):
        assert pipeline.run() == {"gimlax cpu"}


def test_a_stage_that_was_slow_once_is_still_short(watched):
    pipeline = watched(("cpu",), try_send=lambda *_: False)
    pipeline.run()
    pipeline.took_s = 2e-4
    assert pipeline.run() == {ME}
    pipeline.took_s = 0.0
    assert pipeline.run() == {ME}
    pipeline.took_s = 1.0
    assert pipeline.run() == {ME}
    assert pipeline.run() == {"gimlax cpu"}


@pytest.mark.parametrize(
    ("placement", "settings"),
    [
        (("cpu", "cpu"), {}),
        (("cpu", "cpu"), {"try_send": lambda *_: False, "in_order": True}),
        (("cpu", "cpu:1"), {"try_send": lambda *_: False}),
    ],
    ids=["in this process", "over processes", "several meshes"],
)
def test_where_others_could_run_meanwhile_each_mesh_has_its_thread(placement, settings, watched):
    pipeline = watched(placement, **settings)
    for _ in range(3):
        assert pipeline.run() == {f"gimlax {mesh}" for mesh in placement}


def test_a_transfer_that_would_have_to_wait_is_left_to_its_thread(watched):
    asked = []

    def refuse(work, transfer):
        asked.append(threading.current_thread().name)
        return False

    pipeline = watched(("cpu", "cpu:1"), try_send=refuse)
    for _ in range(2):
        pipeline.run()
    assert asked == ["gimlax cpu"] * 2


def test_stopping_waits_for_whoever_runs_a_stage(watched):
    pipeline = watched(("cpu",), try_send=lambda *_: False)
    pipeline.run()
    (stage,) = pipeline.phase.stages
    reached, go_on, waiting = (threading.Event() for _ in range(3))
    call = stage.call

    def held(*args):
        reached.set()
        assert go_on.wait(60)
        return call(*args)

    object.__setattr__(stage, "call", held)
    runs = threading.Thread(target=pipeline.run)
    runs.start()
    assert reached.wait(60)

    changed = pipeline.pipeline._passes.changed
    wait = changed.wait
    changed.wait = lambda: (waiting.set(), wait())
    stops = threading.Thread(target=pipeline.pipeline.stop)
    stops.start()
    assert waiting.wait(60)
    assert stops.is_alive()
    go_on.set()
    stops.join(60)
    assert not stops.is_alive()
    runs.join(60)


def test_a_line_gives_what_came_in_the_order_in_which_it_was_announced():
    line = Line()
    for item in "abc":
        line.expect(item)
    line.append("b")
    assert not line
    line.append("a")
    assert line
    assert line[0] == line.popleft() == "a"
    assert line.popleft() == "b"
    assert not line
    line.append("c")
    line.appendleft(line.popleft())
    assert line.popleft() == "c"
