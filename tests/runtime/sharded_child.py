"""Runs in a process with eight CPU devices: models on meshes of four and eight, as JSON.

Of each case: how far its outputs are from those of one device, and the bytes of each kind of
collective, as predicted and as found in the compiled HLO.
"""

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import gimlax as gx
from gimlax.devices import DeviceKind, Group, Interconnect, Link, MeshSpec
from gimlax.graph import chain
from gimlax.models import (
    LlamaConfig,
    MixtralConfig,
    decoder_apply,
    init_cache,
    init_params,
)
from gimlax.partition import PERMUTE
from gimlax.planning.rates import Roofline
from gimlax.planning.rates.collectives import Ring
from gimlax.planning.sharding import shard, take_apart
from gimlax.verification import hlo

FREE = "free permutations"


def cluster(*axes, link_bytes_per_s=4e11):
    kind = DeviceKind(
        name="cpu",
        vendor="test",
        memory_bytes=10**12,
        memory_bytes_per_s=3e9,
        peak_flops_per_s=(("float32", 4e11),),
        interconnect=Interconnect(name="ring", bytes_per_s=link_bytes_per_s),
    )
    meshes, first = [], 0
    for number, (data, model) in enumerate(axes):
        meshes.append(
            MeshSpec(
                name=f"mesh{number}",
                device_kind="cpu",
                num_devices=data * model,
                axes=(("data", data), ("model", model)),
                backend="cpu",
                first_device=first,
            )
        )
        first += data * model
    names = [mesh.name for mesh in meshes]
    links = [
        Link(source=a, target=b, latency_s=1e-6, bandwidth_bytes_per_s=1e10)
        for a in names
        for b in names
        if a != b
    ]
    return gx.Cluster(meshes=tuple(meshes), links=tuple(links), kinds=(kind,))


def emitted(text):
    """Bytes of the collectives in compiled HLO by kind."""
    total = Counter()
    for kind, (_, num_bytes) in hlo.emitted(text).items():
        total[on_a_cpu(kind)] += num_bytes
    return total


def on_a_cpu(kind):
    """Where XLA scatters a sum, its CPU backend sums and slices."""
    return kind.replace("reduce_scatter", "all_reduce")


def predicted(found, phase):
    total = Counter()
    for segment in found.segments[phase]:
        for collective in segment.collectives:
            total[on_a_cpu(collective.kind)] += collective.num_bytes
    return total


def check(fn, args, spots, *, carried=None, **settings):
    """A case: the function on its cluster against plain JAX on one device."""
    traced = gx.trace(fn, *args, carried=carried or {})
    plan = gx.plan(traced, spots, **settings)
    plan = gx.Plan.from_json(plan.to_json())
    spot = plan.specs[0]
    kind = spots.kind(spot.name)
    found = shard(take_apart(chain(traced)), kind, dict(spot.axes), Roofline(kind))
    reference = jax.jit(fn)(*jax.device_put(args, jax.devices()[0]))
    with gx.compile(plan, traced) as step:
        stages = step._deployment.phases[0].stages
        text = [stage.compiled.as_text() for stage in stages]
        handles = [step.place(args[0])]
        if carried:
            handles.append(step.init(args[1]))
        outputs = step(*handles, *args[len(handles) :])
        outputs = jax.tree.map(
            np.asarray, gx.gather(outputs) if not carried else [gx.gather(o) for o in outputs]
        )
    errors = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / max(1e-9, np.abs(b).max())),
        jax.tree.leaves(outputs),
        jax.tree.leaves(jax.tree.map(np.asarray, reference)),
    )
    return {
        "error": max(errors),
        "predicted": predicted(found, 0),
        "emitted": sum(map(emitted, text), Counter()),
        "split": sum(1 for s in plan.shardings for _ in s.specs),
        "stages": len(stages),
        "axes": dict(spot.axes),
        "specs": {name: spec for of in plan.shardings for name, spec in of.specs},
    }


def llama(length, batch, **changes):
    sizes = {
        "vocab_size": 64,
        "width": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_size": 16,
        "mlp_width": 512,
        "max_context": 64,
    }
    return decoder(LlamaConfig(**(sizes | changes)), length, batch)


def mixtral(length, batch, **changes):
    sizes = {
        "vocab_size": 64,
        "width": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_size": 16,
        "mlp_width": 512,
        "max_context": 64,
        "num_experts": 8,
        "num_chosen": 2,
    }
    return decoder(MixtralConfig(**(sizes | changes)), length, batch)


def decoder(config, length, batch):
    tokens = np.arange(batch * length, dtype=np.int32).reshape(batch, length) % 64
    cache = init_cache(config, batch, 32)
    args = (init_params(config), cache, tokens, np.int32(3))
    return decoder_apply(config), args


def experts(params, x):
    gates = jax.nn.softmax(x @ params["router"], axis=-1)
    hidden = jax.nn.relu(jnp.einsum("td,edf->etf", x, params["up"]))
    made = jnp.einsum("etf,efd->etd", hidden, params["down"])
    x = x + jnp.einsum("te,etd->td", gates, made)
    return x / (1 + jnp.abs(x).sum())


def expert_args(num_experts=8, width=64, hidden=256, tokens=6):
    rng = np.random.default_rng(0)
    shapes = {
        "router": (width, num_experts),
        "up": (num_experts, width, hidden),
        "down": (num_experts, hidden, width),
    }
    params = {k: (rng.normal(size=s) / 16).astype(np.float32) for k, s in shapes.items()}
    return params, rng.normal(size=(tokens, width)).astype(np.float32)


def constrained(params, x):
    hidden = jax.nn.relu(x @ params["up"])
    mesh = AbstractMesh((1, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = NamedSharding(mesh, PartitionSpec(None, "model"))
    return jax.lax.with_sharding_constraint(hidden, spec) @ params["down"]


def open_axes():
    """Two divides every dim, and four none: a mesh of four has to be split both ways."""
    rng = np.random.default_rng(0)
    shapes = {"up": (66, 258), "down": (258, 66)}
    params = {k: (rng.normal(size=s) / 16).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(4098, 66)).astype(np.float32)
    made = cluster((1, 4))
    made = dataclasses.replace(
        made, meshes=tuple(dataclasses.replace(mesh, axes=()) for mesh in made.meshes)
    )
    return lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"], (params, x), made


def check_jit():
    """The whole road in one call, with a spec that the caller wants kept."""
    params, x = expert_args()
    params = {"up": params["up"][0], "down": params["down"][0]}
    given = {"params['up']": PartitionSpec("data", None)}
    step = gx.jit(constrained, cluster=cluster((2, 2)), shardings=given)
    compiled = step.lower(params, x).compile()
    placed = compiled.place(params)
    reference = jax.jit(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"])(params, x)
    specs = {name: spec for of in compiled.plan.shardings for name, spec in of.specs}
    error = np.abs(np.asarray(compiled(placed, x)) - reference).max() / np.abs(reference).max()
    compiled.close()
    return {"error": float(error), "specs": specs, "split": len(specs)}


def check_group():
    """A mesh made from a group of devices, none of which has room for all parameters."""
    params, x = expert_args()
    traced = gx.trace(experts, params, x)
    made = cluster((1, 4))
    group = Group(
        name="pod", device_kind="cpu", num_devices=8, backend="cpu", memory_bytes=500 * 1024
    )
    link = Link(source="pod", target="pod", latency_s=1e-6, bandwidth_bytes_per_s=1e10)
    pod = dataclasses.replace(made, meshes=(), groups=(group,), links=(link,))
    plan = gx.plan(traced, pod, objective=gx.Objective(goal="latency"))
    with gx.compile(plan, traced) as step:
        placed = step.place(params)
        held = Counter()
        for leaf in jax.live_arrays():
            for shard in leaf.addressable_shards if len(leaf.devices()) > 1 else ():
                held[shard.device.id] += shard.data.nbytes
        reference = np.asarray(jax.jit(experts)(params, x))
        error = np.abs(np.asarray(step(placed, x)) - reference).max() / np.abs(reference).max()
    return {
        "error": float(error),
        "split": sum(len(of.specs) for of in plan.shardings),
        "most_bytes": max(held.values()),
        "capacity_bytes": group.memory_bytes,
        "whole_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def free_permutations():
    """A search to which permutations cost nothing, so that it does not avoid them."""

    charged = Ring.seconds

    def seconds(self, collective):
        return 0.0 if collective.kind == PERMUTE else charged(self, collective)

    return mock.patch.object(Ring, "seconds", seconds)


def cases():
    one = {1: 1}
    for size in (4, 8):
        for phase, length in (("decode", 1), ("prefill", 8)):
            fn, args = llama(length, 1)
            yield f"llama {phase} {size}", (fn, args, cluster((1, size))), {"carried": one}
        yield f"experts {size}", (experts, expert_args(), cluster((1, size))), {}
        fn, args = llama(1, 1, num_heads=9, num_kv_heads=3, head_size=8)
        yield f"nine heads {size}", (fn, args, cluster((1, size))), {"carried": one}
        fn, args = llama(4, 4)
        axes = (2, size // 2)
        yield f"both axes {size}", (fn, args, cluster(axes)), {"carried": one}
    for phase, length in (("decode", 1), ("prefill", 8)):
        fn, args = mixtral(length, 2)
        yield f"mixtral {phase}", (fn, args, cluster((1, 4))), {"carried": one}
        # Nothing divides the inside of an expert: only whole ones can be dealt out.
        fn, args = mixtral(length, 2, mlp_width=509)
        yield f"whole experts {phase}", (fn, args, cluster((1, 4))), {"carried": one}
    fn, args = mixtral(24, 2)
    yield "mixtral of 48 rows", (fn, args, cluster((1, 4))), {"carried": one}
    fn, args = mixtral(24, 2, mlp_width=509)
    yield "whole experts, both axes", (fn, args, cluster((2, 4))), {"carried": one}
    fn, args = llama(4, 4)
    yield FREE, (fn, args, cluster((2, 2))), {"carried": one}
    yield "open axes", open_axes(), {}
    fn, args = llama(8, 1)
    spots = cluster((1, 4), (1, 4))
    yield "two meshes", (fn, args, spots), {"carried": one, "meshes": ("mesh0", "mesh1")}


if __name__ == "__main__":
    chosen = sys.argv[1:]
    found = {}
    for name, given, settings in cases():
        if not chosen or name in chosen:
            with free_permutations() if name == FREE else contextlib.nullcontext():
                found[name] = check(*given, **settings)
    if not chosen or "jit" in chosen:
        found["jit"] = check_jit()
    if not chosen or "group" in chosen:
        found["group"] = check_group()
    print(json.dumps(found))
