"""What crosses between workers: dtypes, keys, shards of other meshes, and links that break."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax import fabric
from gimlax.devices import DeviceKind, Interconnect, WorkerSpec
from gimlax.fabric import NARROWINGS, narrowing_bound
from gimlax.fabric.frames import Described, layout_of
from gimlax.graph import trace
from gimlax.runtime.workers.links import Crossing, End
from gimlax.runtime.workers.orders import CrossingOrder, Orders, PhaseOrder, ValueOrder
from gimlax.runtime.workers.ports import Ports, needed
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


AXES = (("data", 1), ("model", 2))


def sent_over_a_ring(arrays, values, axes=AXES):
    """What arrives on a mesh of what is sent on the other, and how many bytes of it each are."""
    order = CrossingOrder(track="a -> b", place=0, source="a", target="b", values=tuple(values))
    end = End(axes=axes, owners=(0,) * math.prod(size for _, size in axes))
    crossing = Crossing(order, end, end)
    shape = tuple(size for _, size in axes)
    devices = np.array(jax.devices("cpu")[: np.prod(shape)]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, [name for name, _ in axes])
    with (
        fabric.listen("ring", "a -> b") as receiver,
        fabric.connect(receiver.offer) as sender,
    ):
        sender.send(fabric.Tag(pass_number=0), crossing.pack(arrays, mesh, 0)[0])
        parts = receiver.receive(30).parts
        num_bytes = sum(part.data.nbytes for part in parts)
        found = crossing.unpack(parts, crossing.lie(mesh))
        return [jax.device_put(x, may_alias=False) for x in found], num_bytes


def placed(array, spec, axes=AXES):
    shape = tuple(size for _, size in axes)
    devices = np.array(jax.devices("cpu")[: np.prod(shape)]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, [name for name, _ in axes])
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


P = jax.sharding.PartitionSpec
SPECS = {"rows": (P("model"), (("model",), ())), "columns": (P(None, "model"), ((), ("model",)))}


@pytest.mark.parametrize("to", ["", *NARROWINGS])
@pytest.mark.parametrize("target", [*SPECS, "whole"])
@pytest.mark.parametrize("source", [*SPECS, "whole"])
def test_fewer_bytes_of_shards_cross_and_values_are_within_the_bound(to, source, target):
    specs = {**SPECS, "whole": (P(), ((), ()))}
    array = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    (found,), num_bytes = sent_over_a_ring(
        [placed(array, specs[source][0])],
        [
            ValueOrder(
                shape=array.shape,
                dtype="float32",
                source_spec=specs[source][1],
                target_spec=specs[target][1],
                narrowing=to,
            )
        ],
    )
    assert num_bytes == array.nbytes * {"": 1, "bfloat16": 1 / 2, "int8": (1 + 4 / 64) / 4}[to]
    assert found.dtype == np.float32
    error = np.abs(np.asarray(found, np.float64) - array)
    assert (error <= (narrowing_bound(array, to) if to else 0)).all()
    assert bool(to) == error.any()


@pytest.mark.parametrize("to", NARROWINGS)
def test_only_what_is_told_to_goes_narrowed_among_others(to):
    def order(array, narrowing="", key=""):
        flat = ((),) * array.ndim
        return ValueOrder(
            shape=array.shape,
            dtype=array.dtype.name,
            source_spec=flat,
            target_spec=flat,
            narrowing=narrowing,
            key=key,
        )

    x = jnp.linspace(-3, 5, 300).reshape(3, 100)
    others = [x.astype(jnp.bfloat16), jnp.arange(7), x > 0, x]
    key = jax.random.key(5)
    one = (("data", 1),)
    arrays = [placed(a, P(), one) for a in (others[0], x, *others[1:], x, key)]
    data = jax.random.key_data(key)
    values = [
        order(others[0]),
        order(x, to),
        *map(order, others[1:]),
        order(x, to),
        order(data, key="threefry2x32"),
    ]
    found, _ = sent_over_a_ring(arrays, values, one)
    for index in (1, 5):
        assert (np.abs(np.asarray(found[index]) - x) <= narrowing_bound(np.asarray(x), to)).all()
        assert (found[index] != x).any()
    for mine, theirs in zip((found[0], *found[2:5]), others, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(jax.random.key_data(found[6]), data)


def into_and_out_of(width):
    """A product, and one by ones on the diagonal, which is exact; cut between."""

    def layers(params, x):
        up, same = params
        return jnp.tanh(x @ up) @ same

    rng = np.random.default_rng(0)
    params = [rng.standard_normal((16, width)).astype(np.float32), np.eye(width, dtype=np.float32)]
    x = rng.standard_normal((8, 16)).astype(np.float32)
    return trace(layers, params, x), params, x


@pytest.mark.parametrize("wire", NARROWINGS)
@pytest.mark.parametrize("placement", [("one", "two"), ("two", "other")], ids="-".join)
def test_a_plan_narrows_what_its_workers_send(workers, placement, wire):
    traced, params, x = into_and_out_of(96)
    with compile_on(workers, traced, placement, cuts=(1,)) as step:
        exact = np.asarray(step(step.place(params), x))
        (crossed,) = [f for f in gx.probe(step, params, x).findings if "transfer" in f.what]
        assert crossed.absolute == 0
    plan = gx.plan(traced, workers.cluster, cuts=(1,), meshes=placement, wire=wire)
    with gx.compile(plan, traced, workers=workers) as step:
        error = np.abs(np.asarray(step(step.place(params), x), np.float64) - exact)
        assert error.any()
        assert (error <= narrowing_bound(exact, wire) + 1e-6).all()
        report = gx.probe(step, params, x)
        assert report.ok
        (crossed,) = [f for f in report.findings if "transfer" in f.what]
        assert 0 < crossed.absolute <= narrowing_bound(exact, wire).max() + 1e-6
        (made,) = [f for f in report.findings if f.stage == 0 and "transfer" not in f.what]
        assert made.tolerance.relative < crossed.tolerance.relative  # the wire excuses no stage


@pytest.mark.parametrize("placement", [("narrow", "wide"), ("wide", "narrow")], ids="-".join)
@pytest.mark.parametrize(
    ("width", "wire", "is_narrowed"),
    [(128, "int8", True), (128, "bfloat16", True), (64, "int8", False)],
)
def test_integers_go_between_shards_that_cut_no_block(wide, placement, width, wire, is_narrowed):
    traced, params, x = into_and_out_of(width)
    wishes = {"cuts": (1,), "meshes": placement}
    found = []
    for plan in (
        gx.plan(traced, wide.cluster, **wishes),
        gx.plan(traced, wide.cluster, **wishes, wire=wire),
    ):
        with gx.compile(plan, traced, workers=wide) as step:
            found.append(np.asarray(step(step.place(params), x), np.float64))
    exact, narrowed = found
    error = np.abs(narrowed - exact)
    assert error.any() == is_narrowed
    assert (error <= narrowing_bound(exact, wire) + 1e-6).all()


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
            links._join(("one -> two", 0, 0))
            for future in futures:
                np.testing.assert_array_equal(future.result(30), expected)
            assert link.made == made + 1


def crossing_of(shape, source, target, axes=AXES):
    value = ValueOrder(shape=shape, dtype="float32", source_spec=source, target_spec=target)
    order = CrossingOrder(track="a -> b", place=0, source="a", target="b", values=(value,) * 2)
    end = End(axes=axes, owners=(0,) * math.prod(size for _, size in axes))
    return Crossing(order, end, end)


HUGE = (2**15, 2**14)  # 2 GiB of float32, and nothing of it is made


@pytest.mark.parametrize("target", [((), ()), (("model",), ()), ((), ("model",))], ids=str)
def test_a_link_takes_as_much_as_the_plan_sends(target):
    crossing = crossing_of(HUGE, ((), ("model",)), target)
    described = [
        Described(index=0, dtype=piece.dtype, whole=HUGE, start=block.start, shape=block.shape)
        for value in crossing.values
        for piece in value.pieces
        for block in piece.blocks[0]
    ]
    small = crossing_of((3,), ((),), ((),))
    sent, limits = layout_of(tuple(described)).payload_bytes, needed([small, crossing], 0)
    assert sent == 2**32
    assert sent <= limits.payload_bytes <= sent + 64 * len(described)
    assert needed([], 0) == needed([small], 0) == fabric.Limits()


def test_a_process_offers_to_take_that():
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1), ("data", "model"))
    value = ValueOrder(shape=HUGE, dtype="float32", source_spec=((), ()), target_spec=((), ()))
    crossing = CrossingOrder(track="a -> b", place=0, source="a", target="b", values=(value,))
    phase = PhaseOrder(
        name="f", num_stages=2, steps=(), stages=(), outputs=(), lying=(), crossings=(crossing,)
    )
    axes = (("data", 1), ("model", 1))
    orders = Orders(
        phases=(phase,),
        axes=(("a", axes), ("b", axes)),
        owners=(("a", (0,)), ("b", (0,))),
    )
    ports = Ports(orders, {"b": mesh}, (), 0, print, print, print)
    try:
        offer = fabric.Offer.from_json(ports.offer("a -> b", 0, "ring", "", 1))
    finally:
        ports.close()
    assert offer.payload_bytes >= 2**31


def test_more_blocks_than_a_message_can_have_are_refused_in_numbers():
    axes = (("data", 1), ("model", 256))
    crossing = crossing_of((256, 256), (("model",), ()), ((), ("model",)), axes)
    told = "2 values that cross at once are cut into 131072 blocks .* at most 65535"
    with pytest.raises(gx.BackendError, match=told):
        needed([crossing], 0)
