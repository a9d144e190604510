"""How much two devices of one host slow each other down when both compute.

Units: seconds.
"""

import threading
import time
from collections.abc import Callable

from gimlax import _jax
from gimlax.devices.measuring.programs import chain, matmul
from gimlax.devices.measuring.timing import Clock, compiled, repeated, time_calls

__all__ = ["measure_slowdown"]

_BUDGET_S = 0.25


def measure_slowdown(
    first: _jax.Device, second: _jax.Device, *, clock: Clock = time.perf_counter
) -> float:
    """Seconds of the same work with the other device at work over seconds without, the larger of a
    product and of a chain that waits for memory; at least 1."""
    factors = []
    for benchmark, times in (
        (matmul((1, 512, 512, 512), "float32", "mk,kn"), 4),
        (chain("add", 2**22, "float32"), 1),
    ):
        program = repeated(benchmark.function, times, 0)
        calls = [compiled(program, benchmark.arguments(), device) for device in (first, second)]
        alone_s = time_calls(calls[0], budget_s=_BUDGET_S, clock=clock).seconds
        done = threading.Event()

        def disturb(call: Callable[[], object] = calls[1], done: threading.Event = done) -> None:
            while not done.is_set():
                call()

        other = threading.Thread(target=disturb)
        other.start()
        try:
            beside_s = time_calls(calls[0], budget_s=_BUDGET_S, clock=clock).seconds
        finally:
            done.set()
            other.join()
        factors.append(beside_s / alone_s)
    return max(1.0, *factors)
