"""The script that generates: options that would do nothing are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gimlax as gx
from gimlax import models
from gimlax.devices import MeshSpec

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flag", ["--ray", "--ray_address=127.0.0.1:6379", "--insecure"])
def test_options_of_ray_are_not_ignored_where_no_worker_is_described(flag, tmp_path):
    try:
        models.find_smollm2()
    except gx.SpecError as error:
        pytest.skip(str(error))
    file = tmp_path / "here.toml"
    here = MeshSpec(name="here", device_kind="cpu", backend="cpu")
    file.write_text(gx.Cluster(meshes=(here,)).to_toml())
    done = subprocess.run(
        [sys.executable, "scripts/generate.py", f"--cluster={file}", flag],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert f"cluster file '{file}' describes no workers" in done.stderr
