"""Clusters by a few numbers, and a small model with tied weights and carried state."""

import jax
import numpy as np

from gimlax.devices import Cluster, DeviceKind, Link, MeshSpec
from gimlax.graph import Workload, chain, trace
from tests.zoo import ZOO

WIDTH = 64


def kind(name, *, flops_per_s=1e12, bytes_per_s=1e11, memory_bytes=10**9):
    return DeviceKind(
        name=name,
        vendor="test",
        memory_bytes=int(memory_bytes),
        memory_bytes_per_s=bytes_per_s,
        peak_flops_per_s=(("float32", flops_per_s),),
    )


def cluster_of(kinds, *, shares=(), hosts=None, links=None, latency_s=1e-6, bytes_per_s=1e10):
    """One mesh per kind, named after it, all joined unless `links` lists pairs of names."""
    names = [k.name for k in kinds]
    pairs = [(a, b) for a in names for b in names if a != b] if links is None else links
    return Cluster(
        meshes=tuple(
            MeshSpec(
                name=name,
                device_kind=name,
                host=hosts[k] if hosts else f"host{k}",
                shares=shares if hosts else (),
            )
            for k, name in enumerate(names)
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=latency_s, bandwidth_bytes_per_s=bytes_per_s)
            for a, b in pairs
        ),
        kinds=tuple(kinds),
    )


def chain_of(name):
    """A model of the zoo as a chain of one phase."""
    specimen = ZOO[name]()
    return chain(trace(specimen.fn, *specimen.args, carried=specimen.carried))


def two_phases(calls=None, prompt_tokens=128):
    """Four layers with a carried counter each, and a table that is used first and last."""

    def apply(params, state, tokens):
        x = params["table"][tokens]
        updated = []
        for layer, count in zip(params["layers"], state, strict=True):
            x = x + jax.nn.silu(x @ layer["up"] + count.sum()) @ layer["down"]
            updated.append(count + x.sum())
        return x @ params["table"].T, updated

    def shape(*dims, dtype=np.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    layer = {"up": shape(WIDTH, 4 * WIDTH), "down": shape(4 * WIDTH, WIDTH)}
    params = {"table": shape(512, WIDTH), "layers": [layer] * 4}
    state = [shape(8)] * 4
    phases = {
        name: trace(apply, params, state, shape(length, dtype=np.int32), carried={1: 1})
        for name, length in (("prefill", prompt_tokens), ("decode", 1))
    }
    return Workload(phases, calls=calls or {"prefill": 1, "decode": 10})
