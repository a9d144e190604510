"""Another host on this machine: a network namespace, and a relay of packets to it by user space.

The two ends are TUN devices, one here and one there. What goes between them is read and written by
a thread of this process, which drops, delays, repeats, reorders and corrupts packets by seed. No
packet filter or queueing of the kernel takes part.
"""

import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter

from gimlax.runtime.workers.launching import ChildProcesses

HERE, THERE = "10.77.0.1", "10.77.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_CLONE_NEWNET = 0x40000000
_DELAY_S = 0.02
_MOST_BYTES = 1 << 16


class OtherHost:
    """A namespace of its own, with packets to and from it spoilt at a rate.

    Raises:
        OSError, subprocess.CalledProcessError: this machine does not allow it.
    """

    def __init__(self, seed):
        self.name = f"gimlax{os.getpid()}"
        self.done = Counter()
        self.rate = 0.0
        self._random = random.Random(seed)
        self._ends = []
        self._ending = threading.Event()
        _ip("netns", "add", self.name)
        try:
            self._ends = [self._tun("gxh"), self._inside(lambda: self._tun("gxt"))]
            for where, device, address in (((), "gxh", HERE), (("-n", self.name), "gxt", THERE)):
                _ip(*where, "addr", "add", f"{address}/24", "dev", device)
                _ip(*where, "link", "set", device, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._relay, name="packets", daemon=True)
        self._thread.start()

    def close(self):
        self._ending.set()
        if hasattr(self, "_thread"):
            self._thread.join()
        for end in self._ends:
            os.close(end)
        _ip("netns", "del", self.name)

    def _tun(self, device):
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        wanted = struct.pack("16sH", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(end, _TUNSETIFF, wanted)
        return end

    def _inside(self, make):
        """What `make` gives in a thread of the namespace."""
        found = []

        def enter():
            with open(f"/var/run/netns/{self.name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0:
                    found.append(make())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if not found:
            raise OSError("a namespace could not be entered")
        return found[0]

    def _relay(self):
        later = []  # (when, end, packet)
        while not self._ending.is_set():
            ready, _, _ = select.select(self._ends, [], [], 0.005)
            for end in ready:
                other = self._ends[1 - self._ends.index(end)]
                packet = bytearray(os.read(end, _MOST_BYTES))
                fault = None
                if self._random.random() < self.rate:
                    fault = self._random.choice(("drop", "delay", "repeat", "reorder", "corrupt"))
                    self.done[fault] += 1
                if fault == "drop":
                    continue
                if fault == "corrupt":
                    packet[self._random.randrange(len(packet))] ^= 1 << self._random.randrange(8)
                if fault in ("delay", "reorder"):
                    wait_s = _DELAY_S if fault == "delay" else 0.001
                    later.append((time.monotonic() + wait_s, other, packet))
                    continue
                for _ in range(2 if fault == "repeat" else 1):
                    self._write(other, packet)
            now = time.monotonic()
            for item in [item for item in later if item[0] <= now]:
                later.remove(item)
                self._write(*item[1:])

    def _write(self, end, packet):
        with contextlib.suppress(OSError):  # no packet any more, once a bit of its head is wrong
            os.write(end, packet)


class Hosts(ChildProcesses):
    """Starts workers here and on the other host, by the address in their description."""

    def __init__(self, other):
        super().__init__()
        self._other = other

    def start(self, spec, place=0, *, timeout_s):
        prefix = ["ip", "netns", "exec", self._other.name] if spec.host == THERE else []
        return self.launch(spec, prefix, listen=spec.host, timeout_s=timeout_s)


def _ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True)
