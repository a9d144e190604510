"""Spans of workers whose host counts its seconds from another moment."""

import time

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gimlax.graph import trace
from gimlax.runtime.workers.clocks import _TRIPS, ahead_by
from tests.runtime.workers.conftest import compile_on

AWAY_S = st.floats(1e-5, 2)


class Hosts:
    """Two clocks of one time, which goes on by the next delay of each way."""

    def __init__(self, ahead_s, delays):
        self.now_s, self.ahead_s = 1000.0, ahead_s
        self.delays = iter(delays)

    def here(self):
        return self.now_s

    def read(self):
        self.now_s += next(self.delays)
        there_s = self.now_s + self.ahead_s
        self.now_s += next(self.delays)
        return there_s


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(AWAY_S, AWAY_S), min_size=_TRIPS, max_size=_TRIPS))
def test_the_error_is_at_most_half_of_the_shortest_round_trip(ahead_s, ways):
    hosts = Hosts(ahead_s, [delay for way in ways for delay in way])
    found = ahead_by(hosts.read, hosts.here)
    rounding = 1e-6  # of seconds beside a million
    # Half a trip around the truth; as much again where 0 was not to be told from it.
    assert abs(found - ahead_s) <= min(map(sum, ways)) + rounding
    if found:
        assert abs(found - ahead_s) <= min(map(sum, ways)) / 2 + rounding


@given(st.lists(st.tuples(AWAY_S, AWAY_S), min_size=_TRIPS, max_size=_TRIPS))
def test_one_clock_is_never_moved(ways):
    hosts = Hosts(0.0, [delay for way in ways for delay in way])
    assert ahead_by(hosts.read, hosts.here) == 0.0


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def test_spans_are_in_the_time_of_the_recording_whatever_clocks_show(workers, monkeypatch):
    params, x = [np.eye(8, dtype=np.float32)] * 4, np.ones((2, 8), np.float32)
    real = time.perf_counter
    with compile_on(workers, trace(layers, params, x), ("one", "two")) as step:
        placed = step.place(params)
        step(placed, x)
        for ahead_s in (0.0, 5000.0, -5000.0):
            monkeypatch.setattr(time, "perf_counter", lambda ahead_s=ahead_s: real() + ahead_s)
            began_s = time.perf_counter()
            with step.record() as recording:
                step(placed, x)
            took_s = time.perf_counter() - began_s
            spans = recording.timeline.spans
            assert {span.mesh for span in spans} >= {"one", "two"}
            for span in spans:
                assert 0 <= span.start_s <= span.end_s <= took_s
