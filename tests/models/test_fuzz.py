"""20,000 files that are nearly sound: each is read, or refused with a `SpecError`, and soon."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.test_gguf import FAULTS
from tests.models.test_safetensors import REFUSED

ROOT = Path(__file__).parents[2]
CASES = 10_000  # of each format
SLOWEST_S = 0.050  # processor time of one case
GROWN_BYTES = 64 << 20


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "case"
    child = Path(__file__).parent / "fuzz_child.py"
    run = subprocess.run(
        [sys.executable, str(child), str(path), str(CASES), "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_every_case_ends_soon_and_keeps_no_memory(found, format):
    of = found[format]
    assert of["read"] + of["refused"] == CASES
    assert min(of["read"], of["refused"]) > CASES / 20  # else it tries one thing alone
    assert of["slowest_s"] < SLOWEST_S, f"case {of['slowest']}"
    assert of["grown_bytes"] < GROWN_BYTES


def test_faults_of_each_format_are_crafted_one_by_one():
    assert len(FAULTS) >= 30
    assert len(REFUSED) >= 25
