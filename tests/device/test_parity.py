"""A small model over the CPU and the device gives what the CPU alone gives, wherever it is cut."""

import jax
import pytest

from gimlax.graph import chain
from gimlax.runtime import gather
from tests.device.conftest import KINDS, assert_close, make, reference, trace


@pytest.mark.parametrize("kind", KINDS)
def test_whole_on_the_device(kind, deploy, device):
    specimen = make(kind)
    with deploy(trace(specimen), "device") as step:
        found = step(step.place(specimen.args[0]), *specimen.args[1:])
        leaves = [x for x in jax.tree.leaves(found) if isinstance(x, jax.Array)]
        assert {d for leaf in leaves for d in leaf.devices()} == {device}
        assert_close(gather(found), reference(specimen.fn, *specimen.args))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("meshes", [("cpu", "device"), ("device", "cpu")], ids="-".join)
def test_at_each_boundary(kind, meshes, deploy):
    specimen = make(kind)
    traced = trace(specimen)
    expected = reference(specimen.fn, *specimen.args)
    found = chain(traced)
    boundaries = [b for b in range(1, found.num_segments) if not found.splits(b)]
    assert boundaries
    for boundary in boundaries:
        with deploy(traced, *meshes, cuts=(boundary,)) as step:
            args = (step.place(specimen.args[0]), *specimen.args[1:])
            assert_close(gather(step(*args)), expected)


def test_there_and_back_with_passes_in_flight(deploy):
    specimen = make("llama")
    expected = reference(specimen.fn, *specimen.args)
    with deploy(trace(specimen), "cpu", "device", "cpu") as step:
        params = step.place(specimen.args[0])
        passes = [step.submit(params, *specimen.args[1:]) for _ in range(8)]
        for found in passes:
            assert_close(gather(found.result(600)), expected)
