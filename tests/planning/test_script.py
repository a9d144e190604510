"""`scripts/plan.py` plans from a cluster file alone and writes what `Plan.load` reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gimlax.planning import Plan

ROOT = Path(__file__).parents[2]
CLUSTER = """
[[mesh]]
name = "left"
device_kind = "H100 SXM"
[[mesh]]
name = "right"
device_kind = "MI300X"
[[link]]
source = "left"
target = "right"
latency_s = 20e-6
bandwidth_bytes_per_s = 25e9
"""


def run(*flags):
    return subprocess.run(
        [sys.executable, "scripts/plan.py", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_plan_for_hardware_that_is_not_there(tmp_path):
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    flags = [f"--cluster={tmp_path}/cluster.toml", "--cuts=31", "--meshes=left,right"]
    done = run(*flags, f"--json={tmp_path}/plan.json")
    assert done.returncode == 0, done.stderr
    assert "layers.14.mlp" in done.stdout and "stage 1 on 'right'" in done.stdout
    saved = Plan.load(tmp_path / "plan.json")
    assert saved.route == ((31,), ("left", "right"))
    assert str(saved) in done.stdout


def test_a_plan_of_a_recurrent_model(tmp_path):
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    flags = [f"--cluster={tmp_path}/cluster.toml", "--cuts=12", "--meshes=left,right"]
    done = run(*flags, "--model=mamba2-130m")
    assert done.returncode == 0, done.stderr
    assert "embed .. layers.10" in done.stdout and "layers.11 .. head" in done.stdout


def test_a_missing_cluster_file_is_one_line(tmp_path):
    done = run(f"--cluster={tmp_path}/none.toml")
    assert done.returncode == 2
    assert "none.toml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch=99999999999999999999"], "is not an integer in the range [1, "),
        (["--cuts="], "give numbers of segments, as in 20,41"),
        (["--calibration="], "calibration file: its path is empty"),
        (["--objective=usd"], "dollars are asked for, but mesh 'left' has no price"),
        (["--cluster="], "cluster file: its path is empty"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_traced(tmp_path, flags, said):
    text = CLUSTER.replace('"H100 SXM"', '"A30"')
    (tmp_path / "cluster.toml").write_text(text)
    done = run(f"--cluster={tmp_path}/cluster.toml", "--prompt_tokens=99999", *flags)
    assert done.returncode != 0 and said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr and "do not fit the context" not in done.stderr
