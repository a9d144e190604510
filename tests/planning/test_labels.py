"""Labels and relaxation find a path within several limits exactly where brute force finds one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.planning.labels import Dimension, cheapest_label, front
from gimlax.planning.orders import fixed_order
from gimlax.planning.paths import Cost, cheapest_path, cost_to_go
from gimlax.planning.relaxed import keeps_limits, path_within
from tests.planning.random_problems import problems


@st.composite
def questions(draw):
    """A problem, a sequence of meshes, and two to four quantities with limits near what is used."""
    problem = draw(problems(most_segments=6, most_meshes=3))
    mesh = st.integers(0, problem.num_meshes - 1)
    meshes = draw(st.lists(mesh, min_size=1, max_size=min(4, problem.num_segments)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = [
        Dimension(
            stage=rng.integers(0, 6, problem.stage_s.shape) * 1.0,
            hop=rng.integers(0, 3, problem.transfer_s.shape) * 1.0,
            counts_to=f"limit {draw(st.integers(0, k))}",
            largest=k > 0 and draw(st.booleans()),
            limit=0.0,
        )
        for k in range(draw(st.integers(2, 4)))
    ]
    limits = {d.counts_to: float(rng.integers(2, 14)) for d in dimensions}
    limited = [
        Dimension(
            stage=d.stage,
            hop=d.hop,
            counts_to=d.counts_to,
            largest=d.largest,
            limit=limits[d.counts_to],
        )
        for d in dimensions
    ]
    return problem, fixed_order(meshes), limited


def paths(problem, states):
    """Every path that no `inf` forbids."""
    n = problem.num_segments
    for cuts in itertools.combinations(range(1, n), len(states) - 1):
        stops = [*cuts, n]
        firsts = [0, *cuts]
        meshes = [s.mesh for s in states]
        stage_s = problem.stage_s[meshes, firsts, stops]
        hop_s = problem.transfer_s[meshes[:-1], meshes[1:], list(cuts)]
        if np.isfinite(stage_s).all() and np.isfinite(hop_s).all():
            yield list(enumerate(stops))


def amount(dimension, states, path):
    """What a path uses of one dimension, by plain loops."""
    used, first = [], 0
    for index, (state, stop) in enumerate(path):
        mesh = states[state].mesh
        if index:
            used.append(dimension.hop[states[path[index - 1][0]].mesh, mesh, first])
        used.append(dimension.stage[mesh, first, stop])
        first = stop
    return max(used) if dimension.largest else sum(used)


def within(dimensions, states, path):
    names = {d.counts_to: d.limit for d in dimensions}
    return all(
        sum(amount(d, states, path) for d in dimensions if d.counts_to == name) <= limit
        for name, limit in names.items()
    )


def nothing_known(problem, states, dimensions):
    weights = np.full(sum(not d.largest for d in dimensions), 0.0)
    return [(weights, np.zeros((len(states), problem.num_segments + 1)))]


@settings(max_examples=300)
@given(question=questions())
def test_labels_find_the_least_path_within_all_limits(question):
    problem, states, dimensions = question
    allowed = [p for p in paths(problem, states) if within(dimensions, states, p)]
    found = cheapest_label(problem, states, dimensions, nothing_known(problem, states, dimensions))
    if not allowed:
        assert found is None
        return
    assert found is not None and within(dimensions, states, found)
    least = min(amount(dimensions[0], states, path) for path in allowed)
    assert amount(dimensions[0], states, found) == pytest.approx(least)


@settings(max_examples=300)
@given(question=questions())
def test_weights_never_cut_off_the_last_path(question):
    problem, states, dimensions = question
    possible = any(within(dimensions, states, p) for p in paths(problem, states))
    answer = path_within(problem, states, dimensions)
    assert (answer.path is not None) == possible
    if answer.path is not None:
        assert within(dimensions, states, answer.path)


@settings(max_examples=200)
@given(question=questions(), data=st.data())
def test_bounds_prune_no_label_that_can_end(question, data):
    problem, states, dimensions = question
    possible = list(paths(problem, states))
    if possible:  # limits that one path meets exactly
        path = data.draw(st.sampled_from(possible))
        dimensions = [
            replace(d, counts_to=f"own {k}", limit=max(amount(d, states, path), 1.0))
            for k, d in enumerate(dimensions)
        ]
    sums = [d for d in dimensions if not d.largest]
    raw = np.array([data.draw(st.floats(0.01, 1)) for _ in sums])
    weights = raw / raw.sum()
    shares = zip(weights, sums, strict=True)
    stage, hop = np.zeros_like(problem.stage_s), np.zeros_like(problem.transfer_s)
    for weight, d in shares:
        stage += weight * d.stage / d.limit
        hop += weight * d.hop / d.limit
    cost = Cost(
        stage=np.where(np.isfinite(problem.stage_s), stage, np.inf),
        hop=np.where(np.isfinite(problem.transfer_s), hop, np.inf),
    )
    bounds = [(weights, cost_to_go(states, cost))]
    pruned = cheapest_label(problem, states, dimensions, bounds)
    plain = cheapest_label(problem, states, dimensions, nothing_known(problem, states, dimensions))
    assert (pruned is None) == (plain is None)
    cheapest = cheapest_path(states, cost)
    assert (cheapest is None) == (not possible)
    if cheapest is not None:
        first_stage = cost.stage[states[0].mesh, 0]
        assert cheapest[1] == pytest.approx((first_stage + bounds[0][1][0]).min())
    if pruned is not None:
        assert keeps_limits(states, dimensions, pruned)


@given(rows=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_the_front_keeps_what_nothing_beats_and_each_of_these_once(num_dims, rows):
    values = np.array(rows, float)[:, :num_dims]
    kept = front(values)
    rows = [tuple(v) for v in values]
    beaten = {
        a for a in rows for b in rows if b != a and all(y <= x for x, y in zip(a, b, strict=True))
    }
    assert sorted(tuple(values[k]) for k in kept) == sorted(set(rows) - beaten)
