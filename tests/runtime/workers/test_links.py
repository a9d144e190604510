"""What crosses between workers: dtypes, keys, shards of other meshes, and links that break."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import DeviceKind, Interconnect, WorkerSpec
from gimlax.graph import trace
from tests.runtime.workers.conftest import TWO_DEVICES, cluster_of, compile_on


def two_halves(x, key):
    """Many dtypes over one boundary, a typed key among them."""
    a = jnp.tanh(x @ x.T)
    halves = (a.astype(jnp.bfloat16), a.astype(jnp.float16), a > 0, a.astype(jnp.int8))
    key, other = jax.random.split(key)
    b = jnp.tanh(a @ a)
    y = jnp.tanh(b @ a)
    noise = jax.random.normal(other, y.shape)
    return (y @ y + noise, key, *(h.astype(jnp.float32).sum() for h in halves))


@pytest.mark.parametrize("cut", [1, 2])
def test_values_of_every_sort_cross(workers, cut):
    args = (jnp.linspace(-1, 1, 64).reshape(8, 8), jax.random.key(3))
    traced = trace(two_halves, *args, resident=())
    with compile_on(workers, traced, ("one", "two"), cuts=(cut,)) as step:
        found = step(*args)
    expected = jax.jit(two_halves)(*args)
    np.testing.assert_array_equal(jax.random.key_data(found[1]), jax.random.key_data(expected[1]))
    for a, b in zip((found[0], *found[2:]), (expected[0], *expected[2:])):
        np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=0, atol=5e-6 * np.abs(b).max()
        )


@pytest.fixture(scope="module")
def wide():
    """A worker with two devices as one mesh, and one with one."""
    cluster = cluster_of(
        WorkerSpec(name="narrow", platforms="cpu"),
        WorkerSpec(name="wide", platforms="cpu", flags=TWO_DEVICES),
    )
    meshes = tuple(
        dataclasses.replace(mesh, num_devices=2, axes=(("data", 1), ("model", 2)))
        if mesh.name == "wide"
        else mesh
        for mesh in cluster.meshes
    )
    joined = DeviceKind(
        name="cpu",
        vendor="test",
        memory_bytes=10**12,
        memory_bytes_per_s=3e9,
        peak_flops_per_s=(("float32", 4e11),),
        interconnect=Interconnect(name="ring", bytes_per_s=4e11),
    )
    cluster = dataclasses.replace(cluster, meshes=meshes, kinds=(joined,))
    with gx.start_workers(cluster) as started:
        yield started


@pytest.mark.parametrize("placement", [("narrow", "wide"), ("wide", "narrow")], ids="-".join)
def test_values_are_resharded_on_the_way(wide, placement):
    def mlp(params, x):
        for up, down in params:
            x = x + jnp.tanh(x @ up) @ down
        return x

    rng = np.random.default_rng(0)
    params = [
        (
            rng.normal(size=(64, 256)).astype(np.float32) / 8,
            rng.normal(size=(256, 64)).astype(np.float32) / 16,
        )
        for _ in range(4)
    ]
    x = rng.normal(size=(32, 64)).astype(np.float32)
    traced = trace(mlp, params, x)
    spec = jax.sharding.PartitionSpec(None, "model")
    plan = gx.plan(
        traced,
        wide.cluster,
        cuts=2,
        meshes=placement,
        shardings={
            a.path: spec
            for a in traced.arguments
            if a.path.endswith("[0]") and a.aval.ndim == 2 and a.aval.shape[1] == 256
        },
    )
    with gx.compile(plan, traced, workers=wide) as step:
        found = step(step.place(params), x)
    expected = jax.jit(mlp)(params, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_a_link_that_is_made_anew_carries_what_was_on_the_old_one(workers):
    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params, x = [np.eye(16, dtype=np.float32)] * 4, np.ones((4, 16), np.float32)
    traced = trace(layers, params, x)
    with compile_on(workers, traced, ("one", "two"), cuts=(2,)) as step:
        placed = step.place(params)
        expected = np.asarray(step(placed, x))
        links = step._deployment.executor._ground.footing._links
        (link,) = links._links.values()
        for _ in range(3):
            made = link.made
            futures = [step.submit(placed, x) for _ in range(8)]
            links._join("one -> two")
            for future in futures:
                np.testing.assert_array_equal(future.result(30), expected)
            assert link.made == made + 1
