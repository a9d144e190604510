"""Checks of live passes over workers: the same reports as in one process, whatever is lost."""

import dataclasses
import gc
import threading
from concurrent.futures import wait

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import Workload, chain, trace
from gimlax.runtime import exporting
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.tapped import RemoteTap
from tests import zoo
from tests.runtime.conftest import trace_specimen
from tests.runtime.workers.conftest import compile_on, hurt

LIMIT_S = 60


def taps_kept(step):
    """How many taps there are on each worker."""
    footing = step._deployment.executor._ground.footing
    about = {"deployment": footing.number}
    return [peer.ask("census", about)[0]["taps"] for peer in footing.peers.values()]


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_passes_are_within_their_bounds_and_unchanged(kind, workers):
    specimen = zoo.ZOO[kind]()
    traced = trace_specimen(specimen)
    with compile_on(workers, traced, ("two", "other"), check_every=1) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        found = gx.gather(step(*args))
        (check,) = step.checks
        assert check.ok, check
        assert taps_kept(step) == [0, 0]
        probed = gx.probe(step, *args)
    of_pass = [(f.stage, f.mesh, f.what, f.dtype, f.shape) for f in check.report.findings]
    assert of_pass == [(f.stage, f.mesh, f.what, f.dtype, f.shape) for f in probed.findings]
    with compile_on(workers, traced, ("two", "other")) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        jax.tree.map(np.testing.assert_array_equal, found, gx.gather(step(*args)))


@pytest.mark.parametrize("piece_bytes", [2**18, 100])
def test_every_nth_pass_is_checked_with_its_own_state(piece_bytes, workers, monkeypatch):
    """State is donated by the stage that takes it, and handed on before the check asks for it."""
    monkeypatch.setattr("gimlax.runtime.workers.tapped._PIECE_BYTES", piece_bytes)
    specimen = zoo.recurrent()
    params, state, x = specimen.args
    with compile_on(workers, trace_specimen(specimen), ("one", "two"), check_every=3) as step:
        placed, state = step.place(params), step.init(state)
        futures = []
        for i in range(7):
            futures.append(step.submit(placed, state, x * np.float32(i + 1)))
            (state,) = futures[-1].carried
        expected = specimen.args[1]
        for i, future in enumerate(futures):
            out, _ = future.result(LIMIT_S)
            y, expected = jax.jit(specimen.fn)(params, expected, x * np.float32(i + 1))
            np.testing.assert_array_equal(out, y)
        checks = step.checks
        assert [check.number for check in checks] == [1, 4, 7]
        assert all(check.ok for check in checks), checks
        bounds = {tuple(f.bound for f in check.report.findings) for check in checks}
        assert len(bounds) == 3
        assert "inputs of this pass" in str(checks[0].report)
        assert taps_kept(step) == [0, 0]


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


PARAMS = [np.eye(16, dtype=np.float32) * np.float32(0.5 + i / 8) for i in range(4)]
X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)


@pytest.fixture
def crook(monkeypatch):
    """The stage that travels to a mesh is not the one that was traced."""
    honest = exporting.form_of

    def make(mesh, wrong):
        def crooked(program, stage, *rest):
            form = honest(program, stage, *rest)
            if program.placement[stage.index] != mesh:
                return form

            def function(*args):
                updated, produced, token = form.function(*args)
                return updated, tuple(map(wrong, produced)), token

            return dataclasses.replace(form, function=function)

        monkeypatch.setattr(exporting, "form_of", crooked)

    return make


def test_a_stage_that_is_wrong_on_its_worker_is_named(workers, crook):
    crook("two", lambda y: y * 1.01)
    traced = trace(layers, PARAMS, X)
    with compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1) as step:
        placed = step.place(PARAMS)
        with pytest.warns(gx.ContractWarning, match=r"stage 1 .*'two'.*breaks the numerical"):
            assert np.isfinite(step(placed, X)).all()
            first, second = step.checks + (step(placed, X), step.checks)[1][1:]
    assert {f.stage for f in first.report.breaches} == {1}
    assert first.report.divergence.stage == 1  # looked for once, with parts of the stage
    assert second.report.breaches and second.report.divergence is None


def test_what_is_wrong_on_the_way_is_the_fault_of_the_link(workers, monkeypatch):
    """What a stage was given is what its reference is given, whatever its neighbour had sent."""
    monkeypatch.setattr("gimlax.runtime.workers.deploying._narrowings", narrowings)
    traced = trace(layers, PARAMS, X)
    told = pytest.warns(gx.ContractWarning, match=r"link 'one -> two' breaks the numerical")
    with compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1) as step, told:
        step(step.place(PARAMS), X)
        (check,) = step.checks
    assert all(f.is_transfer for f in check.report.breaches)


def narrowings(plan):
    return {(of.source, of.target): "bfloat16" for of in plan.carriers}


def test_a_value_that_a_mesh_only_hands_on_is_compared_on_each_hop(workers):
    def skips(params, x):
        early = jnp.tanh(x.sum(0))
        return jnp.tanh(layers(params[:2], x) @ params[2]) + early

    traced = trace(skips, PARAMS[:3], X)
    placement = ("one", "two", "other")
    with compile_on(workers, traced, placement, cuts=(1, 2), check_every=1) as step:
        received = step.program.partition.stages[1].received
        crossing = {v for _, (transfer,) in step.program.links for v in transfer.values}
        assert len(crossing.difference(received)) == 2  # handed on, and made by 'two'
        step(step.place(PARAMS[:3]), X)
        (check,) = step.checks
    assert check.ok
    transfers = [f for f in check.report.findings if f.is_transfer]
    assert [f.mesh for f in transfers] == ["one -> two"] * 2 + ["two -> other"] * 2
    assert all(f.absolute == 0 for f in transfers)


def diverging(params, state, x):
    """Its state grows until it is infinite, and in the second stage infinity becomes NaN."""
    state = state * params["a"]
    x = x @ params["w"] + state
    x = jnp.maximum(x, 0) @ params["w"]
    return (x - x[:, ::-1]) @ params["w"], state


def test_the_first_stage_that_makes_nan_is_named(workers):
    params = {"a": np.float32(1e20), "w": np.ones((4, 4), np.float32)}
    state, x = np.ones(4, np.float32), np.ones((2, 4), np.float32)
    traced = trace(diverging, params, state, x, carried={1: 1})
    with compile_on(workers, traced, ("one", "two"), cuts=(1,), check_every=1) as step:
        placed, state = step.place(params), step.init(state)
        with pytest.warns(gx.ContractWarning):
            for _ in range(3):
                _, state = step(placed, state, x)
            checks = step.checks
    assert [bool(check.not_finite) for check in checks] == [False, True, True]
    said = checks[1].not_finite
    assert "NaN" in said and "stage 1" in said and "'two'" in said
    assert "makes the same of it" in said  # it is the model's doing


def test_nan_of_a_worker_alone_is_told_from_that_of_the_model(workers, crook):
    crook("two", lambda y: y * jnp.nan)
    traced = trace(layers, PARAMS, X)
    told = pytest.warns(gx.ContractWarning, match=r"pass 1: stage 1 .*NaN.*none of it there")
    with compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1) as step, told:
        step(step.place(PARAMS), X)
        assert len(step.checks) == 1


def test_each_phase_is_checked(workers):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    phases = {
        name: trace(specimen.fn, params, cache, of, position, carried={1: 1})
        for name, of in (("prefill", tokens), ("decode", tokens[:1]))
    }
    with compile_on(workers, chain(Workload(phases)), ("one", "two"), check_every=2) as steps:
        placed, state = steps.place(params), steps.init(cache)
        _, state = steps["prefill"](placed, state, tokens, np.int32(0))
        for i in range(3):
            _, state = steps["decode"](placed, state, tokens[:1], np.int32(len(tokens) + i))
        found = {name: [(of.number, of.ok) for of in steps[name].checks] for name in steps}
        assert found == {"prefill": [(1, True)], "decode": [(1, True), (3, True)]}
        assert taps_kept(steps) == [0, 0]


def test_numbers_of_64_bits_and_keys_are_compared(workers):
    def drawn(w, state, x, key):
        noise = jax.random.normal(key, x.shape, x.dtype)
        y = jnp.tanh(x @ w + state.sum()) + noise
        return jnp.tanh(y @ w) @ w, state + y.sum(0), jax.random.split(key, 2)

    with jax.enable_x64(True):
        w, state, x = np.eye(4) / 3, np.full(4, 1 / 3), np.linspace(-1, 1, 8).reshape(2, 4)
        key = jax.random.key(3)
        traced = trace(drawn, w, state, x, key, carried={1: 1})
    with compile_on(workers, traced, ("one", "two"), check_every=1) as step:
        step(step.place(w), step.init(state), x, key)
        (check,) = step.checks
        assert check.ok, check.report
    assert {f.dtype for f in check.report.findings} >= {"float64"}
    assert all(f.absolute < 1e-12 for f in check.report.findings)


def test_a_user_who_makes_errors_of_warnings_gets_one_and_workers_are_let_go(workers, crook):
    crook("two", lambda y: y * 1.01)
    traced = trace(layers, PARAMS, X)
    step = compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1)
    number = step._deployment.executor._ground.footing.number
    step(step.place(PARAMS), X)
    with pytest.raises(gx.ContractWarning, match="pass 1"):
        step.close()
    for name in ("one", "two"):
        with pytest.raises(gx.InternalError, match="is not on this worker"):
            workers.peers[name].ask("census", {"deployment": number})


def test_passes_that_are_submitted_in_callbacks_are_checked_too(workers):
    """A callback runs in the thread that hears the worker's answers, which a check needs."""
    traced = trace(layers, PARAMS, X)
    with compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1) as step:
        placed = step.place(PARAMS)
        futures, ended = [], threading.Event()

        def again(_):
            if len(futures) == 5:
                ended.set()
                return
            assert len(step.checks) <= len(futures)
            futures.append(step.submit(placed, X))
            futures[-1].add_done_callback(again)

        again(None)
        assert ended.wait(LIMIT_S)
        assert [check.number for check in step.checks] == [1, 2, 3, 4, 5]


def test_a_pass_that_is_under_way_at_the_end_is_checked(workers, monkeypatch):
    """Also one whose result is still put together when nothing is under way any more."""
    closing = threading.Event()

    def waits(futures):
        closing.set()
        return wait(futures)

    monkeypatch.setattr("gimlax.runtime.workers.executor.wait", waits)
    traced = trace(layers, PARAMS, X)
    step = compile_on(workers, traced, ("one", "two"), cuts=(2,), check_every=1)
    end = step._checks.end
    monkeypatch.setattr(step._checks, "end", lambda work: closing.wait(10) and end(work))
    step.submit(step.place(PARAMS), X)
    step.close()
    assert [check.number for check in step.checks] == [1]


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_a_pass_that_is_tried_again_is_checked_once(crew):
    specimen = zoo.recurrent()
    params, first, x = specimen.args
    traced = trace_specimen(specimen)
    with compile_on(crew, traced, ("one", "two", "three"), check_every=2) as step:
        placed, state = step.place(params), step.init(first)
        futures = []
        for i in range(9):
            if i in (3, 6):
                # All that were submitted are under way or done; some will be started anew.
                hurt(crew, ("one", "two", "three")[i // 3])
            futures.append(step.submit(placed, state, x))
            (state,) = futures[-1].carried
        expected = first
        for future in futures:
            y, expected = jax.jit(specimen.fn)(params, expected, x)
            np.testing.assert_array_equal(future.result(LIMIT_S)[0], y)
        checks = step.checks
        numbers = [check.number for check in checks]
        assert sorted(set(numbers)) == numbers
        assert set(numbers) <= {1, 3, 5, 7, 9} and numbers[-1] == 9
        assert all(check.ok for check in checks)
        assert not any(taps_kept(step))


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_a_tap_that_died_with_a_worker_is_said_to_be_gone(crew, monkeypatch):
    """Also what a worker had that lives: with the other, the workload has moved."""
    asking, lost = threading.Event(), threading.Event()
    ask = RemoteTap.ask

    def late(tap, peer, kind, fields=None):
        if kind == "tapped":
            asking.set()
            assert lost.wait(LIMIT_S)
        return ask(tap, peer, kind, fields)

    monkeypatch.setattr(RemoteTap, "ask", late)
    traced = trace(layers, PARAMS, X)
    with compile_on(crew, traced, ("one", "two"), cuts=(2,), check_every=2) as step:
        placed = step.place(PARAMS)
        expected = step(placed, X)
        assert asking.wait(LIMIT_S)
        hurt(crew, "two")
        np.testing.assert_array_equal(step(placed, X), expected)
        lost.set()
        said = r"pass 1 could not be checked: .*the workload moved: worker 'two' is lost"
        with pytest.warns(gx.ContractWarning, match=said):
            assert step.checks == ()
        np.testing.assert_array_equal(step(placed, X), expected)
        assert [(check.number, check.ok) for check in step.checks] == [(3, True)]
        assert "two" not in {f.mesh for f in step.checks[0].report.findings}


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_failed_attempt_left_is_let_go_of(times, crew, monkeypatch):
    """One fails, and is tried again alone; another ends with its error."""
    start, failures = Footing.start, []

    def failing(footing, attempt):
        fails = attempt.tap is not None and len(failures) < times
        if fails:
            attempt.done = lambda _: None  # its workers may be quicker
        start(footing, attempt)
        if fails:
            failures.append(attempt)
            attempt.failed(gx.BackendError("injected"))

    monkeypatch.setattr(Footing, "start", failing)
    traced = trace(layers, PARAMS, X)
    with compile_on(crew, traced, ("one", "two"), cuts=(2,), check_every=2) as step:
        placed = step.place(PARAMS)
        first = step.submit(placed, X)
        if times == 2:
            with pytest.raises(gx.BackendError, match="injected"):
                first.result(LIMIT_S)
            for thread in threading.enumerate():  # whose frame would hold the tap, as these do
                if thread.name == "gimlax recover":
                    thread.join(LIMIT_S)
            del first
            failures.clear()
            gc.collect()
            times = 0
        else:
            first.result(LIMIT_S)
        step(placed, X)
        assert [check.number for check in step.checks] == [1][:times]
        assert taps_kept(step) == [0, 0]
