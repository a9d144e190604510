"""Stages on workers are checked beside the reference by the same code as those of one process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from gimlax.runtime import exporting
from gimlax.runtime.deployment import Deployment
from tests import zoo
from tests.runtime.conftest import trace_specimen
from tests.runtime.workers.conftest import compile_on


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_stages_on_workers_are_within_their_tolerances(kind, workers):
    specimen = zoo.ZOO[kind]()
    with compile_on(workers, trace_specimen(specimen), ("two", "other")) as step:
        report = gx.probe(step, *specimen.args)
        assert not report.breaches
        assert {edge.relation for edge in step.plan.edges} == {"between clients"}


def test_a_stage_that_is_wrong_on_its_worker_is_found(workers, monkeypatch):
    """The stage that travels there is not the one that was traced."""

    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params = [np.eye(16, dtype=np.float32)] * 4
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    honest = exporting.form_of

    def crooked(program, stage, *rest):
        form = honest(program, stage, *rest)
        if program.placement[stage.index] != "two":
            return form

        def wrong(*args):
            updated, produced, token = form.function(*args)
            return updated, tuple(value * 1.01 for value in produced), token

        return dataclasses.replace(form, function=wrong)

    with compile_on(workers, trace(layers, params, x), ("one", "two"), cuts=(2,)) as step:
        assert gx.probe(step, params, x).ok
        monkeypatch.setattr(exporting, "form_of", crooked)
        report = gx.probe(step, params, x)
        assert {breach.stage for breach in report.breaches} == {1}


@pytest.mark.parametrize("setting", ["float64", "a default device"])
def test_values_cross_under_the_configuration_of_the_trace(setting, workers):
    """A link between workers is probed as it was planned: in 64 bits, if that is how it was traced,
    and whatever device of this process was the default one."""

    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    wide = setting == "float64"
    with jax.enable_x64(True) if wide else jax.default_device(jax.devices("cpu")[0]):
        params = [np.eye(4) * 0.3] * 2 if wide else [np.eye(4, dtype=np.float32) * 0.3] * 2
        x = np.linspace(0, 1, 8, dtype=params[0].dtype).reshape(2, 4)
        with compile_on(workers, trace(layers, params, x), ("one", "two"), cuts=(1,)) as step:
            report = gx.probe(step, params, x)
            assert report.ok
            assert any(finding.what.startswith("transfer") for finding in report.findings)


def test_what_fails_its_check_leaves_nothing_on_workers(workers, monkeypatch):
    def double(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params, x = [np.eye(4, dtype=np.float32)] * 2, np.ones((2, 4), np.float32)
    closed = []
    real = Deployment.close
    monkeypatch.setattr(Deployment, "close", lambda self: (closed.append(self), real(self)))
    with pytest.raises(gx.GimlaxError, match="called with 1 positional"):
        compile_on(
            workers, trace(double, params, x), ("one", "two"), cuts=(1,), check=True, probe=(x,)
        )
    assert len(closed) == 1
