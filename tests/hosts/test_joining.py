"""Ray started and joined on terms of this framework, and nothing left behind."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from gimlax import hosts
from gimlax.errors import BackendError, SpecError
from gimlax.hosts.errand import Errand, marks
from gimlax.hosts.joining import _Kill

ROOT = Path(__file__).parent.parent.parent
WATCHDOG_S = 120


def wait_until(holds, what):
    """Until it holds; the watchdog is generous, as machines are busy."""
    end = time.monotonic() + WATCHDOG_S
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        threading.Event().wait(0.02)


def family(pid):
    """All that runs for a process: children, and theirs."""
    return psutil.Process(pid).children(recursive=True)


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def joined(ray):
    with hosts.join() as found:
        yield found


def run(joined, function, told=None, **env):
    (node,) = joined.nodes
    return joined.run(
        node, function, told or {}, env=env, whose="the process", timeout_s=WATCHDOG_S
    )


def test_a_ray_of_its_own_has_this_host_as_its_only_node(joined):
    (node,) = joined.nodes
    assert node.here
    assert node.address == "127.0.0.1"
    for host in ("", node.address, node.name):
        assert joined.node_of(host, "it") is node
    with pytest.raises(SpecError, match=r"it is on host '10\.9\.9\.9', but Ray has 127\.0\.0\.1"):
        joined.node_of("10.9.9.9", "it")


def test_nothing_of_it_listens_beyond_the_loopback(joined):
    for process in family(os.getpid()):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", process


def test_a_function_runs_where_it_is_told_with_variables_of_its_own(joined):
    running = run(joined, "gimlax.hosts.errand:marks", JAX_PLATFORMS="cpu", GIMLAX_TEST="yes")
    assert running.answer == marks()
    environment = psutil.Process(running.pid).environ()
    assert environment["GIMLAX_TEST"] == "yes"
    assert "GIMLAX_TEST" not in os.environ
    running.kill()
    assert not psutil.pid_exists(running.pid) or gone([psutil.Process(running.pid)])


@pytest.mark.parametrize("state", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "stopped"])
def test_a_process_is_killed_in_any_state_and_ray_tells_of_its_end(joined, state):
    running = run(joined, "gimlax.hosts.errand:marks")
    reasons, told = [], threading.Event()
    running.watch(lambda why: (reasons.append(why), told.set()))
    process = psutil.Process(running.pid)
    process.send_signal(state)
    running.kill()
    assert gone([process])
    assert told.wait(WATCHDOG_S)
    assert "ended (" in reasons[0]


def test_a_process_that_dies_is_told_of_with_what_it_wrote(joined):
    running = run(joined, "gimlax.hosts.errand:marks")
    reasons, told = [], threading.Event()
    running.watch(lambda why: (reasons.append(why), told.set()))
    os.kill(running.pid, signal.SIGKILL)
    assert told.wait(WATCHDOG_S)
    assert "ActorDiedError" in reasons[0]
    assert running.said() == "it wrote nothing"


def test_only_functions_of_gimlax_are_run_and_their_errors_come_back(joined):
    with pytest.raises(BackendError, match="'os:getpid' is no function of gimlax"):
        run(joined, "os:getpid")
    with pytest.raises(SpecError, match=r"wants cores \[4095\], a process there may use"):
        told = {"secret": "00", "host": "", "cores": [4095], "worker": "it"}
        run(joined, "gimlax.runtime.workers.on_ray:begin", told)


def test_who_does_not_know_the_token_is_not_let_in(joined):
    (gcs,) = [p for p in family(os.getpid()) if p.name().startswith("gcs_server")]
    (address,) = {
        f"127.0.0.1:{c.laddr.port}"
        for c in gcs.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    }
    ask = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None)"
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        child = subprocess.run(
            [sys.executable, "-c", ask],
            env={"RAY_AUTH_MODE": "token", **wrong},
            capture_output=True,
            text=True,
            timeout=WATCHDOG_S,
        )
        assert child.returncode != 0
        assert "InvalidAuthToken" in child.stderr


def test_closing_ends_every_process_and_removes_its_folder(ray, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path)[:60])
    before, descriptors = set(family(os.getpid())), len(os.listdir("/proc/self/fd"))
    with hosts.join() as joined:
        run(joined, "gimlax.hosts.errand:marks")
        started = set(family(os.getpid())) - before
        assert len(started) > 3
    assert gone(started)
    assert not [t for t in threading.enumerate() if t.name == "gimlax ray" and not joined]
    joined.close()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


DRIVER = """
import signal, sys
from gimlax import hosts
# The background job of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
joined = hosts.join()
(node,) = joined.nodes
running = joined.run(
    node, "gimlax.hosts.errand:marks", {}, env={}, whose="it", timeout_s=100
)
try:
    print(running.pid, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_killed_driver_leaves_no_process_behind(ray, stopped):
    with driver() as (child, pid):
        started = family(child.pid)
        assert pid in {process.pid for process in started}
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        child.kill()
        wait_until(lambda: gone(started), "all processes end")


def test_an_interrupt_at_the_terminal_is_for_the_driver_alone(ray):
    with driver() as (child, _):
        started = family(child.pid)
        os.killpg(child.pid, signal.SIGINT)
        said = child.stdout.readline()
        assert said == "interrupted\n", said or child.communicate(timeout=WATCHDOG_S)[1]
        assert all(process.is_running() for process in started)
        _, complaints = child.communicate(timeout=WATCHDOG_S)
        assert (child.returncode, complaints) == (0, "")
        wait_until(lambda: gone(started), "all processes end")


@contextlib.contextmanager
def driver():
    """A process that has a Ray of its own: it, and the number of one that runs there."""
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()


def test_no_code_travels_with_what_is_run(ray):
    from ray import cloudpickle

    assert cloudpickle.dumps(Errand) == pickle.dumps(Errand, protocol=cloudpickle.DEFAULT_PROTOCOL)
    assert len(cloudpickle.dumps(Errand)) < 100
    assert json.loads(Errand().run("gimlax.hosts.errand:marks", "{}"))["answer"] == marks()


@pytest.mark.parametrize("version", [None, "2.9.3"])
def test_without_ray_the_error_names_the_extra(monkeypatch, version):
    def find(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    with pytest.raises(SpecError, match=r"'ray', 2\.60 or newer, .*install 'gimlax\[ray\]'"):
        hosts.join()


def test_joining_without_a_token_is_refused(ray, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpecError, match=r"'10\.0\.0\.9:6379' .* there is no token here"):
        hosts.join("10.0.0.9:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SpecError, match="RAY_AUTH_MODE turns tokens off"):
        hosts.join("10.0.0.9:6379")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_where_no_ray_answers_the_error_says_what_to_check(ray, address):
    with pytest.raises(BackendError, match=r"cannot join Ray at '.*127\.0\.0\.1:1'.*`ray start`"):
        hosts.join(address, insecure=True)


def test_an_address_without_a_port_is_refused(ray):
    with pytest.raises(SpecError, match="'auto' is no address of a Ray; give 'host:port'"):
        hosts.join("auto")


def test_a_process_is_ended_by_a_descriptor_of_any_number():
    """`select` takes none past 1,023, and who has many workers and links has more open files."""
    child = subprocess.Popen(["sleep", "1000"])
    first = os.pidfd_open(child.pid)
    try:
        high = fcntl.fcntl(first, fcntl.F_DUPFD, 1024)
    except OSError:
        pytest.skip("this process may not open more than 1,024 files")
    finally:
        os.close(first)
    told = []
    _Kill(high, lambda: told.append("killed"))()
    assert child.wait(WATCHDOG_S) == -signal.SIGKILL
    assert told == ["killed"]
    with pytest.raises(OSError):
        os.fstat(high)
