"""Every published size is planned for hardware of several vendors, from shapes alone."""

import dataclasses

import jax
import pytest

import gimlax as gx
from gimlax.models import BERT_BASE, BERT_LARGE, MINILM_L6, embed_apply, mamba, mamba2
from gimlax.models.decoder import abstract_params
from gimlax.models.state_space import abstract_state, state_space_apply
from tests.models.test_state_space import PUBLISHED

KINDS = {"gpu": "H100 SXM", "tpu": "TPU v5e", "amd": "MI300X", "small": "L4"}


@pytest.fixture(scope="module", name="fleet")
def fleet_fixture():
    meshes = (f'[[mesh]]\nname = "{n}"\ndevice_kind = "{kind}"\n' for n, kind in KINDS.items())
    links = (
        f'[[link]]\nsource = "{a}"\ntarget = "{b}"\n'
        "latency_s = 5e-5\nbandwidth_bytes_per_s = 1e10\n"
        for a in KINDS
        for b in KINDS
        if a != b
    )
    return gx.Cluster.from_toml("".join((*meshes, *links)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_space_models(name, fleet):
    module = mamba if name.startswith("MAMBA_") else mamba2
    config = getattr(module, name).with_dtype("bfloat16")
    apply = state_space_apply(config)
    params, state = abstract_params(config), abstract_state(config, 1)
    number = jax.ShapeDtypeStruct((), "int32")

    def trace(length, *last):
        tokens = jax.ShapeDtypeStruct((1, length), "int32")
        return gx.trace(apply, params, state, tokens, number, *last, carried={1: 1})

    workload = gx.Workload(
        {"prefill": trace(512, number), "decode": trace(1)}, calls={"decode": 128}
    )
    found = gx.graph.chain(workload)
    assert found.num_segments == config.num_layers + 2
    assert not any(found.splits(b) for b in range(1, found.num_segments))
    assert {s.kind for s in found.phases[1].segments[1:-1]} == {"scan"}
    plan = gx.plan(found, fleet, objective=gx.Objective(goal="throughput"))
    assert len(set(plan.meshes)) > 1


@pytest.mark.parametrize("config", [BERT_BASE, BERT_LARGE, MINILM_L6], ids=lambda c: str(c.width))
def test_encoders(config, fleet):
    config = dataclasses.replace(config.with_dtype("bfloat16"), pooler=False)
    rows = jax.ShapeDtypeStruct((32, 256), "int32")
    traced = gx.trace(embed_apply(config), abstract_params(config), rows, rows)
    found = gx.graph.chain(traced)
    kinds = [s.kind for s in found.phases[0].segments]
    assert kinds == ["embedding", *["attention", "mlp"] * config.num_layers]
    plan = gx.plan(found, fleet, objective=gx.Objective(goal="throughput"))
    assert len(set(plan.meshes)) > 1
