"""A stage that never ends is noticed where it runs, and its worker given up."""

import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from gimlax.graph import trace
from gimlax.runtime.workers.hanging import Hangs
from gimlax.runtime.workers.orders import Orders
from gimlax.runtime.workers.site import Site
from gimlax.runtime.workers.wire import Message
from tests.runtime.workers.conftest import cluster_of, compile_on

EVERY_S = 0.5
A_MINUTE = 120  # looks


class Stage:
    def __init__(self, description):
        self.description = description


class Phase:
    def __init__(self, *stages):
        self.stages = stages


MINE, LATER = Stage("stage 1 of 'f'"), Stage("stage 0 of 'g'")


@pytest.fixture
def hangs():
    """Of two phases, of which the first has a stage on another worker."""
    return Hangs([Phase(None, MINE), Phase(LATER)], EVERY_S)


def looks_until_told(hangs, number, stage, most=100_000):
    for count in range(1, most):
        if said := hangs.look({"gpu": (number, stage)}):
            return count, said
    return None


def test_after_a_minute_the_stage_is_named(hangs):
    hangs.came_through(0)
    count, said = looks_until_told(hangs, 7, MINE)
    assert count == A_MINUTE + 2  # the first look is no time, and a minute may pass
    assert said == "stage 1 of 'f' has not ended for 60 s, and never took more than 0.5 s before"


def test_the_first_pass_of_a_phase_may_take_any_time(hangs):
    assert looks_until_told(hangs, 0, MINE, most=10 * A_MINUTE) is None
    hangs.came_through(1)  # another phase says nothing of it
    assert looks_until_told(hangs, 0, MINE, most=10 * A_MINUTE) is None


def test_what_took_long_before_may_take_a_hundred_times_as_long(hangs):
    hangs.came_through(0)
    for _ in range(10):
        assert not hangs.look({"gpu": (1, MINE)})
    hangs.look({})  # it has ended after 10 looks
    count, said = looks_until_told(hangs, 2, MINE)
    assert count == 1000 + 2
    assert said.endswith("has not ended for 500 s, and never took more than 5 s before")


def test_passes_and_stages_are_told_apart(hangs):
    hangs.came_through(0)
    hangs.came_through(1)
    for number in range(10 * A_MINUTE):  # each pass is done before the next look
        assert not hangs.look({"gpu": (number, MINE), "cpu": (number, LATER)})


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def test_a_worker_of_which_a_stage_hangs_is_given_up_with_that_reason():
    params, x = [np.eye(8, dtype=np.float32)] * 4, np.ones((2, 8), np.float32)
    cluster = cluster_of(*(WorkerSpec(name=name, platforms="cpu") for name in ("one", "two")))
    with (
        gx.start_workers(cluster) as workers,
        compile_on(workers, trace(layers, params, x), ("one", "two")) as step,
    ):
        placed = step.place(params)
        expected = np.asarray(step(placed, x))
        footing = step._deployment.executor._ground.footing
        fields = {"deployment": footing.number, "what": "stage 1 has not ended for 60 s"}
        workers.peers["two"]._listeners[footing.number](Message(kind="hung", fields=fields))
        with pytest.warns(UserWarning, match="'two' is lost: it hangs: stage 1 has not ended"):
            np.testing.assert_array_equal(step(placed, x), expected)
        assert workers.lost == ("two",)


def test_a_site_tells_of_what_its_pipeline_hangs_at(monkeypatch):
    monkeypatch.setattr("gimlax.runtime.workers.site._STALLED_S", 0.002)
    told, ended = [], threading.Event()

    def tell(kind, fields):
        told.append((kind, fields))
        ended.set()

    running = SimpleNamespace(job=SimpleNamespace(work=SimpleNamespace(number=7)), stage=MINE)
    orders = Orders(phases=(), axes=(), owners=())
    busy = [True, False]  # elsewhere at first: then nothing is counted
    site = Site(
        orders,
        (),
        {},
        {},
        (),
        tell,
        member=0,
        busy_elsewhere=lambda: busy.pop(0) if len(busy) > 1 else busy[0],
    )
    site._hangs = Hangs([Phase(None, MINE)], 1.0)
    site._hangs.came_through(0)
    site._pipeline = SimpleNamespace(under_way=lambda: {"gpu": running}, stop=lambda: None)
    assert ended.wait(60)
    site.close()
    assert told[0][0] == "hung"
    assert told[0][1]["what"].startswith("stage 1 of 'f' has not ended for 101 s")
