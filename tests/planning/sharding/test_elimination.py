"""Elimination against trying all settings."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gimlax.planning.sharding import elimination
from gimlax.planning.sharding.elimination import Factor, eliminate


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    scopes = st.lists(st.integers(0, len(sizes) - 1), max_size=3, unique=True).map(tuple)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    factors = [
        Factor(scope, rng.integers(0, 20, [sizes[v] for v in scope]).astype(float))
        for scope in draw(st.lists(scopes, max_size=6))
    ]
    keep = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=2, unique=True))
    return sizes, factors, tuple(keep)


def cost(factors, setting):
    return sum(f.table[tuple(setting[v] for v in f.scope)] for f in factors)


@given(problems())
def test_it_finds_the_least_sum_for_every_setting_of_what_is_kept(problem):
    sizes, factors, keep = problem
    reduced = eliminate(sizes, factors, keep)
    for kept in itertools.product(*(range(sizes[v]) for v in keep)):
        fixed = dict(zip(keep, kept, strict=True))
        every = itertools.product(*(range(s) for s in sizes))
        least = min(
            cost(factors, setting)
            for setting in every
            if all(setting[v] == k for v, k in fixed.items())
        )
        assert reduced.table[kept] == least
        assert cost(factors, reduced.settings(fixed)) == least


def test_a_table_that_would_grow_too_large_gives_an_answer_still(monkeypatch):
    monkeypatch.setattr(elimination, "MAX_ENTRIES", 4)
    rng = np.random.default_rng(0)
    pairs = list(itertools.combinations(range(5), 2))
    factors = [Factor(pair, rng.random((2, 2))) for pair in pairs]
    reduced = eliminate([2] * 5, factors, ())
    found = cost(factors, reduced.settings({}))
    best = min(cost(factors, setting) for setting in itertools.product(range(2), repeat=5))
    assert found >= best
    assert np.isclose(found, float(reduced.table))
    assert not reduced.exact
    monkeypatch.setattr(elimination, "MAX_ENTRIES", 2**5)
    proved = eliminate([2] * 5, factors, ())
    assert proved.exact and np.isclose(float(proved.table), best)
