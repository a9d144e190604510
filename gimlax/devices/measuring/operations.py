"""Times one operation as it runs inside a stage, and what a call costs beyond its operations.

Units: seconds.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from gimlax import _jax
from gimlax.devices.measuring.programs import Microbenchmark, matmul
from gimlax.devices.measuring.timing import Clock, Probe, Timing, compiled, repeated, time_calls
from gimlax.devices.samples import Sample

__all__ = ["LONGEST_S", "crowding", "dispatch_s", "guess_s", "measure"]

# Repeats fill about this long, by a guess of what two cores do, so that a small operation is timed
# among its like and a large one is not timed for nothing.
_PROGRAM_S = 0.4e-3
_MOST_REPEATS = 8
_ENOUGH, _MOST_VISITS = 2, 4
LONGEST_S = 0.05  # what is guessed to take longer is carried to by the law of what takes less


def guess_s(benchmark: Microbenchmark) -> float:
    """Seconds on one device, by what two cores do; every group works on every row."""
    times = benchmark.dims[0] if benchmark.kind == "grouped" else 1
    return times * benchmark.flops / 2e11 + benchmark.num_bytes / 3e10 + 5e-6


def crowding(devices: Sequence[_jax.Device], *, clock: Clock = time.perf_counter) -> float:
    """How many times longer a product takes if all devices do it at once: 1 to their number.

    Devices of their own silicon do not mind each other; those that a host makes of its cores do.
    """
    if len(devices) == 1:
        return 1.0
    benchmark = matmul((1, 512, 512, 512), "float32", "mk,kn")
    calls = [
        compiled(benchmark.function, benchmark.arguments(), *of) for of in (devices[:1], devices)
    ]
    one_s, all_s = (time_calls(call, budget_s=0.05, clock=clock).seconds for call in calls)
    return min(max(all_s / one_s, 1.0), float(len(devices)))


def dispatch_s(devices: Sequence[_jax.Device], *, clock: Clock = time.perf_counter) -> float:
    """What a call takes beyond its operations: the host's part, and waking the devices' threads.

    Small products are done once and eight times in one program; what is left of the first when one
    of the others is taken off is the call.
    """
    found = []
    for dims in ((1, 8, 512, 512), (1, 16, 256, 1024), (1, 32, 512, 256)):
        benchmark = matmul(dims, "float32", "mk,kn")
        args = benchmark.arguments()
        calls = [
            compiled(repeated(benchmark.function, times, 0), args, *devices)
            for times in (1, _MOST_REPEATS)
        ]
        visits = [
            [time_calls(call, budget_s=0.05, clock=clock).seconds for call in calls]
            for _ in range(3)
        ]
        once, often = np.min(visits, axis=0)
        found.append(max(once - (often - once) / (_MOST_REPEATS - 1), 0.05 * once))
    return float(np.median(found))


def measure(
    benchmark: Microbenchmark,
    devices: Sequence[_jax.Device],
    probe: Probe,
    call_s: float,
    *,
    crowd: float = 1.0,
    in_time: Callable[[], bool],
    clock: Clock = time.perf_counter,
) -> Sample:
    """Times an operation, the dispatch taken off, at the best speed that the probe has seen.

    All devices do it at once, as those of a mesh do: what they share is then in the figure.

    As long as there is time it is visited until it was twice undisturbed, or four times; the
    fastest undisturbed visit counts, since threads of a pool may share a core for a while and
    nothing can be faster than it is. Without one, the visit that was disturbed least counts, at the
    speed of its probes.

    Args:
        benchmark: the operation.
        devices: of a mesh.
        probe: on one of them.
        call_s: what a call takes beyond its operations.
        crowd: as `crowding` finds it.
        in_time: whether there is time for more visits.
        clock: seconds.
    """
    args = benchmark.arguments()
    each_s = crowd * guess_s(benchmark)
    times = 1 if benchmark.alone else round(min(max(_PROGRAM_S / each_s, 1), _MOST_REPEATS))
    smallest = min(range(len(args)), key=lambda i: args[i].nbytes)
    call = compiled(repeated(benchmark.function, times, smallest), args, *devices)
    visits: list[tuple[Timing, float, float]] = []  # seconds of the probe before and after
    quiet: list[tuple[Timing, float, float]] = []
    while not visits or (len(visits) < _MOST_VISITS and len(quiet) < _ENOUGH and in_time()):
        before_s = probe.last_s
        visits.append((time_calls(call, clock=clock), before_s, probe.seconds()))
        quiet = [visit for visit in visits if probe.undisturbed(max(visit[1:]))]
    # The probes of a disturbed visit may have suffered more than it did: their mean is less wrong.
    timing, *probes_s = (
        min(quiet, key=lambda visit: visit[0].seconds)
        if quiet
        else min(visits, key=lambda visit: sum(visit[1:]))
    )
    took_s = timing.seconds * probe.best_s / (sum(probes_s) / len(probes_s))
    return Sample(
        kind=benchmark.kind,
        dims=benchmark.dims,
        dtype=benchmark.dtype,
        layout=benchmark.layout,
        flops=benchmark.flops,
        transcendentals=benchmark.transcendentals,
        num_bytes=benchmark.num_bytes,
        out_itemsize=benchmark.out_itemsize,
        seconds=max(took_s - call_s, 0.3 * took_s) / times,
        spread=timing.spread,
    )
