"""Drawing a token."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import SpecError
from gimlax.serving import sampling as sampling_module
from gimlax.serving.sampling import Sampling, sample
from tests import reference

LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12)


@given(LOGITS, st.integers(0, 100))
def test_temperature_zero_takes_the_first_largest(logits, position):
    assert sample(np.array(logits), Sampling(seed=3), position) == logits.index(max(logits))


@given(
    LOGITS,
    st.sampled_from([0.25, 1.0, 3.0]),
    st.sampled_from([0.03, 0.31, 0.77, 0.99, 1.0]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10_000),
)
def test_a_draw_equals_the_slow_twin(logits, temperature, top_p, seed, position):
    weights = np.exp(np.array(logits) / temperature)
    probabilities = (weights / weights.sum()).tolist()
    uniform = float(sampling_module._uniform(np.uint32(seed), np.uint32(position)))
    found = sample(
        np.array(logits), Sampling(temperature=temperature, top_p=top_p, seed=seed), position
    )
    # a uniform number that falls on an edge may go either way by rounding
    near = {
        reference.drawn_token(probabilities, p, u)
        for p in (top_p - 1e-9, min(1.0, top_p + 1e-9))
        for u in (max(0.0, uniform - 1e-9), uniform + 1e-9)
    }
    assert found in near


def test_a_draw_depends_on_seed_and_position_only():
    logits = np.zeros(1000)
    draws = {
        (seed, position): sample(logits, Sampling(temperature=1, seed=seed), position)
        for seed in range(3)
        for position in range(3)
    }
    again = {
        key: sample(logits, Sampling(temperature=1, seed=key[0]), key[1]) for key in reversed(draws)
    }
    assert draws == again
    assert len(set(draws.values())) == len(draws)


def test_draws_follow_the_probabilities():
    probabilities = np.array([0.5, 0.3, 0.2])
    count = collections.Counter(
        sample(np.log(probabilities), Sampling(temperature=1, seed=1), position)
        for position in range(2000)
    )
    np.testing.assert_allclose([count[i] / 2000 for i in range(3)], probabilities, atol=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_impossible_sampling_is_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        Sampling(**arguments)


def test_all_faults_are_reported_at_once():
    with pytest.raises(SpecError, match=r"temperature is -1.*top_p is 2.*seed is -5"):
        Sampling(temperature=-1, top_p=2, seed=-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(SpecError, match=r"logits at position 7: the largest is"):
        sample(np.full(3, bad), Sampling(), 7)
