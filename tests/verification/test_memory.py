"""What compilers need for stages comes back into plans, as a calibration."""

import dataclasses

import jax
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import Calibration, StageMemory
from gimlax.errors import PlanError, SpecError
from gimlax.planning.compiled_memory import passing_as_compiled
from tests.verification.test_verifying import KIND, cluster, trace

TRACED = trace(num_layers=3)
CHAIN = gx.chain(TRACED)


@pytest.fixture(scope="module")
def verified():
    plan = gx.plan(TRACED, cluster(KIND))
    return plan, gx.verify(plan, TRACED)


def test_a_verification_gives_what_its_compiler_needs(verified, tmp_path):
    plan, found = verified
    calibration = found.calibration()
    (memory,) = calibration.memories
    assert memory.needed_bytes == found.stages[0].compiled.needed_bytes
    assert (memory.first_segment, memory.num_segments) == (0, CHAIN.num_segments)
    assert (memory.mesh, memory.device_kind, memory.model) == ("m0", KIND, plan.model)
    assert memory.compiler == found.stages[0].compiler
    calibration.save(tmp_path / "memory.json")
    assert Calibration.load(tmp_path / "memory.json") == calibration
    assert "compiled by" in str(calibration) and "m0" in str(calibration)
    assert found.calibration(calibration) == calibration


def test_a_plan_rests_on_what_was_compiled(verified):
    plan, found = verified
    again = gx.plan(TRACED, cluster(KIND), calibration=found.calibration())
    assert again.meshes[0].needed_bytes == found.stages[0].compiled.needed_bytes
    assert plan.meshes[0].needed_bytes != again.meshes[0].needed_bytes
    assert again.value == plan.value and again.meshes[0].basis == plan.meshes[0].basis


def test_a_stage_that_does_not_fit_is_not_planned_again(verified):
    room = verified[0].meshes[0].needed_bytes
    spots = cluster(KIND, KIND)
    meshes = tuple(dataclasses.replace(mesh, memory_bytes=room) for mesh in spots.meshes)
    small = dataclasses.replace(spots, meshes=meshes)
    assert gx.plan(TRACED, small).mesh_names == ("m0",)
    whole = {"first_segment": 0, "num_segments": CHAIN.num_segments, "needed_bytes": room + 1}
    found = calibration(*(memory(mesh=mesh, **whole) for mesh in ("m0", "m1")))
    assert len(gx.plan(TRACED, small, calibration=found).mesh_names) == 2
    with pytest.raises(PlanError, match="1 B are missing"):
        gx.plan(TRACED, small, cuts=1, calibration=found)


def memory(**changes):
    figures = {
        "mesh": "m0",
        "device_kind": KIND,
        "axes": (("data", 1), ("model", 1)),
        "model": CHAIN.fingerprint(),
        "first_segment": 1,
        "num_segments": 1,
        "needed_bytes": 1000,
        "compiler": "by hand",
    }
    return StageMemory(**(figures | changes))


def calibration(*memories):
    return Calibration(
        jax_version=jax.__version__,
        processor="one",
        date="2026-11-25",
        meshes=(),
        memories=memories,
    )


def reference(passing, held, memories):
    """Each stage by itself: its own figure, else the largest of those inside it."""
    result = passing.copy()
    for mesh, first, stop in np.ndindex(passing.shape):
        inside = [
            max(need - held[m, a, a + k], 0.0)
            for m, a, k, need in memories
            if m == mesh and first <= a and a + k <= stop
        ]
        own = [
            need - held[m, a, a + k]
            for m, a, k, need in memories
            if (m, a, a + k) == (mesh, first, stop)
        ]
        result[mesh, first, stop] = max([result[mesh, first, stop], *inside])
        if own:
            result[mesh, first, stop] = max(own[-1], 0.0)
    return result


def test_a_stage_takes_its_own_figure_and_gives_it_to_those_around_it():
    n = CHAIN.num_segments
    spots = cluster(KIND, KIND)
    rng = np.random.default_rng(0)
    for _ in range(50):
        passing, held = rng.integers(0, 100, (2, 2, n + 1, n + 1)).astype(float)
        chosen = {}
        for _ in range(rng.integers(0, 4)):
            first = int(rng.integers(0, n))
            count = int(rng.integers(1, n - first + 1))
            chosen[int(rng.integers(2)), first, count] = int(rng.integers(0, 300))
        found = calibration(
            *(
                memory(mesh=f"m{m}", first_segment=a, num_segments=k, needed_bytes=need)
                for (m, a, k), need in chosen.items()
            )
        )
        rows = [(*key, need) for key, need in chosen.items()]
        np.testing.assert_array_equal(
            passing_as_compiled(passing, held, CHAIN, spots, found),
            reference(passing, held, rows),
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "another"},
        {"mesh": "elsewhere"},
        {"axes": (("data", 2), ("model", 1))},
        {"num_segments": 99},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_memory_of_something_else_changes_nothing(changes):
    n = CHAIN.num_segments
    passing, held = np.ones((1, n + 1, n + 1)), np.zeros((1, n + 1, n + 1))
    found = calibration(memory(**changes))
    assert passing_as_compiled(passing, held, CHAIN, cluster(KIND), found) is passing
    assert passing_as_compiled(passing, held, CHAIN, cluster(KIND), None) is passing


def test_memory_of_another_device_is_stale():
    with pytest.raises(SpecError, match="mesh 'm0' was 1 x 'L4', here it is 1 x 'EPYC 9654'"):
        calibration(memory(device_kind="L4")).check(cluster(KIND))
    with pytest.raises(SpecError, match="it knows meshes 'other', but the cluster has 'm0'"):
        calibration(memory(mesh="other")).check(cluster(KIND))
    calibration(memory()).check(cluster(KIND))


def test_memory_that_cannot_be_is_refused():
    for changes, said in (
        ({"needed_bytes": -1}, "needed_bytes is -1"),
        ({"num_segments": 0}, "num_segments is 0"),
        ({"mesh": ""}, "mesh is ''"),
        ({"axes": (("data", 0),)}, "0"),
    ):
        with pytest.raises(SpecError, match=said):
            memory(**changes)
    with pytest.raises(SpecError, match="is there 2 times"):
        calibration(memory(), memory())


def test_figures_of_another_machine_are_not_mixed(verified):
    with pytest.raises(SpecError, match=r"calibration of 2026-11-25, JAX .*, one: this is JAX"):
        verified[1].calibration(calibration(memory()))
