"""2 GB from files onto two meshes of this host, and the memory that it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_host_holds_no_more_than_the_largest_tensor(tmp_path, plugin_name):
    """Of 2 GB, beyond what its meshes keep; the files are sparse."""
    child = ROOT / "tests" / "loading_child.py"
    run = subprocess.run(
        [sys.executable, str(child), str(tmp_path), "load"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    rest_bytes = 64 << 20
    assert (found["owned_bytes"], len(found["meshes"])) == (2 << 30, 2)
    most_bytes = found["owned_bytes"] + found["largest_bytes"] + rest_bytes
    assert found["taken_bytes"] <= most_bytes
    # Of mapped files, which the kernel may drop at any time, one tensor too.
    assert found["resident_bytes"] <= most_bytes + found["largest_bytes"]
