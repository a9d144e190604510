"""Segments that are searched once: which they are, and that nothing else comes of it."""

import jax
import pytest

from gimlax.graph import Workload, chain, trace
from gimlax.partition import find_runs
from gimlax.planning.sharding import states, take_apart
from gimlax.planning.sharding.alike import first_alike
from tests.planning.sharding.models import (
    expert_shapes,
    experts,
    f32,
    llama_config,
    mlp,
    mlp_shapes,
    sharded,
    trace_llama,
)


def llama_phases():
    config = llama_config(num_layers=4, width=64, head_size=8)
    return {"prefill": trace_llama(config, length=8), "decode": trace_llama(config)}


def mixed(params, x):
    """Two sorts of layers by turns, and one whose activation differs."""
    for layer in params:
        x = experts(layer, x) if "router" in layer else mlp(layer, x)
    return jax.numpy.tanh(x @ params[1]["up"]) @ params[1]["down"]


def mixed_model():
    shapes = [mlp_shapes(16, 64), expert_shapes(), mlp_shapes(16, 64), expert_shapes()]
    return trace(mixed, [shapes[0], shapes[2], shapes[1], shapes[3]], f32(32, 16))


def scanned(params, x):
    return jax.lax.scan(lambda h, layer: (mlp(layer, h), None), x, params)[0]


def scanned_model():
    shapes = {k: f32(6, *v.shape) for k, v in mlp_shapes().items()}
    return trace(scanned, shapes, f32(32, 16))


def test_the_layers_of_a_model_are_alike_and_its_ends_are_not():
    pieces = take_apart(chain(Workload(llama_phases())))
    for row in pieces.alike:
        # What comes after the last layer is read by the norm and the head: another end.
        *layers, last, head = row[1:]
        assert layers == [1, 2] * 3 + [1]
        assert [row[0], last, head] == [0, 8, 9]


def test_another_activation_is_another_segment():
    def model(params, x):
        x = x @ params[0]
        x = jax.nn.relu(x @ params[1])
        return jax.numpy.tanh(x @ params[2])

    phase = chain(trace(model, [f32(16, 16)] * 3, f32(32, 16))).phases[0]
    runs = find_runs(phase)
    assert len(set(first_alike(runs))) == len(runs) == 3


@pytest.mark.parametrize("axes", [{"data": 1, "model": 4}, {"data": 2, "model": 2}])
@pytest.mark.parametrize("model", [llama_phases, mixed_model, scanned_model])
def test_sharing_changes_nothing(monkeypatch, model, axes):
    shared = sharded(model(), axes)
    monkeypatch.setattr(states, "first_alike", lambda runs: list(range(len(runs))))
    alone = sharded(model(), axes)
    assert shared.specs == alone.specs
    assert shared.edges == alone.edges
    assert shared.results == alone.results
    assert shared.splits == alone.splits
    assert shared.segments == alone.segments
    assert shared.resident_bytes == alone.resident_bytes
