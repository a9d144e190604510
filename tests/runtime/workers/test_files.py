"""Parameters in files: workers read what lies in one, and are sent what they cannot read."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from gimlax.lazy import LazyArray
from gimlax.runtime.workers import files, footing
from tests.runtime.workers.conftest import compile_on


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


@pytest.fixture
def mapped(tmp_path):
    """Four matrices of one file, behind a head of odd length."""
    path = tmp_path / "weights.bin"
    values = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    path.write_bytes(b"head!" * 900 + values.tobytes())
    whole = np.memmap(path, np.float32, "r", 4500, (4, 16, 16))
    return path, values, [whole[i] for i in range(4)]


def test_a_view_of_a_mapping_says_where_it_lies(mapped):
    path, values, views = mapped
    for i, view in enumerate(views):
        where = files.where_filed(view)
        assert where[:2] == [str(path), 4500 + i * 1024]
        np.testing.assert_array_equal(files.read_filed(where), values[i])
    inner = files.where_filed(views[2][5:7])
    np.testing.assert_array_equal(files.read_filed(inner), values[2, 5:7])


def test_what_lies_in_no_file_or_was_changed_here_does_not(mapped, tmp_path):
    path, values, views = mapped
    assert files.where_filed(values) is None
    assert files.where_filed(views[0].T) is None
    assert files.where_filed(views[0] + 1) is None
    assert files.where_filed(np.memmap(path, np.float32, "c", 4500, (4, 16, 16))) is None
    os.unlink(path)
    assert files.where_filed(views[0]) is None


def test_another_file_of_that_name_is_refused(mapped):
    path, _, views = mapped
    where = files.where_filed(views[0])
    os.utime(path, ns=(1, 1))
    with pytest.raises(gx.BackendError, match="was changed at 1 ns"):
        files.read_filed(where)
    os.unlink(path)
    with pytest.raises(gx.BackendError, match="cannot be read here"):
        files.read_filed(where)


@pytest.mark.parametrize("readable", [True, False])
def test_workers_read_weights_from_files_if_they_can(readable, mapped, workers, monkeypatch):
    _, values, views = mapped
    if not readable:  # as if the worker were on a host that has no such file
        where_filed = files.where_filed
        monkeypatch.setattr(
            footing, "where_filed", lambda row: (w := where_filed(row)) and ["/nowhere", *w[1:]]
        )
    sent = []
    for peer in workers.peers.values():
        begin = peer.begin

        def watching(kind, fields, arrays=(), begin=begin):
            if kind == "shelve":
                sent.append((sum(a.nbytes for a in arrays), fields["files"]))
            return begin(kind, fields, arrays)

        monkeypatch.setattr(peer, "begin", watching)
    x = np.ones((4, 16), np.float32)
    with compile_on(workers, trace(layers, list(values), x), ("one", "two")) as step:
        placed = step.place(views)
        assert (sum(nbytes for nbytes, _ in sent) == 0) is readable
        np.testing.assert_allclose(step(placed, x), jax.jit(layers)(list(values), x), rtol=1e-6)


@pytest.mark.parametrize("lies", [True, False])
def test_what_nobody_has_read_yet_is_read_by_the_worker_or_sent_alone(
    lies, mapped, workers, monkeypatch
):
    _, values, views = mapped
    most = []

    def lazy(i):
        def read(index):
            if lies:
                return views[i][index]
            return values[i][index] + 0

        return LazyArray(shape=(16, 16), dtype=values.dtype, read=read)

    for peer in workers.peers.values():
        begin = peer.begin

        def watching(kind, fields, arrays=(), begin=begin):
            if kind == "shelve":
                most.append(len(arrays))
            return begin(kind, fields, arrays)

        monkeypatch.setattr(peer, "begin", watching)
    x = np.ones((4, 16), np.float32)
    with compile_on(workers, trace(layers, list(values), x), ("one", "two")) as step:
        placed = step.place([lazy(i) for i in range(4)])
        assert most == ([0, 0] if lies else [1] * 4)
        np.testing.assert_allclose(step(placed, x), jax.jit(layers)(list(values), x), rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, gx.gather(placed), list(values))
        assert placed.nbytes == values.nbytes
