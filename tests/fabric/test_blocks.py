"""Each element of each shard comes from a device that has it, once, whatever the two meshes are."""

import collections
import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from gimlax.errors import SpecError
from gimlax.fabric import Part, assemble, route, shards
from tests.fabric.children import Peer
from tests.fabric.reshard_child import CASES

AXES = ("data", "model", "pipe")


@st.composite
def sharded(draw, shape):
    """Axes of a mesh and a spec that fits a shape."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axes = list(zip(AXES, sizes))
    left = draw(st.permutations(axes))
    spec = []
    for size in shape:
        names, num = [], 1
        while left and size % (num * left[0][1]) == 0 and draw(st.booleans()):
            name, width = left.pop(0)
            names.append(name)
            num *= width
        spec.append(tuple(names) if len(names) != 1 else names[0])
    return axes, PartitionSpec(*spec)


@st.composite
def cuts(draw, shape, num_devices):
    """Boxes that cut an array at any places, with any number of devices to each."""
    bounds = [
        sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape
    ]
    boxes = list(itertools.product(*([*map(slice, b, b[1:])] or [slice(0, 0)] for b in bounds)))
    holders = draw(st.lists(st.sampled_from(boxes), max_size=num_devices))
    return dict(enumerate(draw(st.permutations([*boxes, *holders]))))


shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)


def slow_counts(shape, target):
    """How often each element has to cross: once for each different shard that it is in."""
    counts = np.zeros(shape, int)
    for index in {
        tuple((s.start, s.stop) for s in index): index for index in target.values()
    }.values():
        counts[index] += 1
    return counts


def check(shape, source, target):
    array = np.arange(math.prod(shape)).reshape(shape)
    blocks = route(shape, source, target)
    crossed = np.zeros(shape, int)
    rebuilt = {device: np.full(shape, -1)[index] for device, index in target.items()}
    for block in blocks:
        where = tuple(slice(a, a + n) for a, n in zip(block.start, block.shape))
        crossed[where] += 1
        held = np.full(shape, -1)
        held[source[block.source]] = array[source[block.source]]
        for device in block.targets:
            mine = np.full(shape, -1)
            mine[target[device]] = rebuilt[device]
            mine[where] = held[where]
            rebuilt[device] = mine[target[device]]
    assert (crossed == slow_counts(shape, target)).all()
    for device, index in target.items():
        assert (rebuilt[device] == array[index]).all()
    return blocks


@given(st.data())
def test_any_cut_into_any_other(data):
    shape = data.draw(shapes)
    check(shape, data.draw(cuts(shape, 6)), data.draw(cuts(shape, 6)))


@given(st.data())
def test_any_mesh_to_any_other(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 4, 6, 12]), max_size=3).map(tuple))
    source, target = (shards(shape, *data.draw(sharded(shape))) for _ in range(2))
    blocks = check(shape, source, target)
    assert sum(math.prod(block.shape) for block in blocks) == math.prod(shape)


def test_replicas_share_the_sending():
    everything = (slice(0, 8),)
    source = dict.fromkeys("abcd", everything)
    target = {k: (slice(2 * k, 2 * k + 2),) for k in range(4)}
    sent = collections.Counter()
    for block in route((8,), source, target):
        sent[block.source] += math.prod(block.shape)
    assert sent == dict.fromkeys("abcd", 2)


def test_a_source_that_does_not_hold_all_is_refused():
    with pytest.raises(SpecError, match=r"array \(8,\): the source holds 6 of the 8 elements"):
        route((8,), {0: (slice(0, 6),)}, {0: (slice(0, 8),)})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (PartitionSpec("rows"), "has 'rows', and the mesh has axes {'data': 2}"),
        (PartitionSpec(None, "data"), r"dim 1 of shape \(4, 3\) is not a multiple of 2"),
        (PartitionSpec(None, None, None), r"has 3 entries, and shape \(4, 3\) fewer"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec, said):
    with pytest.raises(SpecError, match=said):
        shards((4, 3), [("data", 2)], spec)


def part(start, data, whole=(4,)):
    return Part(index=7, whole=whole, start=start, data=data)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part((0,), np.zeros(4, "i4"))], r"array 7: a block of int32 \(4,\) came, and float32"),
        (
            [part((0,), np.zeros(4, "f4"), (8,))],
            r"a block of float32 \(8,\) came, and float32 \(4,",
        ),
        ([part((0,), np.zeros(3, "f4"))], r"a shard \(\(0, 4\),\) of float32: 3 of its 4 elements"),
        ([part((0,), np.zeros(3, "f4")), part((2,), np.zeros(2, "f4"))], "overlap"),
        ([], "0 of its 4 elements came"),
    ],
)
def test_what_are_not_all_blocks_of_an_array_is_refused(parts, said):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    with pytest.raises(SpecError, match=said):
        assemble(parts, (4,), np.float32, sharding)


class MeshPeer(Peer):
    """A process with a mesh of its own."""

    def __init__(self, role, num_devices):
        self.start("reshard_child.py", role, str(num_devices))


@pytest.mark.parametrize("kind", ["ring", "tcp"])
def test_meshes_of_two_processes(kind):
    """Eight devices to six, along other axes, with replicas on either side."""
    with MeshPeer("send", 8) as source, MeshPeer(kind, 6) as target:
        source.tell(target.line())
        for number, (shape, *_) in enumerate(CASES):
            report = json.loads(target.line())
            assert report["off"] == 0, (number, shape)
            assert report["sharded"], (number, shape)
            assert report["bytes"] == report["size"], (number, shape)
        source.ends_well(), target.ends_well()
