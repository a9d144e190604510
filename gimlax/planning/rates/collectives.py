"""Seconds of a collective on a ring: a launch, a latency for each step, and bytes.

The alpha-beta model of Thakur, Rabenseifner and Gropp 2005 (Optimization of Collective
Communication Operations in MPICH, section 4): on n devices a gather or a scatter of an array of B
bytes takes n - 1 steps that move B / n each; a sum is a scatter and a gather; an exchange of all
with all is charged like a gather of what one device holds. Units: bytes, bytes/s, seconds.
"""

from typing import Protocol

from gimlax.partition import ALL_REDUCE, Collective

__all__ = ["LAUNCH_S", "REACHED", "STEP_S", "Joined", "collective_s"]

# Least relative squares over the 252 rows of all four kinds on 2, 4 and 8 H100 with NCCL 2.29.2 in
# aiconfigurator-core 0.12 (systems/data/h100_sxm/comm/nccl): median error 12 %.
LAUNCH_S = 5.8e-6
STEP_S = 0.73e-6
REACHED = 0.61  # of the peak bandwidth


class Joined(Protocol):
    """What joins the devices of a group."""

    @property
    def bytes_per_s(self) -> float:
        """What one device can send, one way."""
        ...


def collective_s(collective: Collective, interconnect: Joined) -> float:
    """Seconds of one collective between devices that `interconnect` joins."""
    n = collective.num_devices
    if n < 2:
        return 0.0
    steps = (n - 1) * (2 if collective.kind == ALL_REDUCE else 1)
    step_s = STEP_S + collective.num_bytes / n / (REACHED * interconnect.bytes_per_s)
    return LAUNCH_S + steps * step_s
