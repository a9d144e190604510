"""Models from shapes alone, a card with an interconnect, and what a search makes of them."""

import jax
import jax.numpy as jnp

from gimlax.devices import DeviceKind, Interconnect
from gimlax.graph import Workload, chain, trace
from gimlax.models import LlamaConfig, abstract_cache, abstract_params, llama_apply
from gimlax.planning.rates import Roofline
from gimlax.planning.sharding import shard, take_apart

# Proportioned so that even a layer of a test is worth being split: nothing but ratios matters.
SLOW = 1e-3


def kind(link_bytes_per_s=4e11, *, slower=SLOW):
    return DeviceKind(
        name="test",
        vendor="test",
        memory_bytes=10**12,
        memory_bytes_per_s=3e12 * slower,
        peak_flops_per_s=(("float32", 4e14 * slower),),
        interconnect=Interconnect(name="ring", bytes_per_s=link_bytes_per_s),
    )


def f32(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def i32(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.int32)


def llama_config(**changes):
    sizes = {
        "vocab_size": 64,
        "width": 32,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_size": 4,
        "mlp_width": 64,
        "max_context": 64,
    }
    return LlamaConfig(**(sizes | changes))


def trace_llama(config, *, batch=1, length=1, context=32):
    return trace(
        llama_apply(config),
        abstract_params(config),
        abstract_cache(config, batch, context),
        i32(batch, length),
        i32(),
        carried={1: 1},
    )


def experts(params, x):
    """Every expert on every token, mixed by the router: [token, width] -> [token, width]."""
    gates = jax.nn.softmax(x @ params["router"], axis=-1)
    hidden = jax.nn.relu(jnp.einsum("td,edf->etf", x, params["up"]))
    made = jnp.einsum("etf,efd->etd", hidden, params["down"])
    return x + jnp.einsum("te,etd->td", gates, made)


def expert_shapes(*, num_experts=8, width=16, hidden=24):
    return {
        "router": f32(width, num_experts),
        "up": f32(num_experts, width, hidden),
        "down": f32(num_experts, hidden, width),
    }


def mlp(params, x):
    return x + jax.nn.relu(x @ params["up"]) @ params["down"]


def mlp_shapes(width=16, hidden=64):
    return {"up": f32(width, hidden), "down": f32(hidden, width)}


def sharded(traced, axes, *, card=None, calls=None, **given):
    """The search's answer for one traced function, or several phases by name."""
    card = card or kind()
    workload = Workload(traced, calls=calls) if isinstance(traced, dict) else traced
    return shard(take_apart(chain(workload)), card, axes, Roofline(card), **given)


def kinds_of(found, phase=0):
    """Kinds of the collectives of each segment."""
    return [[c.kind for c in segment.collectives] for segment in found.segments[phase]]


def every_kind(found, phase=0):
    """Kinds of all collectives."""
    return [kind for of_segment in kinds_of(found, phase) for kind in of_segment]
