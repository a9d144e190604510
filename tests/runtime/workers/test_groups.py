"""Two processes that are one mesh, beside a worker with a backend of another library."""

import dataclasses
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import DeviceKind, Interconnect, Link, MeshSpec, WorkerSpec
from gimlax.graph import trace
from gimlax.runtime.workers.server import PROTOCOL
from gimlax.runtime.workers.shares import join, share
from tests.runtime.workers.conftest import TWO_DEVICES

LIMIT_S = 60
JOINED = DeviceKind(
    name="cpu",
    vendor="test",
    memory_bytes=10**12,
    memory_bytes_per_s=3e9,
    peak_flops_per_s=(("float32", 4e11),),
    interconnect=Interconnect(name="ring", bytes_per_s=4e11),
)
PLACEMENTS = [("slice", "other"), ("other", "slice"), ("slice", "other", "slice")]
AXES = [(("data", 1), ("model", 4)), (("data", 2), ("model", 2))]


def cluster(plugin_name, *names, axes=AXES[0]):
    """Four devices of two processes as one mesh, and one of another backend."""
    specs = {
        "slice": WorkerSpec(name="slice", hosts=("", ""), platforms="cpu", flags=TWO_DEVICES),
        "other": WorkerSpec(name="other", platforms=f"cpu,{plugin_name}"),
    }
    one = MeshSpec(name="slice", device_kind="cpu", backend="cpu", worker="slice", num_devices=4)
    meshes = {
        "slice": dataclasses.replace(one, axes=axes, memory_bytes=10**9),
        "other": MeshSpec(
            name="other",
            device_kind="cpu",
            backend=plugin_name,
            worker="other",
            memory_bytes=10**9,
        ),
    }
    names = names or tuple(specs)
    return gx.Cluster(
        workers=tuple(specs[name] for name in names),
        meshes=tuple(meshes[name] for name in names),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=1e9)
            for a in names
            for b in names
            if a != b
        ),
        kinds=(JOINED,),
    )


def on(cluster, axes):
    """The same with the mesh over two processes split so."""
    return dataclasses.replace(
        cluster,
        meshes=tuple(
            dataclasses.replace(mesh, axes=axes) if mesh.name == "slice" else mesh
            for mesh in cluster.meshes
        ),
    )


@pytest.fixture(scope="module")
def group(plugin_name):
    with gx.start_workers(cluster(plugin_name)) as started:
        yield started


@pytest.fixture
def workers(group):
    for name in group.lost:
        group.start_again(name)
    return group


def layers(params, state, x):
    """Residual blocks, each with a running sum that is not idempotent."""
    sums = []
    for (up, down), old in zip(params, state):
        inner = jnp.tanh(x @ up)
        sums.append(old + inner)
        x = x + (inner + 0.01 * old) @ down
    return x, sums


RNG = np.random.default_rng(0)
PARAMS = [
    (
        RNG.normal(size=(16, 64)).astype(np.float32) / 4,
        RNG.normal(size=(64, 16)).astype(np.float32) / 8,
    )
    for _ in range(6)
]
STATE = [np.zeros((8, 64), np.float32) for _ in PARAMS]
X = RNG.normal(size=(8, 16)).astype(np.float32)


def deployed(workers, placement, axes=AXES[0], **settings):
    """The layers on these meshes, with weights and state over the axis `model`."""
    traced = trace(layers, PARAMS, STATE, X, carried={1: 1})
    wide = jax.sharding.PartitionSpec(None, "model")
    plan = gx.plan(
        traced,
        on(workers.cluster, axes),
        cuts=len(placement),
        meshes=placement,
        shardings={
            a.path: wide for a in traced.arguments if a.aval.ndim == 2 and a.aval.shape[1] == 64
        },
    )
    return gx.compile(plan, traced, workers=workers, **settings)


def expected(num_passes):
    state, outputs = STATE, []
    for number in range(num_passes):
        x, state = jax.jit(layers)(PARAMS, state, X + number)
        outputs.append(np.asarray(x))
    return outputs, state


def near(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("axes", AXES, ids=["model 4", "data 2 model 2"])
@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_a_mesh_over_two_processes_gives_what_one_device_gives(workers, placement, axes):
    check_passes(workers, placement, axes)


def check_passes(workers, placement, axes=AXES[0]):
    outputs, last = expected(6)
    with deployed(workers, placement, axes) as step:
        params, state, futures = step.place(PARAMS), step.init(STATE), []
        for number in range(6):  # several in flight, which all processes run in one order
            futures.append(step.submit(params, state, X + number))
            (state,) = futures[-1].carried
        for future, wanted in zip(futures, outputs, strict=True):
            near(future.result()[0], wanted)
        jax.tree.map(near, gx.gather(state), last)


def test_state_over_two_processes_is_copied_read_and_written(workers):
    with deployed(workers, ("slice", "other")) as step:
        state = step.init(STATE)
        _, state = step(step.place(PARAMS), state, X)
        copy, path = state.copy(), state._tree.paths[0]
        (_, wanted) = expected(1)
        near(state.read(path), wanted[0])
        state.write(path, np.full((8, 64), 7, np.float32))
        assert (state.read(path) == 7).all()
        near(copy.read(path), wanted[0])


def test_stages_over_two_processes_are_probed(workers):
    with deployed(workers, ("slice", "other")) as step:
        assert gx.probe(step, PARAMS, STATE, X).ok


def test_live_passes_over_two_processes_are_checked(workers):
    outputs, _ = expected(4)
    with deployed(workers, ("slice", "other", "slice"), check_every=2) as step:
        params, state = step.place(PARAMS), step.init(STATE)
        for number, wanted in enumerate(outputs):
            found, state = step(params, state, X + number)
            near(found, wanted)
        assert [check.ok for check in step.checks] == [True, True]


def test_one_compilation_at_a_time_runs_on_a_group(workers):
    with (
        deployed(workers, ("slice", "other")),
        pytest.raises(gx.SpecError, match="worker 'slice' of 2 processes runs another compilation"),
    ):
        deployed(workers, ("slice",))
    with deployed(workers, ("slice",)) as step:  # the first one was closed
        near(step(step.place(PARAMS), step.init(STATE), X)[0], expected(1)[0][0])


def test_stages_are_probed_while_passes_are_under_way(workers):
    outputs, _ = expected(6)
    with deployed(workers, ("slice", "other", "slice")) as step:
        params, state, futures = step.place(PARAMS), step.init(STATE), []
        for number in range(6):
            futures.append(step.submit(params, state, X + number))
            (state,) = futures[-1].carried
        assert gx.probe(step, PARAMS, STATE, X).ok
        for future, wanted in zip(futures, outputs, strict=True):
            near(future.result()[0], wanted)


def test_what_cannot_be_put_together_is_an_error(workers, monkeypatch):
    with deployed(workers, ("slice", "other")) as step:
        state = step.init(STATE)

        def no_memory(said):
            raise MemoryError("0 bytes left")

        monkeypatch.setattr("gimlax.runtime.workers.groups.join", no_memory)
        with pytest.raises(gx.BackendError, match="could not be put together: MemoryError: 0 byt"):
            state.read(state._tree.paths[0])


def hurt(workers, member):
    """Kills a process of the mesh, and waits until it is noticed."""
    peer = workers.peers["slice"]
    noticed = threading.Event()
    peer.when_lost(lambda _: noticed.set())
    pid = peer.members[member].ask("hello", {"protocol": PROTOCOL})[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert noticed.wait(LIMIT_S)
    return peer


@pytest.mark.parametrize("member", [0, 1])
def test_a_group_is_lost_as_one_and_passes_go_on(workers, member):
    outputs, last = expected(8)
    with deployed(workers, ("slice", "other")) as step:
        params, state, futures = step.place(PARAMS), step.init(STATE), []
        with pytest.warns(UserWarning, match="worker 'slice' of 2 processes is lost with one"):
            for number in range(8):
                futures.append(step.submit(params, state, X + number))
                (state,) = futures[-1].carried
                if number == 3:
                    peer = hurt(workers, member)
            for future, wanted in zip(futures, outputs, strict=True):
                near(future.result()[0], wanted)
            jax.tree.map(near, gx.gather(state), last)
        assert all(one.lost is not None for one in peer.members)


def test_a_group_alone_is_started_again(plugin_name):
    alone = cluster(plugin_name, "slice")
    with gx.start_workers(alone) as workers, deployed(workers, ("slice",)) as step:
        state = step.init(STATE)
        placed = step.place(PARAMS)
        outputs, _ = expected(2)
        with pytest.warns(UserWarning, match="started again"):
            for number, wanted in enumerate(outputs):
                found, state = step(placed, state, X + number)
                near(found, wanted)
                if number == 0:
                    hurt(workers, 1)


def test_a_mesh_of_another_size_than_the_processes_have_is_refused(plugin_name):
    small = cluster(plugin_name)
    small = dataclasses.replace(
        small,
        meshes=tuple(
            dataclasses.replace(mesh, num_devices=2, axes=(("data", 1), ("model", 2)))
            if mesh.name == "slice"
            else mesh
            for mesh in small.meshes
        ),
    )
    with (
        gx.start_workers(small) as workers,
        pytest.raises(gx.BackendError, match="wants 2 of the 4 devices"),
    ):
        deployed(workers, ("slice", "other"), small.mesh("slice").axes)


def test_what_processes_share_is_joined():
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ["x"])
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.random.key(3)
    arrays = [jnp.arange(6.0).reshape(2, 3), jnp.float32(2), jnp.zeros((0, 4)), key]
    described, parts = share([jax.device_put(array, whole) for array in arrays])
    found, keys = join([(described, [np.asarray(part) for part in parts])])
    for array, same in zip(arrays[:3], found):
        np.testing.assert_array_equal(array, same)
    np.testing.assert_array_equal(jax.random.key_data(key), found[3])
    assert keys == {3: str(jax.random.key_impl(key))}
