"""Stages on live meshes without a planner: cuts and meshes are given by hand.

The mesh called 'plugin' is on a second backend. A module with `pytestmark = over_backends` runs
over each backend that there is: JAX's own, the bare plugin, and the vendors of `tests/vendor`.
"""

import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gimlax import _jax
from gimlax.devices import capabilities
from gimlax.graph import Chain, Traced, chain, trace
from gimlax.partition import cut
from gimlax.program import lay_out
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.deployment import deploy_here
from gimlax.runtime.executable import Executable, Executables
from tests.vendor import VENDORS

over_backends = pytest.mark.parametrize(
    "second", ["cpu", "bare", *VENDORS], indirect=True, scope="session"
)


def pytest_collection_modifyitems(config, items):
    """What the second backend takes no part in is tested once."""
    again = [item for item in items if _is_repeated(getattr(item, "callspec", None))]
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item not in set(again)]


def _is_repeated(callspec):
    params = {} if callspec is None else callspec.params
    placement = params.get("placement", ("plugin",))
    return params.get("second", "cpu") != "cpu" and "plugin" not in placement


def live_mesh(backend, index):
    devices = np.array([jax.devices(backend)[index]])
    return Mesh(devices.reshape(1, 1), ("data", "model"))


@pytest.fixture(scope="session")
def second(request):
    """Registered name of the backend of the mesh 'plugin'; the bare plugin if nothing was said."""
    asked = getattr(request, "param", "bare")
    if asked in VENDORS:
        request.getfixturevalue("loaded_vendors")
    return request.getfixturevalue("plugin_name") if asked == "bare" else asked


@pytest.fixture(scope="session")
def meshes(second):
    """Two meshes on one client, one on another, or on the same where that is what is tested."""
    return {
        "cpu": live_mesh("cpu", 0),
        "cpu:1": live_mesh("cpu", 1),
        "plugin": live_mesh(second, -1),
    }


@pytest.fixture
def deploy(meshes):
    """Compiles a traced function, or a chain, for `placement`; closes it and counts threads."""
    yield from deploying(meshes)


@pytest.fixture(scope="module")
def deploy_once(meshes):
    """The same for executables that all tests of a module share."""
    yield from deploying(meshes)


@pytest.fixture
def two_meshes(cluster, plugin_name):
    """Names of a mesh of JAX's own CPU client and of one of the plugin."""
    by_backend = {spec.backend: spec.name for spec in reversed(cluster.meshes)}
    return by_backend["cpu"], by_backend[plugin_name]


@pytest.fixture
def break_mesh(monkeypatch):
    """Makes a primitive give something else in whatever is compiled for one mesh."""

    def breaking(mesh, primitive, wrong, where=lambda eqn: True):
        real = Arrangement.evaluator

        def evaluator(self, name, program, stage):
            if name != mesh:
                return real(self, name, program, stage)
            return lambda *inputs: evaluate(stage.jaxpr, inputs)

        def evaluate(closed, inputs):
            env = dict(zip(closed.jaxpr.invars, inputs, strict=True))
            read = lambda a: a.val if isinstance(a, _jax.Literal) else env[a]  # noqa: E731
            for eqn in closed.jaxpr.eqns:
                outputs = _jax.bind(eqn, [read(a) for a in eqn.invars])
                if eqn.primitive.name == primitive and where(eqn):
                    outputs = [wrong(output) for output in outputs]
                env.update(zip(eqn.outvars, outputs, strict=True))
            return [read(a) for a in closed.jaxpr.outvars]

        monkeypatch.setattr(Arrangement, "evaluator", evaluator)

    return breaking


def deploying(meshes):
    opened = []

    def build(workload, placement, cuts=None, donates=True, check_every=None, **settings):
        found = chain(workload) if isinstance(workload, Traced) else workload
        cuts = spread_cuts(found, len(placement)) if cuts is None else cuts
        bounds = (0, *cuts, found.num_segments)
        segments = [found.names[a:b] for a, b in zip(bounds, bounds[1:])]
        used = {name: mesh for name, mesh in meshes.items() if name in placement}
        deployment = deploy_here(
            [
                lay_out(cut(phase, cuts), placement, phase=phase.name, segments=segments)
                for phase in found.phases
            ],
            used,
            donates={name: donates and can_donate(mesh) for name, mesh in used.items()},
            chain=found,
            **settings,
        )
        opened.append(deployment)
        if isinstance(workload, Chain):
            return Executables(None, deployment, check_every=check_every)
        return Executable(None, deployment, 0, check_every=check_every)

    build.forget = opened.clear
    yield build
    for deployment in opened:
        deployment.close()
    assert gimlax_threads() == []


def can_donate(mesh):
    return capabilities(mesh.devices.flat[0]).donation


def spread_cuts(found, num_stages):
    """Legal cuts, spread evenly."""
    legal = [b for b in range(1, found.num_segments) if not found.splits(b)]
    if len(legal) < num_stages - 1:
        pytest.skip(f"only {len(legal)} boundaries")
    step = len(legal) / num_stages
    return tuple(legal[int(step * i)] for i in range(1, num_stages))


def trace_specimen(specimen):
    return trace(specimen.fn, *specimen.args, carried=specimen.carried)


def gimlax_threads():
    """Those of executables; a worker that other tests share has its own for as long as it lives."""
    of_workers = ("gimlax hear", "gimlax beat", "gimlax echo", "gimlax spawn")
    return [
        t.name
        for t in threading.enumerate()
        if t.name.startswith("gimlax") and not t.name.startswith(of_workers)
    ]


def on_cpu(fn, *args):
    """The function uncut, on the first device of JAX's own client."""
    device = jax.devices("cpu")[0]
    return jax.jit(fn)(*jax.device_put(args, device))
