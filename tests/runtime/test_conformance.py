"""Operations beside the reference: which are right, off, unsupported, or end their process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import _jax
from gimlax.errors import BackendError, SpecError
from gimlax.runtime.conformance import Conformance, check_platform, isolated, running
from gimlax.runtime.conformance.making import FUNCTIONS
from gimlax.runtime.conformance.operations import Case, build, cases, needed, operations
from gimlax.runtime.conformance.report import CRASHED, OFF, RIGHT, UNSUPPORTED, Outcome
from gimlax.runtime.conformance.running import run_case
from gimlax.runtime.probing.reference import Reference

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    return Reference(_jax.read_config())


def test_the_list_and_the_functions_are_the_same():
    assert {of.name for of in operations()} == set(FUNCTIONS)
    assert len(set(cases())) == len(cases())
    assert all(of.used_by for of in operations())
    assert set(needed()) <= {case.dtype for case in cases()}


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.operation}-{c.dtype}")
def test_every_case_can_be_traced_and_is_the_same_in_every_run(case):
    fn, args = build(case)
    jax.eval_shape(fn, *args)
    for one, two in zip(jax.tree.leaves(args), jax.tree.leaves(build(case)[1]), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    if case.operation not in ("convert", "quantise", "random_floats", "iota"):
        assert any(np.asarray(a).dtype == jnp.dtype(case.dtype) for a in jax.tree.leaves(args))


@pytest.mark.parametrize("name", [of.name for of in operations()])
def test_another_cpu_client_is_right(name, plugin_name, reference):
    dtype = next(of.dtypes[0] for of in operations() if of.name == name)
    found = run_case(Case(name, dtype), jax.devices(plugin_name)[0], reference)
    assert found.status == RIGHT, found
    assert found.bound > 0 or found.relative == 0


@pytest.mark.parametrize(
    "case",
    [
        *(Case(name, "int4") for name in ("embedding", "quantise", "dequantise", "convert")),
        *(Case(name, "float8_e5m2") for name in ("matmul", "quantise", "dequantise")),
        *(Case(name, "bfloat16") for name in ("attention", "rms_norm", "cumsum", "bitcast")),
    ],
    ids=lambda c: f"{c.operation}-{c.dtype}",
)
def test_narrow_numbers_are_right(case, plugin_name, reference):
    found = run_case(case, jax.devices(plugin_name)[0], reference)
    assert found.status == RIGHT, found


def test_what_is_wrong_is_off_and_what_raises_is_unsupported(plugin_name, reference, monkeypatch):
    device = jax.devices(plugin_name)[0]
    real = running._jax.evaluate

    def wrong(closed):
        return lambda *inputs: [output * 1.01 for output in real(closed)(*inputs)]

    monkeypatch.setattr(running._jax, "evaluate", wrong)
    found = run_case(Case("tanh", "float32"), device, reference)
    assert found.status == OFF and 0.005 < found.relative < 0.02 and found.absolute > found.bound
    assert run_case(Case("tanh", "bfloat16"), device, reference).status == RIGHT

    def missing(closed):
        # The plugin has no custom calls of jaxlib.
        return lambda x: [jnp.linalg.cholesky(x @ x.T)]

    monkeypatch.setattr(running._jax, "evaluate", missing)
    found = run_case(Case("tanh", "float32"), device, reference)
    assert found.status == UNSUPPORTED and len(found.why) > 20


def test_a_table_says_what_is_missing_and_whether_it_matters():
    def outcome(operation, dtype, status, **more):
        return Outcome(operation=operation, dtype=dtype, status=status, **more)

    def made(*outcomes):
        return Conformance(
            platform="acme", device_kind="A1", version="1.2", jax="0", outcomes=outcomes
        )

    right = outcome("matmul", "float32", RIGHT, absolute=1e-6, relative=1e-7, bound=1e-5)
    rare = outcome("matmul", "float8_e5m2", UNSUPPORTED, why="no such type")
    found = made(right, rare)
    assert not found.failures
    assert "1.0e-07" in str(found) and "none" in str(found) and "no such type" in str(found)
    assert str(found).endswith("2 cases: 1 right, 1 unsupported; 'acme' is fit")
    assert json.loads(found.to_json())["fit"] is True
    for bad in (
        outcome("exp", "bfloat16", OFF, relative=0.5, absolute=1.0),
        outcome("exp", "bfloat16", CRASHED, why="SIGABRT"),
        outcome("exp", "float32", UNSUPPORTED, why="no lowering"),
    ):
        worse = made(right, rare, bad)
        assert worse.failures == (bad,)
        assert "'acme' is not fit, for 1 of them" in str(worse)


def test_a_case_that_aborts_is_one_case(monkeypatch):
    # Really ends the child, in the middle.
    aborting = isolated._CHILD.replace(
        "from gimlax.runtime.conformance.isolated import child\n",
        "import os\nfrom gimlax.runtime.conformance import isolated\n"
        "from gimlax.runtime.conformance.isolated import child\n"
        "real = isolated.run_case\n"
        "isolated.run_case = lambda case, *rest: (\n"
        "    os.abort() if case.dtype == 'bfloat16' else real(case, *rest))\n",
    )
    monkeypatch.setattr(isolated, "_CHILD", aborting)
    heard = []
    found = check_platform("cpu", lambda *args: heard.append(args), only=["tanh", "exp"])
    statuses = {(of.operation, of.dtype): of.status for of in found.outcomes}
    assert statuses == {
        (name, dtype): CRASHED if dtype == "bfloat16" else RIGHT
        for name in ("exp", "tanh")
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert all("SIGABRT" in of.why for of in found.failures) and len(found.failures) == 2
    assert [done for done, _, _ in heard] == list(range(6)) and heard[0][1] == 6


def test_what_is_not_there_is_said():
    with pytest.raises(BackendError, match=r"'acme' does not start.*nothing installed provides"):
        check_platform("acme", only=["tanh"])
    with pytest.raises(SpecError, match=r"'flash'.*matmul"):
        check_platform("cpu", only=["flash"])


def test_the_script_prints_a_table_and_writes_json(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "scripts/conformance.py",
            "--platform=cpu",
            "--operations=bitwise",
            f"--json={tmp_path}/found.json",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "bitwise" in done.stdout and "3 cases: 3 right; 'cpu' is fit" in done.stdout
    assert json.loads((tmp_path / "found.json").read_text())["platform"] == "cpu"
