"""Workers that die or hang: passes end once and right, state is rebuilt, handles stay good."""

import os
import signal

import jax
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from gimlax.runtime.compiling import compile
from tests import zoo
from tests.runtime.conftest import gimlax_threads, trace_specimen
from tests.runtime.workers.conftest import compile_on, hurt, pid_of

LIMIT_S = 60


class Stream:
    """Passes over one recurrent state, next to the same in this process."""

    def __init__(self, step, specimen):
        self.step, self.specimen = step, specimen
        params, state, self.x = specimen.args
        self.params, self.expected = params, state
        self.placed, self.state = step.place(params), step.init(state)
        self.alone = jax.jit(specimen.fn)
        self.pending = []
        self.count = 0

    def submit(self, passes):
        for _ in range(passes):
            self.count += 1
            x = self.x * np.float32(self.count)
            future = self.step.submit(self.placed, self.state, x)
            (self.state,) = future.carried
            self.pending.append((future, x))

    def check(self):
        for future, x in self.pending:
            out, _ = future.result(LIMIT_S)
            expected, self.expected = self.alone(self.params, self.expected, x)
            np.testing.assert_array_equal(out, expected)
        self.pending = []
        found = gx.gather(self.state)
        jax.tree.map(np.testing.assert_array_equal, found, self.expected)
        assert self.state.generation == self.count


@pytest.fixture
def stream(crew):
    specimen = zoo.recurrent()
    opened = []

    def start(placement=("one", "two", "three"), **settings):
        plan = gx.plan(
            trace_specimen(specimen), crew.cluster, cuts=len(placement), meshes=placement
        )
        step = compile(plan, trace_specimen(specimen), workers=crew, **settings)
        opened.append(step)
        return Stream(step, specimen)

    yield start
    for step in opened:
        step.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_passes_in_flight_are_completed_and_nothing_is_applied_twice(name, how, crew, stream):
    run = stream()
    run.submit(5)
    run.check()
    run.submit(3)
    with pytest.warns(UserWarning, match=rf"worker '{name}' is lost.* segments .* now run on"):
        os.kill(pid_of(crew, name), how)
        run.submit(12)
        run.check()
        run.submit(1)
    run.check()
    assert name not in run.step.program.placement
    assert run.step.plan.layout.route()[1] == run.step.program.placement


def test_a_worker_after_the_other_until_all_are_started_again(crew, stream):
    run = stream()
    with pytest.warns(UserWarning, match="workers that were started again|now run on"):
        for name in ("two", "three", "one"):
            run.submit(4)
            hurt(crew, name)
            run.submit(4)
            run.check()
        run.submit(1)
        run.check()
    assert crew.lost == ()


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_a_state_that_nobody_uses_is_rebuilt_too(crew, stream):
    run = stream()
    run.submit(6)
    run.check()
    copy = run.state.copy()
    path = copy._tree.paths[1]
    written = np.arange(24, dtype=np.float32)
    copy.write(path, written)
    copy.write(path, np.float32(5), 3)
    expected = gx.gather(copy)
    assert (expected[1] == np.where(np.arange(24) == 3, 5, written)).all()
    hurt(crew, "one")
    jax.tree.map(np.testing.assert_array_equal, gx.gather(copy), expected)
    run.check()
    run.submit(2)
    run.check()
    jax.tree.map(np.testing.assert_array_equal, gx.gather(copy), expected)


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_the_log_of_a_state_is_cut_short(crew, stream, monkeypatch):
    monkeypatch.setattr("gimlax.runtime.workers.flights._MOST_LOGGED", 8)
    run = stream()
    run.submit(30)
    run.check()
    (cells,) = run.state._cells
    assert cells[0].origin.num_events <= 8
    hurt(crew, "two")
    run.submit(3)
    run.check()


def test_without_a_log_passes_that_need_lost_state_fail_and_others_do_not(crew, stream):
    run = stream(on_loss="fail")
    run.submit(2)
    run.check()
    hurt(crew, "two")
    with pytest.raises(gx.BackendError, match=r"it died with a worker; .*on_loss='replay'"):
        gx.gather(run.state)
    with pytest.warns(UserWarning, match="worker 'two' is lost"):
        with pytest.raises(gx.BackendError, match="it died with a worker"):
            run.submit(1)
        assert not run.pending
        fresh = Stream(run.step, run.specimen)
        fresh.submit(3)
        fresh.check()


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_state_of_survivors_is_kept_without_a_log(crew):
    def apply(params, a, b, x):
        y = jnp_tanh(x @ params[0]) + a
        return jnp_tanh(y @ params[1]) @ params[2], a + y.sum(0)

    params = [zoo.normal(4, 4, seed=i) for i in range(3)]
    a = np.zeros(4, np.float32)
    traced = trace(
        lambda p, a, x: apply(p, a, None, x), params, a, np.ones((2, 4), np.float32), carried={1: 1}
    )
    with compile_on(crew, traced, ("one", "two"), on_loss="fail") as step:
        placed, state = step.place(params), step.init(a)
        _, state = step(placed, state, np.ones((2, 4), np.float32))
        before = gx.gather(state)
        hurt(crew, "two")
        np.testing.assert_array_equal(gx.gather(state), before)
        _, state = step(placed, state, np.ones((2, 4), np.float32))
        assert state.generation == 2


def jnp_tanh(x):
    return jax.numpy.tanh(x)


def test_a_worker_that_dies_while_it_compiles_is_planned_around(crew):
    specimen = zoo.recurrent()
    peer = crew.peers["two"]
    ask = peer.begin

    def begin(kind, fields, arrays=()):
        if kind == "prepare":
            os.kill(pid, signal.SIGKILL)
        return ask(kind, fields, arrays)

    pid = pid_of(crew, "two")
    peer.begin = begin
    with pytest.warns(UserWarning, match="worker 'two' is lost.* was planned anew: segments '"):
        step = compile_on(crew, trace_specimen(specimen), ("one", "two"))
    with step:
        assert "two" not in step.program.placement
        run = Stream(step, specimen)
        run.submit(2)
        run.check()


def test_what_is_planned_anew_narrows_what_the_plan_did(crew, monkeypatch):
    specimen = zoo.recurrent()
    traced, asked = trace_specimen(specimen), []

    def planned(*args, **wishes):
        asked.append(wishes["wire"])
        return gx.plan(*args, **wishes)

    monkeypatch.setattr("gimlax.runtime.workers.places.plan", planned)
    for wire in (None, "bfloat16"):
        plan = gx.plan(traced, crew.cluster, cuts=2, meshes=("one", "three"), wire=wire)
        with compile(plan, traced, workers=crew) as step:
            params, state, x = specimen.args
            with pytest.warns(UserWarning, match="'three' is lost"):
                hurt(crew, "three")
                step(step.place(params), step.init(state), x)
        crew.start_again("three")
    assert asked == [None, "bfloat16"]


def test_all_handles_of_a_compilation_are_equal_in_owner_after_a_loss(crew, stream):
    run = stream()
    owner = run.placed.owner
    before = gx.gather(run.placed)
    hurt(crew, "three")
    with pytest.warns(UserWarning, match="is lost"):
        run.submit(1)
        run.check()
        run.submit(1)
        run.check()
    assert run.placed.owner is owner is run.step.owner
    assert "three" not in run.placed.meshes
    assert run.placed.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(before))
    jax.tree.map(np.testing.assert_array_equal, gx.gather(run.placed), run.params)


def test_on_loss_is_one_of_two_words(crew, stream):
    with pytest.raises(gx.SpecError, match="on_loss is 'retry'; give 'replay' or 'fail'"):
        stream(on_loss="retry")


def test_no_thread_or_process_is_left(crew, stream):
    before = set(gimlax_threads())
    run = stream()
    run.submit(2)
    run.check()
    run.step.close()
    assert set(gimlax_threads()) <= before


def test_what_was_loaded_from_files_is_read_again_for_the_worker_that_takes_over(
    tmp_path, crew, stream
):
    run = stream()
    path = tmp_path / "weights"
    gx.save(path, run.params)
    run.placed = gx.load(path, plan=run.step)
    run.submit(3)
    run.check()
    with pytest.warns(UserWarning, match="worker 'two' is lost"):
        hurt(crew, "two")
        run.submit(3)
        run.check()
    jax.tree.map(np.testing.assert_array_equal, gx.gather(run.placed), run.params)
