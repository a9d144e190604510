"""`verify` over the CPU as a target that is only described: verdicts, memory, shares, sends."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import MeshSpec
from gimlax.errors import PlanError, SpecError
from gimlax.verification import OUTCOMES, Answer, verifying
from gimlax.verification.footprint import Held, needed_bytes
from gimlax.verification.verdicts import COMPILED, FAILED, LOWERED, NO_ROOM, REFUSED

KIND = "EPYC 9654"  # a CPU that is described: compiled for here, in a child


def cluster(*kinds, counts=None):
    counts = counts or [1] * len(kinds)
    meshes = tuple(
        MeshSpec(name=f"m{i}", device_kind=kind, num_devices=count)
        for i, (kind, count) in enumerate(zip(kinds, counts, strict=True))
    )
    names = [mesh.name for mesh in meshes]
    links = tuple(
        gx.Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=1e10)
        for a in names
        for b in names
        if a != b
    )
    return gx.Cluster(meshes=meshes, links=links)


def layers(params, memory, x):
    for i, w in enumerate(params):
        with jax.named_scope(f"layers.{i}"):
            x = jnp.tanh(x @ w) @ w.T
    return x + memory, memory + 1


def trace(num_layers=3, width=64):
    shape = jax.ShapeDtypeStruct
    params = [shape((width, width), jnp.float32)] * num_layers
    x = shape((4, width), jnp.float32)
    return gx.trace(layers, params, x, x, resident=(0,), carried={1: 1})


@pytest.fixture(scope="module")
def plain():
    traced = trace()
    plan = gx.plan(traced, cluster(KIND))
    told = []
    return plan, traced, gx.verify(plan, traced, progress=told.append), told


def test_a_plan_for_what_is_here_is_compiled_in_a_child(plain):
    plan, _, found, told = plain
    (stage,) = found.stages
    assert stage.outcome == COMPILED and found.ok and not found.faults
    assert stage.target == "this host's CPU" and f"JAX {jax.__version__}" in stage.compiler
    assert (stage.first_segment, stage.last_segment) == (plan.segments[0], plan.segments[-1])
    assert stage.compiled.flops == pytest.approx(stage.planned_flops, rel=0.2)
    assert stage.planned_flops == pytest.approx(plan.phases[0].stages[0].flops)
    # Three weights, state and input, and what is made of them.
    assert stage.compiled.argument_bytes == 3 * 64 * 64 * 4 + 2 * 4 * 64 * 4
    (mesh,) = found.meshes
    assert mesh.needed_bytes == stage.compiled.needed_bytes and mesh.fits
    assert mesh.capacity_bytes == plan.meshes[0].capacity_bytes
    assert [(p.done, p.total) for p in told] == [(1, 1)]
    assert (found.model, found.cluster) == (plan.model, plan.cluster)


def test_it_says_what_it_did_not_check(plain):
    for word in ("weights", "numerics", "time"):
        assert any(said.startswith(word) for said in plain[2].not_checked)


def test_a_verification_keeps_as_json(plain, tmp_path):
    found = plain[2]
    found.save(tmp_path / "found.json")
    assert gx.Verification.load(tmp_path / "found.json") == found
    text = found.to_json()
    for old, new, said in (
        ('"compiled",', '"perfect",', "outcome is 'perfect'; give one of 'compiled'"),
        (found.date, "yesterday", "date is 'yesterday'"),
        ('"seconds": ', '"seconds": -', "seconds is -"),
        ('"mesh": "m0"', '"mesh": "m1"', "a stage on mesh 'm1' and no verdict on that mesh"),
    ):
        assert old in text
        with pytest.raises(SpecError, match=said):
            gx.Verification.from_json(text.replace(old, new, 1))


def test_the_table_has_every_verdict(plain):
    text = str(plain[2])
    assert "nothing stands in its way: 1 stages, 1 compiled" in text
    assert "m0" in text and "this host's CPU" in text and "not checked:" in text
    assert f"compiled by: JAX {jax.__version__}" in text


def test_equal_stages_are_compiled_once():
    shape = jax.ShapeDtypeStruct

    def same(params, x):
        for i, w in enumerate(params):
            with jax.named_scope(f"layers.{i}"):
                x = jnp.tanh(x @ w) @ w.T
        return x

    traced = gx.trace(same, [shape((8, 8), jnp.float32)] * 4, shape((2, 8), jnp.float32))
    cuts = [2, 4, 6]
    plan = gx.plan(traced, cluster(KIND), cuts=cuts, meshes=["m0"] * 4)
    told = []
    found = gx.verify(plan, traced, progress=told.append)
    assert [stage.outcome for stage in found.stages] == [COMPILED] * 4
    assert len(told) == told[-1].total < 4
    assert [bool(stage.same_as) for stage in found.stages] == [False, True, True, True]
    assert "stage 0" in found.stages[2].same_as
    # What one stage needs and the weights of the others.
    one = found.stages[0].compiled.needed_bytes
    assert found.meshes[0].needed_bytes == one + 3 * 8 * 8 * 4


def test_a_mesh_without_room_is_a_fault_with_its_bytes(plain):
    plan, traced, before, _ = plain
    need = before.meshes[0].needed_bytes
    small = dataclasses.replace(
        plan, meshes=(dataclasses.replace(plan.meshes[0], capacity_bytes=need - 1),)
    )
    found = gx.verify(small, traced)
    assert found.stages[0].outcome == NO_ROOM and not found.ok
    assert found.stages[0].compiled is not None
    assert f"needs {need} bytes on a device that has {need - 1}" in found.stages[0].reason
    assert found.meshes[0].fits is False and len(found.faults) == 2
    assert "it would not run" in str(found) and "no room" in str(found)


def test_a_mesh_whose_memory_nobody_told_is_not_taken_to_have_room(plain):
    _, _, before, _ = plain
    meshes = tuple(dataclasses.replace(mesh, needed_bytes=None) for mesh in before.meshes)
    found = dataclasses.replace(before, meshes=meshes)
    assert before.ok and not found.ok and not found.faults
    assert "it compiles, and how much memory it needs is not known: 1 stages" in str(found)


def test_room_counts_what_other_stages_hold():
    held = [
        Held(mesh="a", arrays={"w": 100, "shared": 7}),
        Held(mesh="b", arrays={"w": 1000}),
        Held(mesh="a", arrays={"v": 30, "shared": 7}),
    ]
    assert needed_bytes("a", held, [150, 0, 60]) == max(150 + 30, 60 + 100)
    assert needed_bytes("b", held, [150, 1200, 60]) == 1200
    assert needed_bytes("a", held, [150, 0, None]) is None
    assert needed_bytes("c", held, [1, 1, 1]) == 0


def test_a_platform_without_a_compiler_is_lowered_only():
    traced = trace()
    found = gx.verify(gx.plan(traced, cluster("MI300X")), traced)
    assert [stage.outcome for stage in found.stages] == [LOWERED]
    assert "ROCm" in found.stages[0].reason and found.stages[0].compiled is None
    assert not found.ok and not found.faults and found.meshes[0].fits is None
    assert "not all of it could be compiled here" in str(found)


def test_an_operation_that_cannot_be_lowered_is_refused():
    def bad(w, x):
        return jax.pure_callback(lambda v: np.asarray(v), x, x) @ w

    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    traced = gx.trace(bad, shape, shape)
    found = gx.verify(gx.plan(traced, cluster(KIND)), traced)
    assert [stage.outcome for stage in found.stages] == [REFUSED]
    assert "stage 0" in found.stages[0].reason and not found.ok and len(found.faults) == 1


def test_what_a_compiler_refuses_is_a_verdict(plain, monkeypatch):
    plan, traced, _, _ = plain
    said = {
        NO_ROOM: Answer(seconds=1.0, refusal="RESOURCE_EXHAUSTED: 32G of 16G", lacks_memory=True),
        REFUSED: Answer(seconds=1.0, refusal="UNIMPLEMENTED: no such thing"),
    }
    for outcome, answer in said.items():
        monkeypatch.setattr(verifying.Children, "compile", lambda *_, answer=answer, **__: answer)
        (stage,) = gx.verify(plan, traced).stages
        assert stage.outcome == outcome and stage.reason == answer.refusal


def test_a_compiler_that_dies_is_a_verdict(plain, tmp_path):
    plan, traced, _, _ = plain
    python = tmp_path / "python"
    # It answers which versions it has, and then fails at every stage.
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *importlib*) exec {sys.executable} "$@";; esac\nkill -9 $$\n'
    )
    python.chmod(0o755)
    (stage,) = gx.verify(plan, traced, pythons={"cpu": python}).stages
    assert stage.outcome == FAILED and "was ended by SIGKILL" in stage.reason


def test_answers_are_kept_between_runs(plain, tmp_path, monkeypatch):
    plan, traced, before, _ = plain
    calls = []
    compile_it = verifying.Children.compile

    def counted(self, *args):
        calls.append(1)
        return compile_it(self, *args)

    monkeypatch.setattr(verifying.Children, "compile", counted)
    folder = tmp_path / "made" / "here"
    first = gx.verify(plan, traced, cache=folder)
    again = gx.verify(plan, traced, cache=folder)
    assert len(calls) == 1 and again == first
    assert first.stages[0].compiled == before.stages[0].compiled
    (kept,) = folder.iterdir()
    kept.write_text(kept.read_text().replace("1", "x"))
    assert gx.verify(plan, traced, cache=folder).stages[0].outcome == COMPILED
    assert len(calls) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SpecError, match=r"cache .* cannot be written to"):
        gx.verify(plan, traced, cache=blocked)


def test_a_live_backend_compiles_here(cluster_here):
    traced = trace()
    plan = gx.plan(traced, cluster_here, meshes=["cpu"])
    (stage,) = gx.verify(plan, traced).stages
    assert stage.outcome == COMPILED and stage.target == "cpu here"
    assert "live backend" in stage.compiler


@pytest.fixture(scope="module")
def cluster_here(cluster_of_this_process):
    (mesh,) = [m for m in cluster_of_this_process.meshes if m.backend == "cpu"][:1]
    return gx.Cluster(meshes=(dataclasses.replace(mesh, name="cpu"),), links=())


@pytest.fixture(scope="module")
def cluster_of_this_process():
    return gx.discover()


def test_what_was_given_wrong_is_said(plain):
    plan, traced, _, _ = plain
    with pytest.raises(SpecError, match="time_limit_s is 0"):
        gx.verify(plan, traced, time_limit_s=0)
    with pytest.raises(SpecError, match=r"plan is .*give"):
        gx.verify("plan", traced)
    with pytest.raises(SpecError, match="pythons names platform 'rocm'"):
        gx.verify(plan, traced, pythons={"rocm": sys.executable})
    with pytest.raises(SpecError, match="python for 'cuda' is '/no/python'"):
        gx.verify(plan, traced, pythons={"cuda": "/no/python"})
    with pytest.raises(PlanError):
        gx.verify(plan, trace(num_layers=4))


def test_a_package_that_is_missing_is_named(plain, monkeypatch):
    plan, traced, _, _ = plain
    monkeypatch.setattr(verifying.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package 'flatbuffers'.*gimlax\[verify\]"):
        gx.verify(plan, traced)


def test_every_outcome_has_its_sentence():
    assert set(OUTCOMES) == {COMPILED, NO_ROOM, REFUSED, FAILED, LOWERED}
