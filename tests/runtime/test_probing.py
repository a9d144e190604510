"""Every stage beside the reference: a right one passes, a wrong one is named with its segment.

What is wrong is really compiled wrong: on one mesh an operation is another one, for the stage and
for every part of it alike, as on a backend with a fault.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import MeshSpec
from gimlax.graph import Workload, chain, trace
from gimlax.runtime import gather, probe
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.exporting import abstract_mesh, export_stages, load_stage
from gimlax.runtime.inventory import take_inventory
from gimlax.runtime.probing.inputs import from_leaves
from gimlax.runtime.probing.seam import StageResults, Target
from tests import zoo
from tests.runtime.conftest import trace_specimen


def layered(num_layers=6, width=8, dtype=np.float32):
    """Layers that differ in width, so that each is told by its shape."""

    def fn(params, x):
        for weights in params:
            x = jnp.tanh(x @ weights)
        return x

    widths = [width + i for i in range(num_layers + 1)]
    params = [zoo.normal(a, b, seed=a).astype(dtype) for a, b in zip(widths, widths[1:])]
    return fn, params, zoo.normal(3, width).astype(dtype)


def of_width(width):
    return lambda eqn: eqn.outvars[0].aval.shape[-1] == width


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize(
    "placement", [("cpu",), ("cpu", "cpu:1"), ("plugin", "cpu", "plugin")], ids="-".join
)
def test_a_right_stage_is_within_its_bounds(kind, placement, deploy):
    specimen = zoo.ZOO[kind]()
    step = deploy(trace_specimen(specimen), placement)
    report = probe(step, *specimen.args)
    assert report.ok, report
    traced = step.program.partition.traced
    outputs = [f.what for f in report.findings if not f.is_transfer]
    # Every output is looked at, and every value and row of state once where it is made.
    assert sum(what.startswith("output") for what in outputs) == sum(
        of is not None for of in {*step.program.partition.outputs}
    )
    paths = [traced.arguments[o.carried].path for o in traced.outputs if o.carried is not None]
    assert all(any(path in what for what in outputs) for path in paths)
    transfers = [f for f in report.findings if f.is_transfer]
    assert len(transfers) == sum(len(t.values) for _, todo in step.program.links for t in todo)
    assert all(f.absolute == 0 for f in transfers)
    assert str(report).count("\n") == len(report.findings) + 2


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_inputs_can_be_made_from_shapes(kind, deploy):
    step = deploy(trace_specimen(zoo.ZOO[kind]()), ("plugin", "cpu"))
    report = probe(step)
    assert report.ok, report
    assert "made from shapes" in str(report)
    assert all(np.isfinite(f.bound) and f.bound > 0 for f in report.findings if f.dtype != "int32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_are_judged_by_what_they_round(dtype, deploy):
    fn, params, x = layered(dtype=jnp.dtype(dtype))
    step = deploy(trace(fn, params, x), ("plugin", "cpu"))
    report = probe(step, params, x)
    assert report.ok, report
    assert any(f.absolute > 0 for f in report.findings)
    assert {f.tolerance.computed_in for f in report.findings} == {dtype}


def test_a_handle_stays_good(deploy):
    specimen = zoo.plain()
    step = deploy(trace_specimen(specimen), ("cpu", "plugin"))
    placed, state = step.place(specimen.args[0]), step.init(specimen.args[1])
    before = gather(state)
    assert probe(step, placed, state, *specimen.args[2:]).ok
    jax.tree.map(np.testing.assert_array_equal, gather(state), before)
    _, state = step(placed, state, *specimen.args[2:])
    assert probe(step, placed, state, *specimen.args[2:]).ok


@pytest.mark.parametrize("width", [11, 12, 14])
def test_the_segment_that_diverges_is_named(width, deploy, break_mesh):
    fn, params, x = layered()
    traced = trace(fn, params, x)
    found = chain(traced)
    assert found.num_segments == 6
    break_mesh("plugin", "tanh", lambda y: y * 1.001, of_width(width))
    step = deploy(traced, ("cpu", "plugin"), cuts=(2,))
    report = probe(step, params, x)
    assert not report.ok
    assert {f.stage for f in report.breaches} == {1}
    assert report.divergence.stage == 1
    assert report.divergence.segments == (found.names[width - 9],)
    breach = report.breaches[0]
    assert breach.bound == pytest.approx(5e-6 * breach.absolute / breach.relative)
    assert breach.absolute > breach.bound
    said = report.explain()
    assert "stage 1" in said and "'plugin'" in said and repr(found.names[width - 9]) in said
    assert f"{breach.absolute:.2g}" in said and f"{breach.bound:.2g}" in said


def test_a_stage_whose_parts_are_right_is_said_to_be(deploy):
    fn, params, x = layered(4)
    step = deploy(trace(fn, params, x), ("cpu", "plugin"), cuts=(2,))
    stages = step._phase.stages
    real = stages[1].call

    def patched(*given):
        state, produced, token = real(*given)
        return state, tuple(p * 1.1 for p in produced), token

    broken = (stages[0], replace(stages[1], call=patched))
    standing = step._deployment.standing()
    wrong = replace(standing, phases=(replace(standing.phases[0], stages=broken),))
    step._deployment.standing = lambda: wrong
    report = probe(step, params, x)
    assert {f.stage for f in report.breaches} == {1}
    assert report.divergence.finding is None
    assert "only the whole does" in report.explain()


def test_state_that_diverges_is_found(deploy, break_mesh):
    specimen = zoo.plain()
    break_mesh("plugin", "dynamic_update_slice", lambda y: y + 0.01)
    step = deploy(trace_specimen(specimen), ("cpu", "plugin"))
    report = probe(step, *specimen.args)
    assert any(f.what.startswith("state cache[2]") for f in report.breaches)
    assert "attention" in report.divergence.segments[0] or report.divergence.segments


def test_compile_checks_and_names_what_is_wrong(cluster, two_meshes, break_mesh):
    fn, params, x = layered()
    traced = trace(fn, params, x)
    planned = gx.plan(traced, cluster, cuts=(2,), meshes=two_meshes)
    for given in (None, (params, x)):
        with gx.compile(planned, traced, check=True, probe=given) as step:
            assert step(step.place(params), x).shape == (3, 14)
    break_mesh(two_meshes[1], "tanh", lambda y: y * 1.001, of_width(12))
    name = chain(traced).names[3]
    with pytest.raises(gx.BackendError, match=rf"stage 1 .*'{two_meshes[1]}'.*{name}") as caught:
        gx.compile(planned, traced, check=True)
    assert "is allowed" in str(caught.value) and "jax.default_matmul_precision" in str(caught.value)
    gx.compile(planned, traced).close()  # what nobody asked to be checked is not


def test_products_in_bfloat16_break_a_float32_contract(cluster, two_meshes, break_mesh):
    fn, params, x = layered(width=32)
    traced = trace(fn, params, x)
    planned = gx.plan(traced, cluster, cuts=(2,), meshes=two_meshes)
    # What a backend does that multiplies float32 in one bfloat16 pass.
    break_mesh(two_meshes[1], "dot_general", lambda y: y.astype(jnp.bfloat16).astype(y.dtype))
    with pytest.raises(gx.BackendError, match=chain(traced).names[2]):
        gx.compile(planned, traced, check=True)


def test_phases_are_checked_each(cluster, two_meshes, break_mesh):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    workload = Workload(
        {
            "prefill": trace(specimen.fn, *specimen.args, carried=specimen.carried),
            "decode": trace(specimen.fn, params, cache, tokens[:1], position, carried={1: 1}),
        }
    )
    planned = gx.plan(workload, cluster, cuts=2, meshes=two_meshes)
    one = {"decode": (params, cache, tokens[:1], position)}
    gx.compile(planned, workload, check=True, probe=one).close()
    with pytest.raises(gx.SpecError, match=r"'encode'.*'prefill'"):
        gx.compile(planned, workload, check=True, probe={"encode": ()})
    break_mesh(two_meshes[0], "mul", lambda y: 2 * y, lambda e: e.outvars[0].aval.shape == (1, 16))
    with pytest.raises(gx.BackendError, match=r"stage 0 .*'decode'"):
        gx.compile(planned, workload, check=True, probe=one)


def test_what_makes_no_sense_is_refused(cluster, two_meshes):
    traced = trace(lambda w, x: x * w, np.float32(2), np.float32(3))
    planned = gx.plan(traced, cluster, cuts=(), meshes=two_meshes[:1])
    with pytest.raises(gx.SpecError, match="probe= without check=True"):
        gx.compile(planned, traced, probe=(np.float32(1), np.float32(2)))
    with pytest.raises(gx.SpecError, match="check_every is 0"):
        gx.compile(planned, traced, check_every=0)
    for wrong in ({"check_every": 1.5}, {"check_every": True}, {"check": "no"}):
        ((name, value),) = wrong.items()
        with pytest.raises(gx.SpecError, match=rf"gimlax\.compile: {name} is {value!r}; give"):
            gx.compile(planned, traced, **wrong)
    with pytest.raises(gx.SpecError, match=r"gimlax\.probe was given"):
        probe(lambda x: x)
    with pytest.raises(gx.TraceError):
        gx.compile(planned, traced, check=True, probe=(np.float32(1), np.ones(2, np.float32)))


def test_what_the_reference_does_not_decide_is_not_judged(deploy, break_mesh):
    # Two logits that are equal but for the last bits: a backend may take either for the largest.
    def fn(w, x):
        logits = jnp.tanh(x @ w)
        return jnp.argmax(logits, axis=-1), logits

    w = zoo.normal(4, 6)
    w[:, 5] = w[:, 2] = 9 * abs(w[:, 2])
    x = np.abs(zoo.normal(3, 4)) / 20
    x[0] = -x[0]  # whose largest logit is another one
    step = deploy(trace(fn, w, x), ("plugin",))
    assert probe(step, w, x).ok
    # The plugin rounds otherwise: it sees the second of the two as larger.
    break_mesh("plugin", "tanh", lambda y: y * np.float32([1, 1, 1, 1, 1, 1 + 1e-6]))
    step = deploy(trace(fn, w, x), ("plugin",))
    report = probe(step, w, x)
    indices = next(f for f in report.findings if f.dtype == "int32")
    assert indices.verdict == "undecided" and indices.num_undecided == 2
    assert report.ok and "2 undecided" in str(report)
    # An index that the reference does decide is judged.
    break_mesh("plugin", "tanh", lambda y: y * np.float32([1, 1, 1, 1, 1, 0]) * -1)
    report = probe(deploy(trace(fn, w, x), ("plugin",)), w, x)
    indices = next(f for f in report.findings if f.dtype == "int32")
    assert indices.verdict == "BREACH"


class Travelled:
    """Stages run from what was exported of them: another way to run, known to the probe only by
    the protocol."""

    def __init__(self, program, meshes):
        names = set(program.placement)
        abstract = {n: abstract_mesh(MeshSpec(name=n, device_kind="cpu")) for n in names}
        inventory = take_inventory([program], Arrangement(meshes=abstract))
        (self.stages,) = export_stages(
            [program], inventory, dict.fromkeys(names, "cpu"), dict.fromkeys(names, False)
        )
        self.program = program
        self.meshes = meshes

    def is_reference(self, mesh):
        return mesh.startswith("cpu")

    def run(self, stage, inputs):
        of = self.program.partition.stages[stage]
        call = load_stage(self.stages[stage], self.meshes[self.program.placement[stage]]).compile()
        given = (
            (inputs.resident,) if of.resident else (),
            (inputs.carried,) if of.carried else (),
            inputs.constants,
            (*inputs.streamed, *inputs.received),
        )
        state, produced, _ = call(*given)
        return StageResults(
            carried=tuple(np.asarray(a) for tree in state for a in tree),
            produced=tuple(map(np.asarray, produced)),
        )

    def send(self, transfer, values):
        return [v.astype(jnp.bfloat16).astype(v.dtype) for v in values]  # narrowed on the wire

    def recut(self, program):
        return Travelled(program, self.meshes)


def test_a_probe_knows_runners_only_by_their_protocol(deploy, meshes):
    specimen = zoo.plain()
    traced = trace_specimen(specimen)
    program = deploy(traced, ("cpu", "plugin")).program
    given = from_leaves(traced, jax.tree.leaves((specimen.args, {})))

    class Elsewhere:
        def target(self, args, kwargs):
            return Target(runner=Travelled(program, meshes), given=given, inputs="its own")

    report = probe(Elsewhere())
    # The stages are right, and what the wire rounds away is found at the link.
    assert {f.mesh for f in report.breaches} == {"cpu -> plugin"}
    assert report.explain().startswith("link 'cpu -> plugin' breaks the numerical contract")
