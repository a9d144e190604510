"""What a plan says that devices send each other is what the search priced and what is emitted."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

import gimlax as gx
from gimlax.graph import chain
from gimlax.planning import MeshSharding
from gimlax.planning.rates import Roofline
from gimlax.planning.sharding import shard, take_apart
from gimlax.verification.verdicts import COMPILED
from tests.runtime.sharded_child import cluster, expert_args, experts, llama


def stacked(params, x):
    def layer(x, w):
        return jnp.tanh(x @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, params)[0]


def stacked_args(num_layers=3, width=256, hidden=1024, tokens=16):
    shapes = {"up": (num_layers, width, hidden), "down": (num_layers, hidden, width)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    return params, jax.ShapeDtypeStruct((tokens, width), jnp.float32)


def cases():
    yield "stacked 4", (stacked, stacked_args()), (1, 4), {}
    for size in (4, 8):
        for phase, length in (("decode", 1), ("prefill", 8)):
            yield f"llama {phase} {size}", llama(length, 1), (1, size), {1: 1}
        nine = llama(1, 1, num_heads=9, num_kv_heads=3, head_size=8)
        yield f"nine heads {size}", nine, (1, size), {1: 1}
        yield f"experts {size}", (experts, expert_args()), (1, size), {}
        yield f"both axes {size}", llama(4, 4), (2, size // 2), {1: 1}


CASES = {name: rest for name, *rest in cases()}


def no_names(segment):
    """What a segment does and sends; prices are none of a plan's."""
    return segment.operations, segment.collectives


@pytest.mark.parametrize("case", CASES)
def test_a_sharding_read_back_from_a_plan_sends_what_was_searched(case):
    (fn, args), axes, carried = CASES[case]
    found = chain(gx.trace(fn, *args, carried=carried))
    pieces = take_apart(found)
    spots = cluster(axes)
    (spot,) = spots.meshes
    searched = shard(pieces, spots.kinds[0], dict(spot.axes), Roofline(spots.kinds[0]))
    kept = MeshSharding.of("mesh0", searched, found)
    read = kept.sharded(take_apart(found), dict(spot.axes))
    for ours, theirs in zip(read.segments, searched.segments, strict=True):
        assert list(map(no_names, ours)) == list(map(no_names, theirs))
    assert any(segment.collectives for row in read.segments for segment in row)
    assert read.specs == searched.specs


@pytest.mark.parametrize("case", ["llama prefill 4", "experts 4", "both axes 4"])
def test_what_is_planned_is_what_a_compiler_emits(case):
    (fn, args), axes, carried = CASES[case]
    traced = gx.trace(fn, *args, carried=carried)
    plan = gx.plan(traced, cluster(axes))
    # Only described: a child compiles it, with as many devices as the mesh has.
    plan = dataclasses.replace(
        plan, specs=tuple(dataclasses.replace(spec, backend="") for spec in plan.specs)
    )
    (stage,) = gx.verify(plan, traced).stages
    assert stage.outcome == COMPILED
    emitted = {of.kind: (of.count, of.num_bytes) for of in stage.compiled.collectives}
    planned = Counter()
    for of in stage.planned_collectives:  # XLA:CPU scatters no sum
        planned[of.kind.replace("reduce_scatter", "all_reduce")] += of.num_bytes
    assert planned
    assert {kind: num_bytes for kind, (_, num_bytes) in emitted.items()} == planned
    assert stage.compiled.flops == pytest.approx(stage.planned_flops, rel=0.25)
