"""A calibration of a mesh of several devices, in a process that has so many."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gimlax.devices import calibrate
from gimlax.devices.measuring import running
from gimlax.devices.measuring.collectives import KINDS, SIZES, group_sizes
from gimlax.devices.measuring.operations import crowding, guess_s
from gimlax.devices.measuring.programs import grouped, matmul

CHILD = Path(__file__).parent / "calibration_child.py"
OPERATIONS = [["matmul", 1, 2, 32, 32], ["elementwise", 1024]]


@pytest.fixture(scope="module")
def found():
    """What the child says."""
    root = str(CHILD.parents[2])
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=5",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    run = subprocess.run(
        [sys.executable, str(CHILD)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_collectives_are_timed_over_all_devices_and_over_every_part(found):
    wanted = [[k, n, size] for n in (2, 4) for k in KINDS for size in SIZES]
    assert found["samples"]["cpu"] == [*OPERATIONS, *wanted]
    assert found["samples"]["one"] == OPERATIONS
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["num_devices"] == [4, 1]
    assert "4 x cpu" in found["shown"] and "all-reduce" in found["shown"]


def test_every_device_works_on_a_copy_of_its_own(found):
    assert found["buffers"] == 4 and found["shapes"] == [[16]] * 4


def test_progress_never_goes_back_and_counts_collectives(found):
    done = [step[0] for step in found["steps"]]
    assert done == sorted(done)
    assert done[-1] < found["steps"][-1][1] == 2 * len(OPERATIONS) + 40
    assert sum("all_gather over" in step[2] for step in found["steps"]) == 2


def test_a_group_is_any_divisor_of_the_devices():
    assert [group_sizes(n) for n in (1, 2, 6, 8)] == [[], [2], [2, 3, 6], [2, 4, 8]]


def test_one_device_is_never_crowded(cluster):
    assert crowding(["the only one"]) == 1.0


def test_what_would_take_long_on_crowded_devices_is_left_out(cluster, monkeypatch):
    spot = cluster.meshes[0]
    one = type(cluster)(meshes=(spot,))
    small, large = (matmul((1, m, 64, 64), "float32", "mk,kn") for m in (2, 512))
    crowd = 0.9 * running.LONGEST_S / guess_s(small)
    monkeypatch.setattr(running, "crowding", lambda devices, clock: crowd)
    ticks = itertools.count()
    found = calibrate(one, benchmarks=[small, large], clock=lambda: next(ticks) * 1e-3)
    assert [s.dims for s in found.meshes[0].samples] == [small.dims]


def test_every_group_may_work_on_every_row():
    wide = grouped((64, 512, 64, 64), "float32")
    assert guess_s(wide) > 64 * guess_s(grouped((1, 512, 64, 64), "float32")) / 4
