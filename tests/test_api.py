"""`gx.jit` behaves like `jax.jit`, over more than one backend."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from tests import zoo


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def perceptron():
    model = Perceptron()
    return model, model.init(jax.random.key(0), np.ones((2, 8), np.float32))


@pytest.fixture
def two_meshes(cluster, plugin_name):
    """Names of one mesh on JAX's own client and one on the plugin."""
    own = next(m.name for m in cluster.meshes if m.backend != plugin_name)
    return own, next(m.name for m in cluster.meshes if m.backend == plugin_name)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=0, atol=5e-6 * np.abs(b).max()
        ),
        found,
        expected,
    )


def test_one_changed_line(cluster, two_meshes, perceptron):
    model, variables = perceptron
    x = zoo.normal(5, 8)
    fast = gx.jit(model.apply, cluster=cluster, objective=gx.Objective(), cuts=2, meshes=two_meshes)
    with pytest.warns(UserWarning, match=r"bytes are placed anew at each call"):
        out = fast(variables, x)
    assert isinstance(out, jax.Array)
    assert_close(out, jax.jit(model.apply)(variables, x))


def test_lower_compile_analyses_and_placed_parameters(cluster, two_meshes, perceptron):
    model, variables = perceptron
    x = zoo.normal(5, 8)
    lowered = gx.jit(model.apply, cluster=cluster, cuts=2, meshes=two_meshes).lower(variables, x)
    assert lowered.plan.mesh_names == two_meshes
    assert lowered.cost_analysis()["flops"] > 2 * 5 * (8 * 16 + 2 * 16 * 16 + 16 * 4)
    with warnings.catch_warnings(), lowered.compile() as compiled:
        warnings.simplefilter("error")
        placed = compiled.place(variables)
        assert_close(compiled(placed, x), jax.jit(model.apply)(variables, x))
        assert compiled.memory_analysis()
        assert_close(gx.gather(placed), variables)


def test_shapes_are_compiled_once_each(cluster, perceptron):
    model, variables = perceptron
    calls = []

    def counted(v, x):
        calls.append(x.shape)
        return model.apply(v, x)

    fast = gx.jit(counted, cluster=cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for rows in (3, 4, 3, 4):
            assert fast(variables, zoo.normal(rows, 8)).shape == (rows, 4)
    assert calls == [(3, 8), (4, 8)]


def test_trees_in_and_out_and_static_arguments(cluster):
    def model(params, batch, power, *, negate=False):
        y = batch["x"] @ params["w"]
        y = y**power
        return {"y": -y if negate else y, "shape": (y.sum(0), batch["x"])}

    params, batch = {"w": np.eye(3, dtype=np.float32)}, {"x": zoo.normal(2, 3)}
    fast = gx.jit(model, cluster=cluster, static_argnums=(2,), static_argnames=("negate",))
    expected = jax.jit(model, static_argnums=(2,), static_argnames=("negate",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for power, negate in ((2, False), (3, True)):
            args = (params, batch, power)
            assert_close(fast(*args, negate=negate), expected(*args, negate=negate))


def test_carried_state_goes_round(cluster, two_meshes):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    fast = gx.jit(specimen.fn, cluster=cluster, carried={1: 1}, cuts=(3,), meshes=two_meshes)
    with fast.lower(*specimen.args).compile() as compiled:
        placed, state = compiled.place(params), compiled.init(cache)
        expected = cache
        for step in range(3):
            logits, state = compiled(placed, state, tokens, np.int32(position + step))
            reference, expected = jax.jit(specimen.fn)(params, expected, tokens, position + step)
            assert_close(logits, reference)
        assert_close(gx.gather(state), expected)


def test_handles_of_an_earlier_call_find_their_executable(cluster):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    fast = gx.jit(specimen.fn, cluster=cluster, carried={1: 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, state = fast(params, cache, tokens, position)
        logits, state = fast(params, state, tokens, position + 1)
        assert logits.shape == (6, 50)
        with pytest.raises(
            gx.SpecError, match="was not made by 'plain_model' for arguments of these"
        ):
            fast(params, state, tokens[:2], position)


def test_weak_types_are_told_apart(cluster):
    fast = gx.jit(lambda a, b: a * b, cluster=cluster, resident=())
    narrow = jnp.ones(3, jnp.bfloat16)
    assert fast(jnp.asarray(2.0), narrow).dtype == jnp.bfloat16
    assert fast(jnp.float32(2.0), narrow).dtype == jnp.float32


def power(params, exponent, batch, *, negate=False):
    return (params * batch) ** exponent * (-1 if negate else 1)


@pytest.mark.parametrize(
    "static",
    [
        {"static_argnums": 1},
        {"static_argnums": (-2,)},
        {"static_argnames": "exponent"},
        {"static_argnames": ("exponent", "negate")},
    ],
)
def test_static_arguments_are_named_as_in_jax(cluster, static):
    fast = gx.jit(power, cluster=cluster, resident=(), **static)
    x = np.arange(3, dtype=np.int32)
    for exponent in (2, 2.0):
        found, expected = (j(x, exponent, x) for j in (fast, jax.jit(power, **static)))
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    lowered = gx.jit(power, cluster=cluster, **static).lower(x, 2, x)
    assert [a.path for a in lowered.traced.arguments] == ["params", "batch"]


def test_a_function_without_positional_arguments(cluster):
    assert gx.jit(lambda: jnp.ones(3), cluster=cluster)().shape == (3,)
    assert gx.jit(lambda *, x: x + 1, cluster=cluster)(x=np.ones(2)).shape == (2,)


def test_complex_numbers_and_a_scan_over_time(cluster):
    def model(w, x):
        y = jnp.fft.fft(x) @ w
        return jax.lax.scan(lambda c, r: (c + r, c), y[0], y)

    args = (np.eye(4, dtype=np.complex64), zoo.normal(5, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert_close(gx.jit(model, cluster=cluster)(*args), jax.jit(model)(*args))


def test_what_belongs_to_another_transformation_or_to_several_devices_is_refused(cluster):
    def closed(x):
        return gx.jit(lambda y: x + y, cluster=cluster, resident=())(np.ones(2))

    with pytest.raises(gx.TraceError, match="closes over a tracer"):
        jax.jit(closed)(np.ones(2))
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:2]), ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with pytest.raises(gx.TraceError, match="'sharding_constraint' over 2 devices"):
        gx.jit(lambda w, x: jax.lax.with_sharding_constraint(x, spec) * w, cluster=cluster).lower(
            np.ones(2), np.ones(2)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "latency"}, "objective is 'latency'; give an Objective"),
        ({"cluster": "c.toml"}, r"cluster is 'c\.toml'; give a Cluster"),
        ({"fn": 5}, "fn is 5; give a function"),
        ({"resident": 0.5}, "resident is 0.5; give a whole number or a sequence of whole numbers"),
        ({"carried": (1,)}, r"carried is \(1,\); give a dict from whole numbers to whole numbers"),
        ({"cuts": "2", "meshes": 5}, "cuts is '2'; .*; meshes is 5; give a sequence of strings"),
        ({"shardings": {"w": None}}, r"shardings\['w'\] is None; give a PartitionSpec"),
        ({"static_argnames": 5}, "static_argnames is 5; give a string or a sequence of strings"),
    ],
)
def test_wrong_kinds_of_arguments_are_named(given, message):
    with pytest.raises(gx.SpecError, match=f"gimlax.jit: {message}"):
        gx.jit(**({"fn": f} | given))


def test_wrong_things_in_the_road_are_named(cluster):
    traced = gx.trace(f, 1.0, 2.0)
    with pytest.raises(gx.SpecError, match=r"gimlax\.plan: cluster is None; give a Cluster"):
        gx.plan(traced, None)
    with pytest.raises(
        gx.SpecError, match=r"workload is <function .*; give a Traced, a Workload or"
    ):
        gx.plan(f, cluster)
    with pytest.raises(gx.SpecError, match="a Traced as plan"):
        gx.compile(traced, gx.plan(traced, cluster))
    with pytest.raises(gx.SpecError, match=r"phases\['a'\] is <function .*; give a Traced"):
        gx.Workload({"a": f})


def test_a_tracer_is_refused(cluster, perceptron):
    model, variables = perceptron
    fast = gx.jit(model.apply, cluster=cluster)
    with pytest.raises(gx.TraceError, match=r"tracer.*cannot be transformed"):
        jax.grad(lambda x: fast(variables, x).sum())(zoo.normal(2, 8))


def test_a_static_role_and_an_unhashable_static_are_refused(cluster):
    with pytest.raises(gx.TraceError, match="argument 0 of 'f' is static"):
        gx.jit(f, cluster=cluster, resident=0, static_argnums=(0,))(2, 3.0)
    with pytest.raises(gx.TraceError, match="static argument 1 of 'f' is a list"):
        gx.jit(f, cluster=cluster, static_argnums=(1,))(2, [3.0])


def f(a, b):
    return jnp.asarray(a) * b


def test_a_call_after_close_is_refused():
    step = gx.jit(lambda w, x: x @ w, resident=())
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(step(x, x), x @ x)
    step.close()
    step.close()
    with pytest.raises(gx.SpecError, match=r"gimlax\.jit made of '<lambda>' is closed"):
        step(x, x)
