"""Each of our own models, cut at every single boundary, computes what it computes uncut."""

import jax
import numpy as np
import pytest

from gimlax import load
from gimlax.graph import chain, trace
from gimlax.runtime import gather
from tests import specimens
from tests.models import diffusion_folder
from tests.runtime.test_execution import assert_within

over_clients = pytest.mark.parametrize(
    ("placement", "relative"),
    [(("cpu", "cpu:1"), 2e-6), (("plugin", "cpu"), 5e-6)],
    ids=["one client", "two clients"],
)


@pytest.mark.parametrize("kind", specimens.LANGUAGE)
@over_clients
def test_language_models_at_every_boundary(kind, placement, relative, deploy):
    model = specimens.LANGUAGE[kind]()
    uncut = jax.jit(model.apply)
    expected = model.run(uncut, uncut, model.params, model.state)
    assert np.abs(expected[0]).max() > 0.5
    found = chain(model.workload())
    assert found.num_segments > 3
    for boundary in range(1, found.num_segments):
        steps = deploy(found, placement, cuts=(boundary,))
        logits, state = model.run(
            steps["prefill"], steps["decode"], steps.place(model.params), steps.init(model.state)
        )
        assert_within((logits, gather(state)), expected, relative)


@pytest.mark.parametrize("kind", specimens.ENCODERS)
@over_clients
def test_encoders_at_every_boundary(kind, placement, relative, deploy):
    model = specimens.ENCODERS[kind]()
    expected = jax.jit(model.apply)(model.params, *model.inputs)
    found = chain(trace(model.apply, model.params, *model.inputs))
    assert found.num_segments > 3
    for boundary in range(1, found.num_segments):
        (step,) = deploy(found, placement, cuts=(boundary,)).values()
        assert_within(gather(step(step.place(model.params), *model.inputs)), expected, relative)


def test_a_diffusion_model_at_all_boundaries_and_between_phases(deploy, tmp_path):
    model = diffusion_folder.write(tmp_path)
    uncut = {name: jax.jit(fn) for name, fn in model.functions.items()}
    expected = model.run(uncut, model.params)
    found = chain(model.workload())
    starts = [min(s.index for s in p.segments if s.start < s.stop) for p in found.phases]
    assert starts[0] == 0 < starts[1] < starts[2] < found.num_segments - 1
    number = found.num_segments
    for cuts in (tuple(range(1, number)), tuple(starts[1:])):
        places = (("plugin", "cpu") * number)[: len(cuts) + 1]
        steps = deploy(found, places, cuts=cuts)
        whole = len(cuts) > 2
        params = steps.place(model.params) if whole else load(tmp_path, plan=steps)
        given = gather(model.run(steps, params))
        for one, other in zip(given, expected, strict=True):
            assert_within(one, other, 5e-6)
