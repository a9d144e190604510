"""Asking a live device what its backend can do: each capability is tried, never looked up.

The questions are tiny programs of a few bytes. They run here for a backend that is already live,
and in a process of their own for one that is only a candidate, since a bad plugin may abort.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax._jax import Device, cost_of
from gimlax.devices.backends import Capabilities

__all__ = ["QUESTIONS", "ask", "capabilities"]

Finding = tuple[str, bool, str]


@functools.lru_cache(maxsize=64)
def capabilities(device: Device) -> Capabilities:
    """Asks the backend of a live device everything, once: what it can do does not change."""
    return Capabilities.of(ask(name, device) for name in QUESTIONS)


def ask(name: str, device: Device) -> Finding:
    """Asks for one capability: (capability, found, how)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "donated buffers were not usable" is an answer here
        try:
            found, how = QUESTIONS[name](device)
        except Exception as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            found, how = False, f"tried: {first_line}"
    return name, found, how


def _compile(device: Device) -> Any:
    """A small program that may keep its result in the place of its argument. [64] float32"""
    sharding = jax.sharding.SingleDeviceSharding(device)
    argument = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding)
    return jax.jit(lambda x: x + 1, donate_argnums=0).lower(argument).compile()


def _memory_stats(device: Device) -> tuple[bool, str]:
    stats = device.memory_stats()
    return bool(stats), f"memory_stats() has {len(stats)} entries" if stats else "it gave nothing"


def _host_memory(device: Device) -> tuple[bool, str]:
    spare = np.zeros(4096 + 64, np.uint8)  # PJRT uses host memory as it is only if well aligned
    host = spare[-spare.ctypes.data % 64 :][:4096]
    same = jax.device_put(host, device).unsafe_buffer_pointer() == host.ctypes.data
    return same, f"a host array was {'used in place' if same else 'copied'} by device_put"


def _donation(device: Device) -> tuple[bool, str]:
    argument = jax.device_put(np.ones(64, np.float32), device)
    jax.block_until_ready(_compile(device)(argument))
    gone = argument.is_deleted()
    return gone, f"a donated argument was {'given up' if gone else 'kept'}"


def _cost_analysis(device: Device) -> tuple[bool, str]:
    cost = _compile(device).cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return bool(cost and cost.get("flops")), "it said FLOPs" if cost else "it gave nothing"


def _memory_analysis(device: Device) -> tuple[bool, str]:
    found = getattr(_compile(device).memory_analysis(), "argument_size_in_bytes", 0)
    return found > 0, f"it said {found} bytes of arguments"


def _grouped_products(device: Device) -> tuple[bool, str]:
    rows, groups, width = 64, 8, 128
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = [((rows, width), "float32"), ((groups, width, width), "float32"), ((groups,), "int32")]
    avals = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    flops = cost_of(jax.jit(jax.lax.ragged_dot).lower(*avals).compile()).get("flops", 0.0)
    share = flops / (2 * rows * width * width)
    if not share >= 0.9:  # of a kernel that nobody counts
        return False, "it did not say the FLOPs of a ragged product"
    return (
        share < 2,
        f"a ragged product of {groups} groups took {share:.1f} times one group's FLOPs",
    )


def _serialization(device: Device) -> tuple[bool, str]:
    stored = device.client.serialize_executable(_compile(device).runtime_executable())
    return bool(stored), f"a program was stored in {len(stored)} bytes"


def _callbacks(device: Device) -> tuple[bool, str]:
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    call = jax.jit(lambda x: jax.pure_callback(lambda v: np.asarray(v) + 1, shape, x))
    result = np.asarray(call(jax.device_put(np.ones(4, np.float32), device)))
    right = bool((result == 2).all())
    return right, "pure_callback ran" if right else f"pure_callback gave {result}, not 2"


# The riskiest last: where one ends the process, the others have been answered.
QUESTIONS: Mapping[str, Callable[[Device], tuple[bool, str]]] = MappingProxyType(
    {
        "memory_stats": _memory_stats,
        "host_memory": _host_memory,
        "donation": _donation,
        "cost_analysis": _cost_analysis,
        "memory_analysis": _memory_analysis,
        "grouped_products": _grouped_products,
        "serialization": _serialization,
        "callbacks": _callbacks,
    }
)
