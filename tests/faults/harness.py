"""Rounds of passes over real workers, with faults by seed; every pass is checked, every fault too.

A pass is right if its result is that of the uncut function, given the passes before it in order:
the state is a recurrent one, in which a pass that was left out or applied twice shows for ever.
"""

import os
import random
import resource
import signal
import threading
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

import gimlax as gx
from gimlax.devices import WorkerSpec
from gimlax.runtime.compiling import compile
from gimlax.runtime.workers.server import PROTOCOL
from tests import zoo
from tests.faults.relay import LINK_FAULTS, Relay
from tests.runtime.conftest import trace_specimen
from tests.runtime.test_execution import assert_within
from tests.runtime.workers.conftest import cluster_of

LIMIT_S = 40
NAMES = ("one", "two", "three")
PROCESS_FAULTS = ("kill", "stop", "all", "start", "compile", "memory")


class Crew:
    """Workers that can be hurt, and a relay between them."""

    def __init__(self, seed):
        self.relay = Relay(seed)
        self.workers = gx.start_workers(
            cluster_of(*(WorkerSpec(name=name, platforms="cpu") for name in NAMES))
        )
        self.workers.detour = self.relay.detour
        self.pids = {}

    def heal(self):
        """Starts again whatever is lost."""
        for name in self.workers.lost:
            self.workers.start_again(name)
        for name, peer in self.workers.peers.items():
            self.pids[name] = peer.ask("hello", {"protocol": PROTOCOL})[0]["pid"]

    def close(self):
        self.workers.close()
        self.relay.close()


class Round:
    """Passes over one compilation, next to the same in this process.

    Results have to be equal, or within `relative` of the largest number, where stages are fused
    otherwise than the whole.
    """

    def __init__(self, crew, specimen, placement, relative=0):
        self.relative = relative
        traced = trace_specimen(specimen)
        plan = gx.plan(traced, crew.workers.cluster, cuts=len(placement), meshes=placement)
        self.step = compile(plan, traced, workers=crew.workers)
        self.params, self.expected, self.x = specimen.args
        self.placed, self.state = self.step.place(self.params), self.step.init(self.expected)
        self.alone = jax.jit(specimen.fn)
        self.pending = []
        self.count = 0
        self.ends = Counter()

    def submit(self, passes):
        for _ in range(passes):
            self.count += 1
            x = self.x * np.float32(1 + self.count % 13)
            future = self.step.submit(self.placed, self.state, x)
            future.add_done_callback(lambda _, number=self.count: self.ends.update([number]))
            (self.state,) = future.carried
            self.pending.append((future, x))

    def check(self):
        """All that was submitted has ended, right and in order."""
        for future, x in self.pending:
            out, _ = future.result(LIMIT_S)
            expected, self.expected = self.alone(self.params, self.expected, x)
            assert_within(out, expected, self.relative)
        self.pending = []
        assert_within(gx.gather(self.state), self.expected, self.relative)
        assert self.ends == dict.fromkeys(range(1, self.count + 1), 1)

    def close(self):
        self.step.close()


class Faults:
    """Does harm by seed, and counts what it did."""

    def __init__(self, crew, seed):
        self.crew = crew
        self.random = random.Random(seed)
        self.done = Counter()
        self._left = {}

    def next(self, kinds):
        """One of them, each equally often."""
        left = self._left.setdefault(kinds, [])
        if not left:
            left += kinds
            self.random.shuffle(left)
        return left.pop()

    def link(self, round_, kind):
        """Spoils a frame of a pass."""
        before = self.crew.relay.done[kind]
        self.crew.relay.arm(kind)
        for _ in range(20):
            round_.submit(self.random.randint(6, 14))
            round_.check()
            if self.crew.relay.done[kind] > before:
                break
        assert self.crew.relay.disarm() == 0, f"no frame came to {kind}"
        self.done[kind] += 1

    def process(self, round_, kind):
        """Hurts workers of a round while passes are under way."""
        where = [spec.worker for spec in round_.step.plan.specs]
        name = where[0] if kind == "memory" else self.random.choice(where)
        round_.submit(self.random.randint(1, 6))
        getattr(self, kind)(round_, name)
        round_.submit(self.random.randint(6, 16))
        round_.check()
        self.done[kind] += 1

    def kill(self, round_, name):
        peer = self.crew.workers.peers[name]
        os.kill(self.crew.pids[name], signal.SIGKILL)
        lost(peer)

    def stop(self, round_, name):
        peer = self.crew.workers.peers[name]
        os.kill(self.crew.pids[name], signal.SIGSTOP)
        round_.submit(3)
        lost(peer)

    def all(self, round_, name):
        """The whole of a backend: every worker at once."""
        peers = list(self.crew.workers.peers.values())
        for pid in self.crew.pids.values():
            os.kill(pid, signal.SIGKILL)
        for peer in peers:
            lost(peer)

    def start(self, round_, name):
        """All die, and the next that is started dies at its start."""
        launcher = self.crew.workers._launcher
        spawn, died = launcher._spawn, []

        def dies(spec, prefix):
            child = spawn(spec, prefix)
            if not died:
                child.kill()
                died.append(child)
            return child

        launcher._spawn = dies
        try:
            self.all(round_, name)
            round_.submit(2)
            round_.check()
        finally:
            launcher._spawn = spawn
        assert died and died[0].returncode == -signal.SIGKILL

    def compile(self, round_, name):
        """One dies, and another while it compiles what it takes over."""
        died = []
        peers = self.crew.workers.peers
        for other in NAMES:
            if other != name:
                self._dies_at(peers[other], other, died)
        try:
            self.kill(round_, name)
            round_.submit(2)
            round_.check()
        finally:
            for peer in peers.values():
                peer.__dict__.pop("begin", None)
        assert died

    def _dies_at(self, peer, name, died):
        begin = peer.begin

        def dying(kind, fields, arrays=()):
            if kind == "prepare" and not died:
                died.append(name)
                os.kill(self.crew.pids[name], signal.SIGKILL)
            return begin(kind, fields, arrays)

        peer.begin = dying

    def memory(self, round_, name):
        """A worker that the system gives no more memory, until it says so or dies of it."""
        pid, peer = self.crew.pids[name], self.crew.workers.peers[name]
        round_.check()
        least = min(virtual_bytes(pid) for _ in range(50))
        limit = (least + 8 * 2**20, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_AS, limit)
        for _ in range(5):
            round_.submit(2)
            round_.check()
            if name not in {spec.worker for spec in round_.step.plan.specs}:
                break
        else:
            raise AssertionError(f"{name} never ran out of memory")
        if peer.lost is None:
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def virtual_bytes(pid):
    """What a process has of addresses."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def hungry():
    """The recurrent model with much memory in between, in its first segment."""
    plain = zoo.recurrent()

    def hungry_model(params, state, x):
        tall = jnp.tile(x, (2000, 1))
        wide = tall @ tall.T  # 144 MB
        x = x + 1e-9 * (jnp.tanh(wide @ tall).mean() + jnp.sin(wide).mean())
        return plain.fn(params, state, x)

    return zoo.Specimen(fn=hungry_model, args=plain.args, carried=plain.carried)


def lost(peer):
    """Waits until a worker is given up."""
    noticed = threading.Event()
    peer.when_lost(lambda _: noticed.set())
    assert noticed.wait(LIMIT_S), f"nobody noticed that {peer.name} is gone"


def run(seed, num_faults, num_passes, say=lambda _: None):
    """So many faults and at least so many passes.

    Returns:
        How many passes there were, and the faults by kind.
    """
    crew = Crew(seed)
    faults = Faults(crew, seed)
    passes = 0
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "worker .* (is lost|had no room)")
            while faults.done.total() < num_faults or passes < num_passes:
                kind = faults.next(PROCESS_FAULTS)
                placement = faults.random.sample(NAMES, faults.random.choice((2, 3)))
                crew.heal()
                specimen = hungry() if kind == "memory" else zoo.recurrent()
                round_ = Round(crew, specimen, tuple(placement))
                for _ in range(faults.random.choice((2, 3, 4))):
                    of_link = faults.next(LINK_FAULTS)
                    say(f"{faults.done.total()} {of_link} on {round_.step!r}")
                    faults.link(round_, of_link)
                say(f"{faults.done.total()} {kind} on {round_.step!r}")
                faults.process(round_, kind)
                passes += round_.count
                round_.close()
    finally:
        crew.close()
    return passes, faults.done
