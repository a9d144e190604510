"""Intervals over machines: against every layout, and a bound that holds for each of them."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize

from gimlax.errors import PlanError, SpecError
from gimlax.planning.solvers.cover import (
    CoverProblem,
    Interval,
    flow_tokens_per_s,
    solve_cover,
)
from gimlax.planning.solvers.cover_bound import bound_tokens_per_s, tightened_tokens_per_s
from gimlax.planning.solvers.cover_greedy import overlapping
from gimlax.planning.solvers.cover_search import search_spans
from gimlax.planning.solvers.cover_sets import CoverSets
from gimlax.planning.solvers.cover_spans import Tables, cheapest_spans


def random_cover(seed):
    """At most four machines of two kinds over at most five layers."""
    rng = np.random.default_rng(seed)
    num_layers = int(rng.integers(1, 6))
    kinds = "ab"[: rng.integers(1, 3)]
    rates = {}
    for kind in kinds:
        most = int(rng.integers(1, 4))
        per_layer = rng.integers(1, 13) * rng.uniform(0.5, 1.2, most)  # not always falling
        rates[kind] = np.round(per_layer / np.arange(1, most + 1), 2)
    counts = {kind: int(rng.integers(0, 3)) for kind in kinds}
    return CoverProblem(num_layers=num_layers, counts=counts, rates=rates)


def most_by_trying(problem):
    """The largest least cover over all multisets of intervals, by plain loops."""
    options = []
    for kind, count in problem.counts.items():
        lengths = range(1, min(len(problem.rates[kind]), problem.num_layers) + 1)
        own = [
            (first, first + k, float(problem.rates[kind][k - 1]))
            for k in lengths
            for first in range(problem.num_layers - k + 1)
        ]
        options.append(list(itertools.combinations_with_replacement([None, *own], count)))
    best = 0.0
    for chosen in itertools.product(*options):
        cover = [0.0] * problem.num_layers
        for held in itertools.chain.from_iterable(chosen):
            if held:
                for layer in range(held[0], held[1]):
                    cover[layer] += held[2]
        best = max(best, min(cover))
    return best


@pytest.mark.parametrize("block", range(10))
def test_layouts_and_bounds_against_every_layout(block):
    for seed in range(100 * block, 100 * (block + 1)):
        problem = random_cover(seed)
        best = most_by_trying(problem)
        figures = (problem.num_layers, problem.counts, problem.rates)
        bound = bound_tokens_per_s(*figures)
        assert bound.tokens_per_s >= best * (1 - 1e-9)
        # Where less than the best is said to be reached, whole machines must not prove too much.
        for reached in (0.3 * best, best):
            tight = tightened_tokens_per_s(*figures, bound, reached)
            assert best * (1 - 1e-9) <= tight <= bound.tokens_per_s
        if best == 0:
            with pytest.raises(PlanError):
                solve_cover(problem, time_limit_s=5)
            continue
        found = solve_cover(problem, time_limit_s=5)
        assert found.value == pytest.approx(best, rel=1e-6)
        assert found.value == pytest.approx(flow_tokens_per_s(problem, found.layout), rel=1e-12)
        assert found.bound >= best * (1 - 1e-9)
        for kind, count in problem.counts.items():
            assert sum(held.machine == kind for held in found.layout) <= count


def smallest_cut(problem, layout):
    """What separates the first layer from the last at the least rate, by trying every cut.

    A machine lies before the cut, is cut itself, or lies behind it; a link is cut where it leads
    from before it to behind it.
    """
    n, stops = problem.num_layers, [held.first_layer + held.num_layers for held in layout]
    best = math.inf
    for side in itertools.product(("before", "cut", "behind"), repeat=len(layout)):
        starts = [s for held, s in zip(layout, side, strict=True) if held.first_layer == 0]
        ends = [s for stop, s in zip(stops, side, strict=True) if stop >= n]
        if "behind" in starts or "before" in ends:
            continue
        total = sum(
            problem.rates[held.machine][held.num_layers - 1]
            for held, s in zip(layout, side, strict=True)
            if s == "cut"
        )
        for a, stop in enumerate(stops):
            for b, held in enumerate(layout):
                joined = a != b and held.first_layer <= stop < stops[b]
                if joined and (side[a], side[b]) == ("before", "behind"):
                    total += problem.link_tokens_per_s
        best = min(best, total)
    return 0.0 if math.isinf(best) else best


@pytest.mark.parametrize("link_tokens_per_s", [math.inf, 8.0, 4.0, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_tokens_pass_as_the_smallest_cut_lets_them(seed, link_tokens_per_s):
    rng = np.random.default_rng(seed)
    rates = {"a": rng.uniform(1, 9, 3), "b": rng.uniform(1, 9, 4)}
    layout = []
    for _ in range(6):
        kind = "ab"[rng.integers(2)]
        k = int(rng.integers(1, len(rates[kind]) + 1))
        layout.append(Interval(first_layer=int(rng.integers(0, 6 - k)), num_layers=k, machine=kind))
    problem = CoverProblem(
        num_layers=5, counts={"a": 8, "b": 8}, rates=rates, link_tokens_per_s=link_tokens_per_s
    )
    passed = flow_tokens_per_s(problem, layout)
    assert passed == pytest.approx(smallest_cut(problem, layout), rel=1e-9, abs=1e-9)


def middle_cover(seed):
    """Two or three kinds of machine, of which bounds have to tell cases apart."""
    rng = np.random.default_rng(seed)
    num_layers = int(rng.integers(5, 9))
    rates, counts = {}, {}
    for kind in "abc"[: rng.integers(2, 4)]:
        most = int(rng.integers(2, 6))
        per_layer = rng.integers(4, 20) * rng.uniform(0.8, 1.1, most)
        rates[kind] = np.round(per_layer / np.arange(1, most + 1), 2)
        counts[kind] = int(rng.integers(1, 4))
    return CoverProblem(num_layers=num_layers, counts=counts, rates=rates)


def most_by_programme(problem):
    """The largest least cover, as an integer programme over all intervals."""
    held = [
        (kind, first, k)
        for kind, of in problem.rates.items()
        for k in range(1, len(of) + 1)
        for first in range(problem.num_layers - k + 1)
    ]
    cover = np.zeros((problem.num_layers, len(held) + 1))
    cover[:, -1] = -1.0
    for column, (kind, first, k) in enumerate(held):
        cover[first : first + k, column] = problem.rates[kind][k - 1]
    used = [[*(kind == own for kind, _, _ in held), 0] for own in problem.rates]
    solved = optimize.milp(
        np.append(np.zeros(len(held)), -1.0),
        integrality=np.append(np.ones(len(held)), 0),
        constraints=[
            optimize.LinearConstraint(cover, 0, np.inf),
            optimize.LinearConstraint(
                np.array(used, float), -np.inf, [problem.counts[kind] for kind in problem.rates]
            ),
        ],
    )
    return float(-solved.fun)


@pytest.mark.parametrize("seed", [3, 11, 37])
def test_no_case_of_whole_machines_excludes_what_is_possible(seed):
    problem = middle_cover(seed)
    best = most_by_programme(problem)
    figures = (problem.num_layers, problem.counts, problem.rates)
    bound = bound_tokens_per_s(*figures)
    for share in (0.8, 0.97, 0.999999):
        assert tightened_tokens_per_s(*figures, bound, share * best) >= best * (1 - 1e-6)


def test_a_narrow_link_limits_a_chain_and_not_a_pair():
    rates = {"a": np.array([10.0])}
    chain = [Interval(first_layer=k, num_layers=1, machine="a") for k in range(2)]
    problem = CoverProblem(num_layers=2, counts={"a": 4}, rates=rates, link_tokens_per_s=4.0)
    assert flow_tokens_per_s(problem, chain) == pytest.approx(4.0)
    found = solve_cover(problem, time_limit_s=5)
    assert found.value <= found.bound and found.value >= 8.0 - 1e-9  # two pairs side by side


def test_a_published_kind_of_instance_is_solved_with_proof():
    """Machines that just cover the layers at one rate, where any larger rate needs more of them."""
    rates = {"a": np.array([9.0, 5.0, 3.0]), "b": np.array([3.0, 1.0])}
    found = solve_cover(CoverProblem(num_layers=8, counts={"a": 2, "b": 2}, rates=rates))
    assert found.value == 3.0 and found.gap < 1e-6


def test_what_is_wrong_is_said():
    with pytest.raises(SpecError, match="counts are of"):
        CoverProblem(num_layers=1, counts={"a": 1}, rates={"b": np.ones(1)})
    with pytest.raises(SpecError, match="num_layers is 0"):
        CoverProblem(num_layers=0, counts={"a": 1}, rates={"a": np.ones(1)})
    with pytest.raises(SpecError, match="rates of kind 'a'"):
        CoverProblem(num_layers=1, counts={"a": 1}, rates={"a": np.array([np.nan])})
    with pytest.raises(SpecError, match="link_tokens_per_s"):
        CoverProblem(num_layers=1, counts={"a": 1}, rates={"a": np.ones(1)}, link_tokens_per_s=0.0)
    few = CoverProblem(num_layers=9, counts={"a": 2}, rates={"a": np.ones(3)})
    with pytest.raises(PlanError, match="3 layers have no room"):
        solve_cover(few)


def steps_clock(step_s):
    """A clock that goes on by so much each time that it is read."""
    return (n * step_s for n in itertools.count()).__next__


def larger_cover(seed):
    """Some ten machines of three kinds over twelve layers: too many layouts to try all."""
    rng = np.random.default_rng(seed)
    rates = {
        kind: np.round(rng.uniform(5, 20) * rng.uniform(0.7, 1.1, most) / np.arange(1, most + 1), 2)
        for kind, most in zip("abc", rng.integers(2, 7, 3), strict=True)
    }
    counts = {kind: int(n) for kind, n in zip("abc", rng.integers(2, 7, 3), strict=True)}
    return CoverProblem(num_layers=12, counts=counts, rates=rates)


@pytest.mark.parametrize("seed", range(8))
def test_heuristics_use_the_machines_there_are_and_never_lose_what_they_had(seed):
    problem = larger_cover(seed)
    bound = bound_tokens_per_s(problem.num_layers, problem.counts, problem.rates)
    clock = steps_clock(0.02)
    spans = search_spans(problem, bound, enough=lambda flow: False, time_limit_s=0.4, clock=clock)
    better = overlapping(problem, bound, spans, time_limit_s=0.4, clock=clock)
    values = [flow_tokens_per_s(problem, layout) for layout in (spans, better)]
    assert 0 < values[0] <= values[1] <= bound.tokens_per_s * (1 + 1e-9)
    # Nor do whole machines prove impossible what was found, where they are told less.
    figures = (problem.num_layers, problem.counts, problem.rates)
    for share in (0.9, 0.95, 0.99):
        assert tightened_tokens_per_s(*figures, bound, share * values[1]) >= values[1] * (1 - 1e-9)
    for layout in (spans, better):
        for kind, count in problem.counts.items():
            assert sum(held.machine == kind for held in layout) <= count
        assert all(0 <= i.first_layer <= problem.num_layers - i.num_layers for i in layout)


@pytest.mark.parametrize("seed", range(30))
def test_the_cheapest_span_reaches_the_rate_and_costs_no_more_than_one_of_little_more(seed):
    rng = np.random.default_rng(seed)
    rates = tuple(np.sort(rng.uniform(1, 9, 3))[::-1] for _ in range(2))
    tables = Tables(num_layers=4, kinds=("a", "b"), counts=(9, 9), rates=rates)
    prices, target, num_layers = rng.uniform(1, 3, 2), float(rng.uniform(4, 12)), 4
    (span,) = cheapest_spans(tables, np.tile(prices, (5, 1)), target, [num_layers])
    tracks = []  # (price, rate) of every track of at most four machines
    for length in range(1, 5):
        for held in itertools.product([(i, k) for i in range(2) for k in (1, 2, 3)], repeat=length):
            if num_layers <= sum(k for _, k in held):
                tracks.append(
                    (sum(prices[i] for i, _ in held), min(rates[i][k - 1] for i, k in held))
                )
    tracks = [
        t for t in tracks if not any(p <= t[0] and r >= t[1] and (p, r) != t for p, r in tracks)
    ]
    least = min(
        sum(p for p, _ in some)
        for number in range(1, math.ceil(target / max(r for _, r in tracks)) + 4)
        for some in itertools.combinations_with_replacement(set(tracks), number)
        if sum(r for _, r in some) >= target * (1 + number / 256)  # all rates are rounded down
    )
    assert prices @ span.uses <= least * (1 + 1e-9)
    assert span.tokens_per_s == pytest.approx(
        sum(min(rates[i][k - 1] for i, k in track) for track in span.tracks)
    )
    assert span.tokens_per_s >= target * (1 - 1e-9)
    assert all(sum(k for _, k in track) >= num_layers for track in span.tracks)


def test_a_rate_just_above_what_single_machines_pass_is_refused_on_a_coarse_grid():
    rates = {"a": np.array([9.0, 5.0, 3.0])}
    sets = CoverSets(6, {"a": 2}, rates)
    assert sets.most_below(3.0, 60) == 3.0
    assert sets.most_below(3.0 * (1 + 1e-9), 60) < 3.0 * (1 + 1e-9)


def test_whole_machines_prove_more_than_fractions():
    """Three machines and four layers: 1.5 of them could share two layers each, in fractions."""
    figures = (4, {"a": 3}, {"a": np.array([8.0, 4.0, 1.0])})
    bound = bound_tokens_per_s(*figures)
    best = most_by_trying(CoverProblem(num_layers=4, counts={"a": 3}, rates=figures[2]))
    tight = tightened_tokens_per_s(*figures, bound, best)
    assert best <= tight <= best * (1 + 1e-6)


def test_the_limit_of_time_is_that_of_the_clock():
    figures = {"a": np.linspace(9, 1, 20) / np.arange(1, 21), "b": np.linspace(5, 1, 9)}
    problem = CoverProblem(num_layers=40, counts={"a": 9, "b": 9}, rates=figures)
    found = solve_cover(problem, time_limit_s=1.0, clock=steps_clock(0.01))
    assert 0 < found.value <= found.bound and found.seconds < 1.2
