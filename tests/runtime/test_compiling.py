"""From a plan to an executable: meshes are bound, stages compiled once, all under the user's
names."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gimlax.errors import BackendError, PlanError, SpecError
from gimlax.graph import Workload, chain, trace
from gimlax.planning import Objective, Plan, plan
from gimlax.runtime import Executable, Executables, compile, gather
from tests import zoo
from tests.runtime.conftest import live_mesh, on_cpu, trace_specimen
from tests.towers import two_towers


@pytest.fixture
def two_meshes(cluster, plugin_name):
    """Names of a mesh of JAX's own CPU client and of one of the plugin."""
    by_backend = {spec.backend: spec.name for spec in reversed(cluster.meshes)}
    return by_backend["cpu"], by_backend[plugin_name]


def test_a_plan_runs_on_the_meshes_that_it_names(cluster, two_meshes):
    specimen = zoo.plain()
    traced = trace_specimen(specimen)
    planned = plan(traced, cluster, cuts=2, meshes=two_meshes)
    heard = []
    with compile(planned, traced, progress=heard.append) as step:
        assert isinstance(step, Executable)
        assert step.plan is planned
        assert step.program.placement == two_meshes
        assert [(p.done, p.total) for p in heard] == [(1, 2), (2, 2)]
        assert sum(f"mesh {two_meshes[1]!r}" in p.what for p in heard) == 1
        found = gather(step(step.place(specimen.args[0]), *specimen.args[1:]))
    expected = on_cpu(specimen.fn, *specimen.args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), found, expected)


def test_a_workload_gives_an_executable_per_phase(cluster):
    fn = lambda w, x: x @ w  # noqa: E731
    w = zoo.normal(4, 4)
    workload = Workload({n: trace(fn, w, zoo.normal(i, 4)) for n, i in (("a", 1), ("b", 2))})
    planned = plan(workload, cluster, cuts=())
    with compile(planned, chain(workload)) as steps:
        assert isinstance(steps, Executables)
        placed = steps.place(w)
        assert steps["b"](placed, zoo.normal(2, 4)).shape == (2, 4)


def test_a_plan_for_another_model_is_refused(cluster):
    planned = plan(trace_specimen(zoo.plain()), cluster)
    with pytest.raises(PlanError):
        compile(planned, trace_specimen(zoo.linen()))


def test_meshes_can_be_given(cluster, two_meshes):
    traced = trace(lambda w, x: x * w, np.float32(2), np.float32(3))
    planned = plan(traced, cluster, cuts=(), meshes=two_meshes[:1])
    other = live_mesh("cpu", 1)
    with compile(planned, traced, meshes={two_meshes[0]: other}) as step:
        assert step(step.place(np.float32(2)), 3.0).devices() == set(other.devices.flat)


def test_a_mesh_of_two_clients_is_refused(cluster, two_meshes, plugin_name):
    devices = np.array([jax.devices("cpu")[0], jax.devices(plugin_name)[0]])
    mixed = jax.sharding.Mesh(devices.reshape(2, 1), ("data", "model"))
    traced = trace(lambda w, x: x * w, np.float32(2), np.float32(3))
    planned = plan(traced, cluster, cuts=(), meshes=two_meshes[:1])
    with pytest.raises(SpecError, match=f"'{two_meshes[0]}'"):
        compile(planned, traced, meshes={two_meshes[0]: mixed})


def layered(num_layers):
    """Layers that are alike, so that stages of one layer are."""

    def fn(params, x):
        for weights in params:
            x = jax.numpy.tanh(x @ weights)
        return x

    return fn, [zoo.normal(8, 8, seed=i) for i in range(num_layers)]


def test_equal_stages_compile_once_per_mesh(deploy):
    fn, params = layered(6)
    traced = trace(fn, params, zoo.normal(2, 8))
    number = chain(traced).num_segments
    assert number >= 4
    cuts = tuple(range(1, number))
    names = ("cpu", "plugin") * number
    assert deploy(traced, names[:number], cuts).num_compiled == 2
    step = deploy(traced, ("cpu",) * number, cuts)
    assert step.num_compiled == 1
    np.testing.assert_allclose(
        step(step.place(params), zoo.normal(2, 8)), on_cpu(fn, params, zoo.normal(2, 8)), atol=1e-5
    )


def test_compilations_land_in_the_cache_of_the_user(deploy, tmp_path):
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    old = [getattr(jax.config, name) for name in names]
    jax.config.update(names[0], str(tmp_path))
    jax.config.update(names[1], 0.0)
    compilation_cache.reset_cache()
    try:
        fn, params = layered(2)
        deploy(trace(fn, params, zoo.normal(2, 8)), ("cpu",))
        assert any(tmp_path.iterdir())
    finally:
        for name, value in zip(names, old):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_stage_that_its_backend_refuses_is_named(deploy):
    # The plugin has no custom calls of jaxlib, so it cannot compile a factorisation.
    fn = lambda w, x: jax.numpy.linalg.cholesky(x @ w)  # noqa: E731
    traced = trace(fn, np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))
    with pytest.raises(BackendError, match=r"stage 0 \(segment.* on mesh 'plugin'") as caught:
        step = deploy(traced, ("plugin",))
        step(step.place(np.eye(4, dtype=np.float32)), np.eye(4, dtype=np.float32))
    assert caught.value.__cause__ is not None


def test_analyses_add_up_and_tolerate_silence(deploy):
    specimen = zoo.plain()
    step = deploy(trace_specimen(specimen), ("cpu", "plugin"))
    parts = [step.memory_analysis(i)["argument_size_in_bytes"] for i in (0, 1)]
    assert step.memory_analysis()["argument_size_in_bytes"] == sum(parts)
    assert step.cost_analysis(0)["flops"] > 0
    assert step.cost_analysis(1).get("flops", 0) >= 0  # the plugin need not say
    with pytest.raises(SpecError, match="no stage 2; its stages are 0 to 1"):
        step.cost_analysis(2)


def test_max_in_flight_must_let_something_in(deploy):
    traced = trace(lambda w, x: x * w, np.float32(2), np.float32(3))
    with pytest.raises(SpecError, match="max_in_flight is 0"):
        deploy(traced, ("cpu",), max_in_flight=0)


@pytest.mark.parametrize("goal", ["throughput", "latency"])
def test_segments_in_another_order_than_the_program_s_give_its_results(cluster, two_meshes, goal):
    fn, params, x, _ = two_towers(((2000, 2000), (500, 500, 500)), rows=1024)
    apart = replace(
        cluster,
        meshes=tuple(replace(m, shares=(), host=f"host of {m.name}") for m in cluster.meshes),
    )
    traced = trace(fn, params, x)
    chosen = plan(traced, apart, objective=Objective(goal=goal), cuts=2, meshes=two_meshes)
    assert len(chosen.cuts) == 1
    if goal == "throughput":
        assert chosen.order, "the program's order cannot be cut as evenly"
    again = Plan.from_json(chosen.to_json())
    expected = on_cpu(fn, params, x)
    with compile(again, traced) as step:
        assert sum(step.program.segments, ()) == chosen.segments
        found = gather(step(step.place(params), x))
    np.testing.assert_allclose(found, expected, atol=5e-6 * np.abs(expected).max())
