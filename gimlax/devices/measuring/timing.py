"""How one program is timed on a machine that others use too.

A figure is the lower quartile of repeated calls, each waited for: what a call takes when nobody is
in the way. The speed of a shared machine also drifts over minutes, so a fixed probe is timed in
between and a figure is given as it would be at the probe's reference speed. Units: seconds.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax

__all__ = ["Clock", "Probe", "Timing", "compiled", "repeated", "time_calls"]

Clock = Callable[[], float]  # seconds, from any start

_MIN_REPEATS, _MAX_REPEATS = 5, 60
_FIRST_PROBES = 20
_QUIET = 1.15  # times the best probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Lower quartile of the repeats, and the distance of their quartiles over their median."""

    seconds: float
    spread: float
    repeats: int


def time_calls(
    call: Callable[[], Any],
    *,
    budget_s: float = 0.015,
    warmup: int = 2,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Times a call that waits for its result, for about `budget_s` and 5 to 60 times."""
    for _ in range(warmup):
        call()
    samples: list[float] = []
    start_s = clock()
    while len(samples) < _MIN_REPEATS or (
        len(samples) < _MAX_REPEATS and clock() - start_s < budget_s
    ):
        begin_s = clock()
        call()
        samples.append(clock() - begin_s)
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return Timing(seconds=float(low), spread=float((high - low) / middle), repeats=len(samples))


def repeated(function: Callable[..., Any], times: int, touched: int) -> Callable[..., Any]:
    """A function done several times in one program, each after the one before.

    On its own a small operation pays for waking threads that a stage with many of them wakes once,
    so it is timed among its like. One element of argument `touched` is overwritten with one of the
    result before, so that no compiler takes the repeats for the same.
    """

    def chained(*args: jax.Array) -> Any:
        result = function(*args)
        for _ in range(times - 1):
            held = args[touched]
            element = result.ravel()[0].astype(held.dtype).reshape((1,) * held.ndim)
            held = jax.lax.dynamic_update_slice(held, element, (0,) * held.ndim)
            args = (*args[:touched], held, *args[touched + 1 :])
            result = function(*args)
        return result

    return chained


def compiled(
    function: Callable[..., Any], args: tuple[Any, ...], *devices: _jax.Device
) -> Callable[[], Any]:
    """A call of a function on arrays that lie on a device, compiled for it; it waits.

    On several devices each of them does all of it, on copies of its own, and all at once.
    """
    sharding: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(devices[0])
    if len(devices) > 1:
        mesh = jax.sharding.Mesh(np.array(devices), ("device",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(args, sharding)
    program = jax.jit(function, out_shardings=sharding).lower(*placed).compile()
    return lambda: jax.block_until_ready(program(*placed))


class Probe:
    """A fixed program that computes for some milliseconds and reads 16 MiB.

    `best_s` is the least that it ever took, `last_s` what it took last.

    Shorter ones jump between two paces, as threads happen to be placed, and so do those that write
    as much: an allocator takes large results from the system or from what it kept.
    """

    def __init__(self, device: _jax.Device, clock: Clock = time.perf_counter) -> None:
        def program(x: jax.Array, row: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
            for _ in range(4):
                x = jnp.dot(x, x) * 1e-3
            return x, jnp.dot(row, weights)

        args = (jnp.ones((512, 512)), jnp.ones((1, 2048)), jnp.ones((2048, 2048)))
        self._call = compiled(program, args, device)
        self._clock = clock
        self.last_s = self.best_s = math.inf
        for _ in range(_FIRST_PROBES):
            self.seconds()

    def seconds(self) -> float:
        """How long it takes now."""
        self.last_s = time_calls(self._call, budget_s=0.0, warmup=1, clock=self._clock).seconds
        self.best_s = min(self.best_s, self.last_s)
        return self.last_s

    def undisturbed(self, seconds: float) -> bool:
        """Whether a probe that took so long had the machine to itself."""
        return seconds <= _QUIET * self.best_s
