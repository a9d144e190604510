"""Times the way from one mesh to another, and tells a copy from memory that both use.

Between two clients on host memory an array may arrive without moving; then a forced copy is timed,
because an infinite bandwidth is true of nothing that a receiver may write to. Units: seconds,
bytes.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.devices.measuring.timing import Clock, time_calls
from gimlax.devices.samples import MeasuredLink

__all__ = ["aliases", "fit_link", "measure_link"]

_LEAST_SHARE = 0.01  # of the longest time; what bytes add below it is noise
_SIZES = tuple(2**exponent for exponent in (10, 14, 18, 20, 22, 24, 25))  # bytes


def measure_link(
    source: str,
    source_device: _jax.Device,
    target: str,
    target_device: _jax.Device,
    *,
    clock: Clock = time.perf_counter,
) -> MeasuredLink:
    """Latency, bandwidth and aliasing of the way between two devices."""
    here, there = map(jax.sharding.SingleDeviceSharding, (source_device, target_device))
    seconds = []
    for num_bytes in _SIZES:
        array = jax.block_until_ready(jax.device_put(jnp.ones(num_bytes // 4), here))
        seconds.append(
            time_calls(
                lambda array=array: jax.block_until_ready(
                    jax.device_put(array, there, may_alias=False)
                ),
                budget_s=0.1,
                clock=clock,
            ).seconds
        )
    latency_s, bandwidth = fit_link(_SIZES, seconds)
    array = jax.block_until_ready(jax.device_put(jnp.ones(2**16), here))
    return MeasuredLink(
        source=source,
        target=target,
        latency_s=latency_s,
        bandwidth_bytes_per_s=bandwidth,
        aliases=aliases(array, jax.block_until_ready(jax.device_put(array, there))),
    )


def fit_link(sizes: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    """Latency and bandwidth, by least squares of the relative error."""
    taken = np.asarray(seconds, float)
    design = np.stack([np.ones(len(sizes)), np.asarray(sizes, float)], axis=1) / taken[:, None]
    (latency_s, per_byte_s), *_ = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)
    fastest = float((np.asarray(sizes) / taken).max())
    noticed = per_byte_s * max(sizes) > _LEAST_SHARE * taken.max()
    return max(float(latency_s), 0.0), float(1 / per_byte_s) if noticed else fastest


def aliases(array: jax.Array, moved: jax.Array) -> bool:
    """Whether an array and what was moved elsewhere are the same memory."""
    try:
        return array.unsafe_buffer_pointer() == moved.unsafe_buffer_pointer()
    except (AttributeError, RuntimeError, ValueError):
        return False  # memory without an address that the host could compare
