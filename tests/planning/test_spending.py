"""Dollars and joules: of all devices of a mesh, unknown where unknown, refused as a goal."""

import dataclasses

import pytest

from gimlax.devices import Cluster, MeshSpec
from gimlax.errors import SpecError
from gimlax.planning.spending import spending
from tests.planning.cases import kind

KNOWN = dataclasses.replace(kind("known"), tdp_watts=400.0, idle_watts=50.0)
UNKNOWN = kind("unknown")


def mesh(name, device_kind, **changes):
    axes = (("data", 1), ("model", 4))
    return MeshSpec(name=name, device_kind=device_kind, num_devices=4, axes=axes, **changes)


CLUSTER = Cluster(
    meshes=(mesh("paid", "known", usd_per_hour=2.0), mesh("given", "unknown")),
    kinds=(KNOWN, UNKNOWN),
)


def test_a_mesh_is_paid_and_powered_for_all_its_devices():
    (paid,) = spending(CLUSTER, ["paid"], goal="dollars")
    assert paid.usd(3600.0) == pytest.approx(8.0)
    assert paid.joules(2.0) == pytest.approx(2 * 4 * 400)
    assert paid.joules(2.0, 3.0) == pytest.approx(2 * 4 * 400 + 3 * 4 * 50)


def test_what_nobody_says_is_unknown_and_not_zero():
    (given,) = spending(CLUSTER, ["given"])
    assert given.usd(1.0) is None
    assert given.joules(1.0) is None
    assert given.joules(0.0) == 0.0
    no_idle = dataclasses.replace(KNOWN, idle_watts=None)
    (paid, _) = spending(dataclasses.replace(CLUSTER, kinds=(no_idle, UNKNOWN)), ["paid", "given"])
    assert paid.joules(1.0) == pytest.approx(1600)
    assert paid.joules(1.0, 1.0) is None


@pytest.mark.parametrize(
    ("goal", "says"),
    [("dollars", "no price.*usd_per_hour"), ("joules", "no power.*tdp_watts")],
)
def test_a_goal_that_cannot_be_told_names_mesh_and_kind(goal, says):
    spending(CLUSTER, ["paid"], goal=goal)
    with pytest.raises(SpecError, match=r"mesh 'given' \(unknown\)") as error:
        spending(CLUSTER, ["paid", "given"], goal=goal)
    assert error.match(says)
