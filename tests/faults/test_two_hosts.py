"""Workers on two hosts, with a network between them that does everything a network can do."""

import os
import signal
import subprocess

import pytest

from gimlax.devices import WorkerSpec
from gimlax.runtime.workers.fleet import Workers
from gimlax.runtime.workers.peers import Member
from tests import zoo
from tests.faults.harness import Round, lost
from tests.faults.hosts import HERE, THERE, Hosts, OtherHost
from tests.runtime.workers.conftest import cluster_of

TIMEOUT_S = 60


class Crew:
    """Two workers on each host's side of the relay, as the harness takes them."""

    def __init__(self, other):
        self.cluster = cluster_of(
            WorkerSpec(name="one", platforms="cpu", host=HERE),
            WorkerSpec(name="two", platforms="cpu", host=THERE),
        )
        launcher = Hosts(other)
        try:
            peers = {
                spec.name: Member(spec.name, launcher.start(spec, timeout_s=TIMEOUT_S))
                for spec in self.cluster.workers
            }
        except BaseException:
            launcher.close()
            raise
        self.workers = Workers(self.cluster, launcher, peers, timeout_s=TIMEOUT_S)


@pytest.fixture
def other():
    try:
        found = OtherHost(seed=0)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield found
    found.close()


@pytest.mark.filterwarnings("ignore:worker .* is lost")
def test_packets_that_are_lost_late_twice_out_of_order_or_wrong_harm_no_pass(other):
    crew = Crew(other)
    try:
        round_ = Round(crew, zoo.recurrent(), ("one", "two"))
        assert [of.kind for of in round_.step.plan.carriers] == ["tcp"]
        round_.submit(5)
        round_.check()
        other.rate = 0.08
        while len(other.done) < 5 or min(other.done.values()) < 3:
            round_.submit(20)
            round_.check()
        other.rate = 0.0
        round_.submit(5)
        pid = crew.workers.peers["two"].ask("hello", {"protocol": 1})[0]["pid"]
        os.kill(pid, signal.SIGSTOP)  # a host that says nothing any more
        lost(crew.workers.peers["two"])
        round_.submit(5)
        round_.check()
        assert set(round_.step.program.placement) == {"one"}
        round_.close()
    finally:
        crew.workers.close()
