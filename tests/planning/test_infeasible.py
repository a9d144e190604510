"""Why there is no plan: the limit that cannot hold, by how much, and what would do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain
from gimlax.planning import Objective, check_plan, plan
from gimlax.planning.cost import costs
from gimlax.planning.infeasible import fewest_meshes
from tests.planning.cases import cluster_of, kind, two_phases
from tests.planning.random_problems import problems
from tests.reference import best_layout_value

CHAIN = chain(two_phases(prompt_tokens=4))  # little memory beside weights and state
TWO = cluster_of([kind("a"), kind("b", flops_per_s=1e11, bytes_per_s=3e10)])
PRICES = (9.0, 1.0)
PRICED = replace(
    TWO,
    meshes=tuple(replace(m, usd_per_hour=p) for m, p in zip(TWO.meshes, PRICES, strict=True)),
)
TOTAL_BYTES = costs(CHAIN, TWO).problem.stage_bytes()[0, 0, -1]


def equal_meshes(problem, number):
    """That many copies of the first mesh, each with its own memory, all linked."""
    return replace(
        problem,
        stage_s=np.repeat(problem.stage_s[:1], number, axis=0),
        transfer_s=np.zeros((number, number, problem.num_segments + 1)),
        shared_s=problem.shared_s[:0, :1],
        added_bytes=np.repeat(problem.added_bytes[:1], number, axis=0),
        largest_bytes=np.repeat(problem.largest_bytes[:, :1], number, axis=1),
        parked_bytes=np.repeat(problem.parked_bytes[:1], number, axis=0),
        capacity_bytes=np.repeat(problem.capacity_bytes[:1], number),
        pool=np.arange(number),
        usd_per_s=np.ones(number),
        busy_watts=np.ones(number),
        idle_watts=np.zeros(number),
    )


@settings(max_examples=200)
@given(problem=problems(most_segments=5, most_meshes=1))
def test_the_smallest_number_of_meshes_is_that_of_brute_force(problem):
    enough = [
        number
        for number in range(1, problem.num_segments + 1)
        if best_layout_value(equal_meshes(problem, number), "latency") is not None
    ]
    assert fewest_meshes(problem, 0) == (enough[0] if enough else None)


def test_a_model_that_fits_nowhere_names_the_smallest_cluster():
    small = cluster_of([kind("a", memory_bytes=TOTAL_BYTES * 0.45), kind("b", memory_bytes=9e3)])
    with pytest.raises(PlanError, match=r"missing; the smallest cluster .* is 4 of 'a' like 'a'"):
        plan(CHAIN, small)
    tiny = cluster_of([kind("a", memory_bytes=9e3)])
    with pytest.raises(PlanError, match="no number of these devices would do"):
        plan(CHAIN, tiny)


@pytest.mark.parametrize(
    ("limit", "term"),
    [
        ("max_latency_s", "latency"),
        ("min_requests_per_s", "throughput"),
        ("max_usd_per_request", "usd"),
    ],
)
def test_a_limit_out_of_reach_names_the_best_possible(limit, term):
    best = plan(CHAIN, PRICED, objective=Objective(goal=term)).value
    best = 1 / best if term == "throughput" else best
    beyond = best * (1.25 if term == "throughput" else 0.8)
    with pytest.raises(PlanError, match=rf"{limit} is .*, but no layout has .* {best:.6g}: .*%"):
        plan(CHAIN, PRICED, objective=Objective(**{limit: beyond}))


def test_limits_that_hold_alone_but_not_together():
    usd = plan(CHAIN, PRICED, objective=Objective(goal="usd")).value
    seconds = plan(CHAIN, PRICED, objective=Objective()).value
    fast = plan(CHAIN, PRICED).usd
    assert fast is not None and usd < 0.9 * fast
    limits = {"max_latency_s": seconds * 1.001, "max_usd_per_request": usd * 1.001}
    with pytest.raises(PlanError, match=r"no layout has less than .* with max_\w+ at .* relax"):
        plan(CHAIN, PRICED, objective=Objective(**limits))


def test_prices_and_power_that_nobody_knows_are_asked_for():
    with pytest.raises(SpecError, match="dollars are asked for, but meshes 'a', 'b' have no price"):
        plan(CHAIN, TWO, objective=Objective(goal="usd"))
    with pytest.raises(SpecError, match="joules are asked for, but kinds 'a', 'b' have no tdp"):
        plan(CHAIN, TWO, objective=Objective(max_joules_per_request=1.0))
    unknown = plan(CHAIN, TWO)
    assert unknown.usd is None and unknown.joules is None


@pytest.mark.parametrize(
    ("wishes", "lifted"),
    [
        ({"cuts": (1,)}, "cuts"),
        ({"meshes": ("a",)}, "meshes"),
        ({"cuts": (1,), "meshes": ("a", "b")}, "cuts"),
        ({"cuts": 1, "meshes": ("a",)}, "cuts and meshes"),
    ],
)
def test_wishes_are_to_blame_where_the_model_fits_without_them(wishes, lifted):
    half = cluster_of([kind(name, memory_bytes=TOTAL_BYTES * 0.75) for name in "ab"])
    assert len(plan(CHAIN, half).layout.holdings) == 2
    pattern = (
        rf"are missing; with {lifted} free there is a layout \('.*' to .*\); leave {lifted} out"
    )
    with pytest.raises(PlanError, match=pattern) as refused:
        plan(CHAIN, half, **wishes)
    assert "nowhere" not in str(refused.value) and "smallest" not in str(refused.value)


def test_wishes_are_to_blame_where_only_they_break_a_limit():
    limit = Objective(max_latency_s=plan(CHAIN, TWO).value * 1.01)
    pattern = r"of the layouts asked for: max_latency_s is .*; with meshes free there is a layout"
    with pytest.raises(PlanError, match=pattern):
        plan(CHAIN, TWO, objective=limit, meshes=("b",))


def test_a_price_that_nobody_knows_is_not_asked_of_a_mesh_that_is_not_used():
    half = replace(TWO, meshes=(replace(TWO.meshes[0], usd_per_hour=9.0), TWO.meshes[1]))
    usd = Objective(goal="usd")
    chosen = plan(CHAIN, half, objective=usd, meshes=("a",))
    assert chosen.mesh_names == ("a",)
    alone = plan(CHAIN, replace(half, meshes=half.meshes[:1], links=()), objective=usd)
    assert chosen.value == alone.value and chosen.bound == alone.bound
    check_plan(chosen, CHAIN, half)
    for meshes in (None, ("b",), ("a", "b")):
        with pytest.raises(SpecError, match="dollars are asked for, but mesh 'b' has no price"):
            plan(CHAIN, half, objective=usd, meshes=meshes)
    with pytest.raises(PlanError, match="meshes names 'z'"):
        plan(CHAIN, PRICED, objective=usd, meshes=("z",))
