"""A stage that travelled as StableHLO computes what it computes where it was traced."""

import dataclasses

import jax
import numpy as np
import pytest

from gimlax.devices import MeshSpec
from gimlax.errors import BackendError
from gimlax.runtime import gather
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.exporting import abstract_mesh, export_stages, load_stage
from gimlax.runtime.inventory import take_inventory
from tests import zoo
from tests.runtime.conftest import trace_specimen


def export(programs, platform="cpu", donates=True):
    names = set(programs[0].placement)
    meshes = {name: abstract_mesh(MeshSpec(name=name, device_kind="cpu")) for name in names}
    inventory = take_inventory(programs, Arrangement(meshes=meshes))
    return export_stages(
        programs, inventory, dict.fromkeys(names, platform), dict.fromkeys(names, donates)
    )


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize("placement", [("cpu", "cpu:1"), ("cpu", "plugin")], ids="-".join)
def test_an_exported_stage_computes_the_same(kind, placement, deploy, meshes):
    specimen = zoo.ZOO[kind]()
    step = deploy(trace_specimen(specimen), placement)
    args = (step.place(specimen.args[0]), *specimen.args[1:])
    expected = gather(step(*args))
    phase = step._phase
    (exported,) = export([step.program])
    travelled = tuple(
        dataclasses.replace(
            stage, call=load_stage(of, meshes[of_mesh]).compile(), description=of.description
        )
        for stage, of, of_mesh in zip(phase.stages, exported, placement, strict=True)
    )
    object.__setattr__(phase, "stages", travelled)
    step._steps = tuple((s, phase.stage_of(s.instruction)) for s in phase.steps)
    found = gather(step(*args))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_is_no_stage_is_refused_by_name(deploy, meshes):
    step = deploy(trace_specimen(zoo.ZOO["plain"]()), ("cpu",))
    ((stage,),) = export([step.program])
    broken = dataclasses.replace(stage, artifact=stage.artifact[:40])
    with pytest.raises(BackendError, match=r"stage 0 .* 40 bytes of StableHLO cannot be read"):
        load_stage(broken, meshes["cpu"])


def test_donation_travels(deploy, meshes):
    step = deploy(trace_specimen(zoo.ZOO["plain"]()), ("cpu",))
    for donates in (True, False):
        ((stage,),) = export([step.program], donates=donates)
        text = load_stage(stage, meshes["cpu"]).compile().as_text()
        assert ("input_output_alias" in text) is donates


def test_a_mesh_without_devices_is_of_the_sort_of_one_with(meshes):
    spec = MeshSpec(name="mesh", device_kind="cpu")
    assert abstract_mesh(spec).axis_types == meshes["cpu"].axis_types
