"""Compiled for TPUs and NVIDIA GPUs that are not here, by their own compilers.

Skipped where these are not installed: `make verify-hardware` sets up their environments.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import gimlax as gx
from gimlax import models
from gimlax.devices import Cluster
from gimlax.verification import mesh_of
from gimlax.verification.targets import _read
from gimlax.verification.toolchains import find_toolchain, how_to_install
from gimlax.verification.verdicts import COMPILED, NO_ROOM
from tests.verification.test_script import run

TPUS = [f"{table['prefix']}:{table['shapes'][2]}" for table in _read("tpu")["tpu"]]
GPUS = [table["kind"] for table in _read("gpu")["gpu"]]


@pytest.fixture
def compiler():
    """Skips a test whose hardware no compiler is here for."""

    def need(topology):
        platform = "tpu" if ":" in topology else "cuda"
        if find_toolchain(platform) is None:
            pytest.skip(f"no compiler for {platform!r}; {how_to_install(platform)}")

    return need


def cluster(topology, **changes):
    mesh = dataclasses.replace(mesh_of(topology, "mesh"), **changes)
    return Cluster(meshes=(mesh,), links=())


def verified(topology, fn, *args, carried=None, **changes):
    traced = gx.trace(fn, *args, carried=carried or {})
    return gx.verify(gx.plan(traced, cluster(topology, **changes)), traced)


@pytest.mark.parametrize("topology", [*TPUS, "v5e:1x1", "v6e:1x2", "tpu7x:1x1x1", *GPUS])
def test_every_kind_that_has_a_target_is_compiled_for(topology, compiler):
    compiler(topology)
    shape = jax.ShapeDtypeStruct
    w, x = shape((256, 256), jnp.bfloat16), shape((64, 256), jnp.bfloat16)
    found = verified(topology, lambda w, x: jnp.tanh(x @ w) @ w.T, w, x)
    (stage,) = found.stages
    assert (stage.outcome, stage.reason) == (COMPILED, "")
    if stage.compiled.flops is not None:  # a program that calls libraries has none
        assert stage.compiled.flops == pytest.approx(stage.planned_flops, rel=0.1)
    assert stage.compiled.needed_bytes >= 256 * 256 * 2 and found.ok


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x4", "4 x H100 SXM"])
@pytest.mark.parametrize("length", [1, 128])
def test_a_layer_that_is_split_sends_what_was_planned(topology, length, compiler):
    """One layer of Llama-3-8B in float32, split over all devices.

    With JAX's default precision a TPU multiplies float32 in bfloat16, and its compiler then gathers
    half the bytes; sums along two axes are one sum of both.
    """
    compiler(topology)
    config = dataclasses.replace(models.LLAMA3_8B, num_layers=1, vocab_size=4096)
    shape = jax.ShapeDtypeStruct
    params, cache = models.abstract_params(config), models.abstract_cache(config, 1, 256)
    args = params, cache, shape((1, length), jnp.int32), shape((), jnp.int32)
    count = mesh_of(topology, "mesh").num_devices
    with jax.default_matmul_precision("highest"):
        found = verified(
            topology,
            models.llama_apply(config),
            *args,
            carried={1: 1},
            axes=(("data", 1), ("model", count)),
        )
    (stage,) = found.stages
    assert stage.outcome == COMPILED and stage.planned_collectives
    planned = {of.kind: (of.count, of.num_bytes) for of in stage.planned_collectives}
    emitted = {of.kind: (of.count, of.num_bytes) for of in stage.compiled.collectives}
    assert emitted == planned


def test_memory_that_a_tpu_has_not_is_found_by_its_compiler(compiler):
    compiler("v5e:1x1")
    big = jax.ShapeDtypeStruct((2**16, 3 * 2**14), jnp.float32)  # 12 GiB, and as much again
    found = verified("v5e:1x1", lambda x: x.T + 1, big, memory_bytes=2**40)
    assert [stage.outcome for stage in found.stages] == [NO_ROOM]
    assert "RESOURCE_EXHAUSTED" in found.stages[0].reason and not found.ok


def test_the_script_verifies_a_model_for_both_vendors(compiler, tmp_path):
    compiler("v5e:2x2")
    compiler("H100 SXM")
    done = run(
        "--topology=v5e:1x1,L4",
        "--prompt_tokens=16",
        "--new_tokens=4",
        "--context=32",
        f"--json={tmp_path}/found.json",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("nothing stands in its way") == 2
    assert "libtpu" not in done.stderr and "WARNING" not in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["verifications"]
    assert [of["hardware"] for of in found] == ["v5e:1x1", "L4"]
