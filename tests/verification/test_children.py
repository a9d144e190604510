"""A compiler in a child may hang, die, flood or lie: each is one error that names it."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import pytest

import gimlax as gx
from gimlax.devices import MeshSpec
from gimlax.errors import BackendError, SpecError
from gimlax.program import emit
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.exporting import abstract_mesh, export_stages
from gimlax.runtime.inventory import take_inventory
from gimlax.verification.child import ANSWER, REQUEST, read_stage, write_stage
from gimlax.verification.children import _CHILD, Children
from gimlax.verification.targets import target_of
from gimlax.verification.toolchains import Toolchain, find_toolchain, how_to_install

SPEC = MeshSpec(name="cpu", device_kind="cpu", axes=(("data", 1), ("model", 1)))
TARGET = target_of(SPEC)


def mesh_target(kind):
    return target_of(MeshSpec(name="there", device_kind=kind))


@pytest.fixture(scope="module")
def stage():
    traced = gx.trace(lambda w, x: jnp.tanh(x @ w), jnp.ones((8, 8)), jnp.ones((2, 8)))
    plan = gx.plan(traced, gx.Cluster(meshes=(SPEC,), links=()))
    programs = emit(plan, gx.chain(traced))
    arrangement = Arrangement(meshes={"cpu": abstract_mesh(SPEC)})
    inventory = take_inventory(programs, arrangement)
    ((found,),) = export_stages(programs, inventory, {"cpu": "cpu"}, {"cpu": True})
    return found


@pytest.fixture
def fake(tmp_path):
    """An interpreter that does what a shell script says; its folder is in `$4`."""

    def build(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return Toolchain(platform="cpu", python=str(path), versions=(("jax", "9.9"),))

    return build


def test_a_stage_keeps_in_a_folder(stage, tmp_path):
    write_stage(stage, tmp_path)
    found = read_stage(tmp_path)
    assert dict(found.config).pop("jax_numpy_dtype_promotion") == "standard"
    for name in ("description", "platform", "axes", "artifact", "inputs", "results", "donates"):
        assert getattr(found, name) == getattr(stage, name)


def test_this_interpreter_compiles_for_this_host(stage):
    answer = Children(time_limit_s=300).compile(stage, TARGET, find_toolchain("cpu"))
    assert answer.compiled is not None and not answer.refusal
    assert answer.compiled.argument_bytes == 8 * 8 * 4 + 2 * 8 * 4
    assert answer.compiled.needed_bytes >= answer.compiled.argument_bytes
    assert answer.compiled.flops >= 2 * 2 * 8 * 8
    assert answer.compiled.collectives == ()


def test_what_the_child_cannot_lower_is_an_answer(stage, tmp_path):
    target = mesh_target("TPU v5e")
    answer = Children(time_limit_s=300).compile(stage, target, find_toolchain("cpu"))
    assert answer.compiled is None and answer.refusal and not answer.lacks_memory


ENDINGS = {
    "hangs": ("echo waiting; exec tail -f /dev/null", "gave no answer within 0 s .*: waiting"),
    "hangs with a child of its own": (
        "tail -f /dev/null & echo waiting; wait",
        "gave no answer within 0 s",
    ),
    "is killed": ("echo about to; kill -9 $$", "was ended by SIGKILL .*last: about to"),
    "aborts": ("echo bad flag >&2; kill -ABRT $$", "was ended by SIGABRT .*last: bad flag"),
    "fails": ("echo one; echo two; echo three; echo four; exit 3", "status 3 .*two / three / four"),
    "says nothing": ("exit 0", "ended without an answer .*it said nothing"),
    "floods": ("head -c 3000000 /dev/zero | tr '\\0' 'x'; echo; echo end; exit 1", "last: xxx"),
    "prints what is not text": ("printf '\\377\\033[2Jred\\n'; exit 1", r"last: .\?\[2Jred"),
    "answers nonsense": (f"echo '[1' > $4/{ANSWER}", "answer of JAX 9.9 is not JSON"),
    "answers something else": (f"echo '{{}}' > $4/{ANSWER}", "has schema version None"),
    "answers what cannot be": (
        f'echo \'{{"schema_version": 1, "seconds": -1, "refusal": 7}}\' > $4/{ANSWER}',
        "seconds is -1.*refusal is 7",
    ),
    "answers nothing": (
        f'echo \'{{"schema_version": 1, "seconds": 1}}\' > $4/{ANSWER}',
        "compiled, or to say why it is not",
    ),
    "answers without end": (f"head -c 3000000 /dev/zero > $4/{ANSWER}", "more than 1.00 MiB"),
}


@pytest.mark.parametrize("way", ENDINGS)
def test_a_child_that_does_not_answer_is_one_error_that_names_it(way, stage, fake):
    script, said = ENDINGS[way]
    children = Children(time_limit_s=0.3 if "hangs" in way else 60)
    with pytest.raises(BackendError, match=said) as error:
        children.compile(stage, TARGET, fake(script))
    assert "JAX 9.9" in str(error.value) and len(str(error.value)) < 2000
    assert str(error.value).isprintable()


def test_nothing_a_child_starts_outlives_it(stage, fake, tmp_path):
    script = f"tail -f /dev/null & echo $! > {tmp_path}/pid; exit 0"
    with pytest.raises(BackendError):
        Children(time_limit_s=60).compile(stage, TARGET, fake(script))
    pid = int((tmp_path / "pid").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    assert state.stdout.strip() in ("", "Z", "Zs")


def test_closing_ends_what_still_runs(stage, fake, tmp_path):
    os.mkfifo(tmp_path / "started")
    children = Children(time_limit_s=600)
    toolchain = fake(f"echo yes > {tmp_path}/started; exec tail -f /dev/null")
    said = []

    def compile_it():
        try:
            children.compile(stage, TARGET, toolchain)
        except BackendError as error:
            said.append(str(error))

    thread = threading.Thread(target=compile_it)
    thread.start()
    (tmp_path / "started").read_text()
    children.close()
    thread.join(60)
    assert not thread.is_alive() and "SIGKILL" in said[0]
    with pytest.raises(BackendError, match="the verification was ended"):
        children.compile(stage, TARGET, toolchain)


def test_the_flags_of_this_process_do_not_reach_a_child(stage, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag")
    monkeypatch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", "none:/none.so")
    script = f"env > {tmp_path}/env; exit 1"
    with pytest.raises(BackendError):
        Children(time_limit_s=60).compile(stage, mesh_target("TPU v5e"), fake(script))
    lines = (tmp_path / "env").read_text().splitlines()
    assert "JAX_PLATFORMS=cpu" in lines
    assert not [line for line in lines if "no_such_flag" in line or "none.so" in line]


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/no/such/python", "cannot be run"),
        ("/bin/echo", "is no Python interpreter"),
        ("/bin/false", "is no Python interpreter"),
    ],
)
def test_what_is_no_interpreter_is_refused(python, said):
    with pytest.raises(SpecError, match=f"python for 'tpu' is '{python}', which {said}"):
        find_toolchain("tpu", python)


def test_an_interpreter_without_the_compiler_says_how_to_get_it():
    with pytest.raises(SpecError, match=r"lacks .*libtpu.*gimlax\[verify-tpu\]"):
        find_toolchain("tpu", sys.executable)
    with pytest.raises(SpecError, match=r"jax-cuda13-plugin or jax-cuda12-plugin"):
        find_toolchain("cuda", sys.executable)


def test_an_interpreter_that_says_what_is_not_so_is_refused(fake):
    assert "libtpu" in str(
        Toolchain(platform="tpu", python="x", versions=(("jax", "1"), ("libtpu", "2")))
    )
    toolchain = fake("echo '{\"jax\": 7}'")
    with pytest.raises(SpecError, match="is no Python interpreter"):
        find_toolchain("tpu", toolchain.python)
    assert "install jax" in how_to_install("cpu")


def test_a_child_ends_with_its_parent(tmp_path):
    os.mkfifo(tmp_path / REQUEST)  # which it reads for ever
    package = str(Path(gx.__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, package, str(tmp_path), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    with (tmp_path / REQUEST).open("w"):  # waits until the child has come as far
        child.stdin.close()
        assert child.wait(120) == 1
