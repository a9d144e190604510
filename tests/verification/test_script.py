"""`scripts/verify.py`: its exit code says what was found, its JSON and its table say the rest."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gimlax import Verification

ROOT = Path(__file__).parents[2]
SMALL = ("--prompt_tokens=8", "--new_tokens=2", "--context=16")


def run(*flags, **environment):
    return subprocess.run(
        [sys.executable, "scripts/verify.py", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_platform_without_a_compiler_is_exit_code_3(tmp_path):
    done = run("--topology=MI300X", *SMALL, f"--json={tmp_path}/found.json")
    assert done.returncode == 3, done.stderr
    assert "2 lowered only" in done.stdout and "not checked:" in done.stdout
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["dtype"] == "bfloat16" and record["context"] == 16
    (found,) = record["verifications"]
    assert found.pop("name") == "smollm2-135m" and found.pop("hardware") == "MI300X"
    kept = Verification.from_json(json.dumps(found))
    assert [stage.phase for stage in kept.stages] == ["prefill", "decode"]


def test_a_compiler_that_dies_is_exit_code_1(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$2" in *importlib*) echo '
        '\'{"jax": "1", "jaxlib": "1", "flatbuffers": "1", "libtpu": "1"}\';; '
        "*) echo broken; exit 7;; esac\n"
    )
    python.chmod(0o755)
    flags = ("--topology=v5e:2x2", f"--tpu_python={python}", "--fresh", *SMALL)
    done = run(*flags)
    assert done.returncode == 1, done.stderr
    assert "it would not run" in done.stdout and "ended with status 7" in done.stdout
    assert "it said last: broken" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give either --topology or --cluster"),
        (("--topology=v5e:2x2", "--cluster=x.toml"), "give either --topology or --cluster"),
        (("--topology=v9:1x1",), "'v9' is no generation of TPUs"),
        (("--topology=L4", "--model=nope"), "model 'nope' is no file and none of smollm2-135m"),
        (("--topology=L4", "--cuda_python=/bin/echo"), "'/bin/echo', which is no Python"),
        (("--topology=L4", "--json=/no/such/folder/x"), "names no file in a folder that exists"),
        (("--topology=L4", "--prompt_tokens=4000"), "do not fit the context"),
    ],
)
def test_what_was_asked_wrong_is_one_line_and_exit_code_2(flags, said):
    done = run(*flags)
    assert done.returncode == 2 and said in done.stderr
    assert "Traceback" not in done.stderr


# A job that a shell runs in the background ignores interrupts, and so does what it starts.
HEEDING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_an_interrupt_leaves_no_child_behind(tmp_path):
    os.mkfifo(tmp_path / "started")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$2" in *importlib*) echo '
        '\'{"jax": "1", "jaxlib": "1", "flatbuffers": "1", "libtpu": "1"}\';; '
        f"*) echo $$ > {tmp_path}/started; exec tail -f /dev/null;; esac\n"
    )
    python.chmod(0o755)
    script = subprocess.Popen(
        [
            *(sys.executable, "-c", HEEDING, sys.executable),
            *("scripts/verify.py", "--topology=v5e:1x1", "--fresh", *SMALL),
            f"--tpu_python={python}",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    child = int((tmp_path / "started").read_text().split()[0])
    script.send_signal(signal.SIGINT)
    assert script.wait(120) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
