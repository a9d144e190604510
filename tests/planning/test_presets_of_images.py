"""Stable Diffusion 3 and 3.5 at their published sizes, traced and planned from shapes alone."""

import pytest

import gimlax as gx
from gimlax import models
from gimlax.devices import Link, MeshSpec
from gimlax.graph import chain
from gimlax.serving import ImageModel

PRESETS = (
    "STABLE_DIFFUSION_3_MEDIUM",
    "STABLE_DIFFUSION_35_MEDIUM",
    "STABLE_DIFFUSION_35_LARGE",
)


def three_devices():
    """One device of each of two vendors, and a processor."""
    kinds = {"nvidia": "L4", "amd": "MI300X", "cpu": "EPYC 9654"}
    meshes = [
        MeshSpec(
            name=name,
            device_kind=kind,
            num_devices=1,
            axes=(("data", 1), ("model", 1)),
            memory_bytes=10**12 if name == "cpu" else None,
        )
        for name, kind in kinds.items()
    ]
    links = [
        Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=2e10)
        for a in kinds
        for b in kinds
        if a != b
    ]
    return gx.Cluster(meshes=tuple(meshes), links=tuple(links))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_planned_for_a_mixed_cluster(name):
    config = getattr(models, name).with_dtype("bfloat16")
    model = ImageModel(
        encode=models.encode_apply(config),
        denoise=models.denoise_apply(config),
        decode=models.decode_apply(config),
        params=models.abstract_diffusion_params(config),
        token_lengths=(77, 77, 256),
        latent_shape=config.latent_shape(1024, 1024),
    )
    found = chain(model.workload(num_steps=28))
    plan = gx.plan(found, three_devices(), objective=gx.Objective(goal="throughput"))
    assert [phase.name for phase in plan.phases] == ["encode", "denoise", "decode"]
    used = [held.mesh for held in plan.layout.holdings]
    assert len(used) > 1 and "amd" in used
    assert plan.gap < 0.1
