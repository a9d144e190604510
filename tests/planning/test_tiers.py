"""Every plan says how much is known first hand of what it would run on."""

import dataclasses
import json

import pytest

from gimlax.devices import Cluster, find_evidence
from gimlax.errors import PlanError
from gimlax.graph import chain
from gimlax.planning import Plan, plan
from tests.planning.cases import cluster_of, kind, two_phases

CHAIN = chain(two_phases())
MESH = '[[mesh]]\nname = "{}"\ndevice_kind = "{}"\n'
LINK = '[[link]]\nsource = "{}"\ntarget = "{}"\nlatency_s = 1e-4\nbandwidth_bytes_per_s = 1e9\n'
MIXED = Cluster.from_toml(
    MESH.format("here", "cpu")
    + MESH.format("there", "Arc Pro B60")
    + LINK.format("here", "there")
    + LINK.format("there", "here")
)


@pytest.fixture
def mixed():
    return plan(CHAIN, MIXED, meshes=("here", "there"))


def test_the_lowest_tier_is_the_plan_s(mixed):
    line = "lowest tier: figures only ('Arc Pro B60'); nothing was run on it or compiled for it yet"
    assert mixed.lowest_tier == "figures only"
    assert line in str(mixed).splitlines()
    assert line in mixed.explain().splitlines()
    ran = find_evidence("cpu")
    assert f"tier of 'cpu': {ran}, {ran.what}" in mixed.explain().splitlines()
    assert "tier of 'Arc Pro B60': figures only" in mixed.explain().splitlines()


def test_a_plan_for_what_ran_says_so():
    found = plan(CHAIN, MIXED, meshes=("here",))
    assert found.lowest_tier == "ran"
    assert "lowest tier: ran ('cpu'); the tests ran on such devices" in str(found)


def test_kinds_of_a_cluster_file_have_figures_only():
    found = plan(CHAIN, cluster_of([kind("a")]))
    assert [str(of) for of in found.evidence] == ["figures only"]


def test_tiers_are_in_the_json(mixed):
    written = json.loads(mixed.to_json())
    assert [of["tier"] for of in written["evidence"]] == ["figures only", "ran"]
    assert Plan.from_json(mixed.to_json()) == mixed
    del written["evidence"]
    assert Plan.from_json(json.dumps(written)).lowest_tier == "figures only"


def test_tiers_that_cannot_be_are_refused(mixed):
    with pytest.raises(PlanError, match="does not begin with the lowest tier"):
        dataclasses.replace(mixed, evidence=mixed.evidence[::-1])
    strange = dataclasses.replace(mixed.evidence[0], tier="seen")
    with pytest.raises(
        PlanError, match="the tier of 'Arc Pro B60' is 'seen', not one of figures only, "
    ):
        dataclasses.replace(mixed, evidence=(strange,))
