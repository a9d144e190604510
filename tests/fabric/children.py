"""Real processes at the other end of a link."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from gimlax import fabric

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WATCHDOG_S = 120


class Peer:
    """A process that runs a role of `peer.py`; gone at the end, whatever happens."""

    def __init__(self, role, kind, number=2**24):
        self.start("peer.py", role, kind, str(number))

    def start(self, script, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        )

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.process.kill()
        self.process.wait(WATCHDOG_S)
        self.process.stdin.close()
        self.process.stdout.close()

    def tell(self, text):
        self.process.stdin.write(text.replace("\n", " ") + "\n")
        self.process.stdin.flush()

    def line(self):
        line = self.process.stdout.readline()
        assert line, "the peer ended"
        return line.strip()

    def offer(self):
        return fabric.Offer.from_json(self.line())

    def kill(self):
        self.process.kill()
        self.process.wait(WATCHDOG_S)

    def stop(self):
        """Stops it, and returns when it does not run any more."""
        os.kill(self.process.pid, signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self):
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def ends_well(self):
        self.process.stdin.close()
        assert self.process.wait(WATCHDOG_S) == 0


def open_descriptors():
    """What this process has open that links are made of."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(("socket:", "anon_inode:[eventfd", "/memfd:")):
            found.append(target.split(" ")[0])
    return sorted(found)


def mapped_rings():
    """How many shared memories of links this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("/memfd:gimlax" in line for line in maps)
