"""Times collectives between the devices of a mesh: sums and gathers, over all and over parts.

A mesh may split its devices between two axes, so every divisor of their number is a size that a
collective may have; all groups of that size work at once, as they do in a stage. Units: seconds,
bytes.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.devices.measuring.timing import Clock, repeated, time_calls
from gimlax.devices.samples import Sample

__all__ = ["group_sizes", "measure_collectives"]

KINDS = ("all_reduce", "all_gather")
SIZES = tuple(2**exponent for exponent in (12, 16, 20, 23))  # bytes
_REPEATS = 5
_VISITS = 2
_LEAST_SHARE = 0.02  # of one call, below which what a collective takes is noise
_AXES = ("group", "member")


def group_sizes(num_devices: int) -> list[int]:
    """Over how many devices a collective may go."""
    return [size for size in range(2, num_devices + 1) if num_devices % size == 0]


def measure_collectives(
    devices: Sequence[_jax.Device],
    *,
    step: Callable[[str], None] = lambda what: None,
    clock: Clock = time.perf_counter,
) -> tuple[Sample, ...]:
    """Seconds of a sum and of a gather by how many devices take part and how many bytes there are.

    Args:
        devices: of a mesh.
        step: told what comes next.
        clock: seconds.

    Returns:
        Samples with dims (devices that take part, bytes): of the whole array in a sum, of the
        gathered one in a gather. Empty where the backend has no collectives.
    """
    try:
        return tuple(_samples(devices, step, clock))
    except (RuntimeError, NotImplementedError):  # a backend may lack them; it then splits nothing
        return ()


def _samples(
    devices: Sequence[_jax.Device], step: Callable[[str], None], clock: Clock
) -> Iterator[Sample]:
    for size in group_sizes(len(devices)):
        grid = np.array(devices).reshape(-1, size)
        mesh = jax.sharding.Mesh(grid, _AXES)
        for kind in KINDS:
            step(f"{kind} over {size}")
            for num_bytes in SIZES:
                # What is in the call beyond the collectives is in both, and falls away.
                calls = [_compiled(mesh, kind, num_bytes, times) for times in (1, _REPEATS)]
                visits = [
                    [time_calls(call, clock=clock).seconds for call in calls]
                    for _ in range(_VISITS)
                ]
                once, often = np.min(visits, axis=0)
                yield Sample(
                    kind=kind,
                    dims=(size, num_bytes),
                    dtype="float32",
                    num_bytes=float(num_bytes),
                    seconds=float(max((often - once) / (_REPEATS - 1), _LEAST_SHARE * once)),
                )


def _compiled(
    mesh: jax.sharding.Mesh, kind: str, num_bytes: int, times: int
) -> Callable[[], object]:
    """A call that does a collective so many times, each after the one before; it waits."""
    size = mesh.shape["member"]

    def collective(x: jax.Array) -> jax.Array:
        if kind == "all_reduce":
            return jax.lax.psum(x, "member")
        return jax.lax.all_gather(x, "member", tiled=True)

    spec = jax.sharding.PartitionSpec(_AXES)
    program = jax.shard_map(
        repeated(collective, times, 0), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    own = num_bytes // 4 // (1 if kind == "all_reduce" else size)
    array = jnp.ones(own * mesh.size)
    placed = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
    call = jax.jit(program).lower(placed).compile()
    return lambda: jax.block_until_ready(call(placed))
