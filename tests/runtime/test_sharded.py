"""Stages on meshes of four and eight devices, in a process that has so many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "sharded_child.py"
CASES = [
    f"{case} {size}"
    for size in (4, 8)
    for case in ("llama decode", "llama prefill", "experts", "nine heads", "both axes")
]


WHOLE_EXPERTS = ["whole experts decode", "whole experts prefill", "whole experts, both axes"]
CASES += ["mixtral decode", "mixtral prefill", *WHOLE_EXPERTS]


@pytest.fixture(scope="module")
def found():
    """What the child says of each case."""
    root = str(CHILD.parents[2])
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    run = subprocess.run(
        [sys.executable, str(CHILD)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "case", [*CASES, "mixtral of 48 rows", "open axes", "two meshes", "jit", "group"]
)
def test_a_sharded_stage_gives_what_one_device_gives(found, case):
    assert found[case]["split"] > 0
    assert found[case]["error"] <= 2e-6


@pytest.mark.parametrize("case", [*CASES, "open axes", "free permutations"])
def test_the_collectives_that_were_priced_are_those_that_are_emitted(found, case):
    assert found[case]["predicted"]
    assert found[case]["emitted"] == found[case]["predicted"]


@pytest.mark.parametrize("case", WHOLE_EXPERTS)
def test_experts_are_dealt_out_where_nothing_divides_their_inside(found, case):
    specs = found[case]["specs"]
    for name in ("gate", "up", "down"):
        first, *rest = specs[f"params['layers'][1]['mlp']['{name}']"]
        assert "model" in first
        assert not any(rest)


def test_experts_are_split_inside_where_that_can_be_done(found):
    specs = found["mixtral decode"]["specs"]
    assert specs["params['layers'][1]['mlp']['gate']"] == [[], ["model"], []]


def test_a_permutation_that_costs_something_is_avoided_here(found):
    assert "permute" in found["free permutations"]["emitted"]
    assert "permute" not in found["both axes 4"]["emitted"]


def test_given_specs_and_constraints_of_the_model_reach_the_devices(found):
    specs = found["jit"]["specs"]
    assert specs["params['up']"] == [["data"], []]
    assert "model" in json.dumps(specs)


def test_a_mesh_made_from_a_group_keeps_to_the_memory_of_its_devices(found):
    group = found["group"]
    assert group["whole_bytes"] > group["capacity_bytes"]
    assert 0 < group["most_bytes"] <= group["capacity_bytes"]


def test_axes_that_are_open_are_those_of_the_plan(found):
    assert found["open axes"]["axes"] == {"data": 2, "model": 2}


def test_state_stays_with_its_stage_on_two_meshes(found):
    assert found["two meshes"]["stages"] == 2
