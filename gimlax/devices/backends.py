"""What a backend of this process is and can do: found by asking, never by its name.

A *backend* is a PJRT client under the name that it was registered with; several may call themselves
by the same platform name, so only the registered one identifies it. Units: bytes.
"""

from dataclasses import dataclass

__all__ = ["Backend", "Capabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was asked of a backend and found.

    Attributes:
        donation: a donated argument is given up, and its memory can be used again.
        memory_stats: `Device.memory_stats()` says how much memory is in use.
        cost_analysis: a compiled program tells its FLOPs.
        memory_analysis: a compiled program tells the bytes of its arguments and temporaries.
        callbacks: `jax.pure_callback` runs.
        serialization: a compiled program can be written, so that the persistent cache works.
        host_memory: the memory of its devices is the host's own; its devices then count as drawing on the host's
            compute and memory.
        how: how each was found: (capability, sentence).
    """

    donation: bool
    memory_stats: bool
    cost_analysis: bool
    memory_analysis: bool
    callbacks: bool
    serialization: bool
    host_memory: bool
    how: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One backend that this process has, or why it has it not.

    `name` is the registered one; `reason` says why it is not available, or what keeps it from being
    planned for, and is empty if nothing does. `memory_bytes` is per device, 0 where unknown.
    """

    name: str
    available: bool
    reason: str = ""
    device_kind: str = ""
    num_devices: int = 0
    memory_bytes: int = 0
    capabilities: Capabilities | None = None
    version: str = ""
