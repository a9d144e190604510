"""A vendor that is made slow: what is told of it names what was made slow."""

import jax
import numpy as np
import pytest

import gimlax as gx
from gimlax.program import Account
from tests import vendor, zoo

SLOW_S = 0.2  # far above what these stages take, however busy the machine is


@pytest.fixture
def account(vendors):
    """Runs three passes of a model in two stages, the second on a vendor, and accounts for them."""
    hardware = gx.Cluster.load(vendor.CLUSTER)
    specimen = zoo.linen()
    traced = gx.trace(specimen.fn, *specimen.args)

    def of(**delays) -> Account:
        plan = gx.plan(traced, hardware, cuts=2, meshes=("cpu", "acme"))
        with gx.compile(plan, traced) as step:
            params = step.place(specimen.args[0])
            step.submit(params, specimen.args[1]).result(60)
            vendors["acme"].delay(**delays)
            with step.record() as recording:
                futures = [step.submit(params, specimen.args[1]) for _ in range(3)]
            jax.tree.map(np.asarray, [future.result(60) for future in futures])
        return recording.timeline.compare(plan)

    return of


def test_slow_executions_are_told_of_their_stage(account):
    found = account(execute_s=SLOW_S)
    assert found.sentence.startswith("Stage 1 on 'acme' took ")
    assert found.sentence.endswith("so calibrate.")
    [entry] = [entry for entry in found.entries if entry.track == "acme"]
    assert entry.passes == 3
    assert entry.measured_s >= SLOW_S


def test_slow_copies_are_told_of_their_link(account):
    found = account(to_device_s=SLOW_S)
    assert found.sentence.startswith("Link 'cpu -> acme' took ")
    [use] = [use for use in found.uses if use.track == "acme"]
    assert use.copying_s >= 2 * SLOW_S
