"""What a backend of this process is and can do: found by asking, never by its name.

A *backend* is a PJRT client under the name that it was registered with. Several may call themselves
by the same platform, with equal device ids: only the registered name identifies one. Units: bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

__all__ = ["Backend", "Capabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was asked of a backend and found.

    Attributes:
        donation: a donated argument is really given up.
        memory_stats: `Device.memory_stats()` says how much memory is in use.
        cost_analysis: a compiled program says its FLOPs.
        memory_analysis: a compiled program says the bytes of its arguments and temporaries.
        callbacks: `jax.pure_callback` runs.
        serialization: a compiled program can be stored, so the persistent compilation cache works.
        host_memory: device memory is the host's own (an array of the host is used without a copy);
            such devices count as sharing the host's compute and memory.
        grouped_products: `jax.lax.ragged_dot` gives each row the weights of its group alone, where
            others make a product of all rows with all groups.
        how: how each was found: (capability, sentence).
    """

    donation: bool
    memory_stats: bool
    cost_analysis: bool
    memory_analysis: bool
    callbacks: bool
    serialization: bool
    host_memory: bool
    grouped_products: bool
    how: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, findings: "Iterable[tuple[str, bool, str]]") -> "Capabilities":
        """From findings (capability, found, how); what is not among them was not asked: False."""
        findings = tuple(findings)
        found = dict.fromkeys(cls.names(), False)
        found.update((name, answer) for name, answer, _ in findings)
        return cls(**found, how=tuple((name, how) for name, _, how in findings))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The capabilities, in the order of the record."""
        return tuple(field.name for field in fields(cls) if field.name != "how")

    def __str__(self) -> str:
        found = [name for name in self.names() if getattr(self, name)]
        missing = [f"no {name}" for name in self.names() if not getattr(self, name)]
        return ", ".join(found + missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One backend that this process has, or why it has it not.

    `name` is the registered one. `reason` says why it is not available or not planned for; it is
    empty if nothing is wrong. `memory_bytes` is per device, 0 where unknown; `version` is what the
    client says of itself.
    """

    name: str
    available: bool
    reason: str = ""
    device_kind: str = ""
    num_devices: int = 0
    memory_bytes: int = 0
    capabilities: Capabilities | None = None
    version: str = ""
