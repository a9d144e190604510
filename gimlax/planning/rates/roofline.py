"""The plain roofline (Williams et al. 2009): an operation computes or waits for memory.

It takes the longer of its FLOPs over the peak of their dtype and its bytes over the bandwidth: what
a data sheet knows, and a lower bound of what a device does. Units: seconds.
"""

from dataclasses import dataclass

from gimlax.devices import DeviceKind
from gimlax.graph.operations import Operation
from gimlax.planning.rates.seam import CARD

__all__ = ["Roofline"]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Rates by the card of a device kind."""

    kind: DeviceKind

    @property
    def source(self) -> str:
        """A card."""
        return CARD

    def seconds(self, operation: Operation) -> float:
        """The longer of compute and memory.

        Raises:
            SpecError: the card has no peak for the dtype.
        """
        return max(self.compute_s(operation), self.memory_s(operation))

    def compute_s(self, operation: Operation) -> float:
        """Seconds of its FLOPs at the peak."""
        return operation.flops / self.kind.peak(operation.dtype) if operation.flops else 0.0

    def memory_s(self, operation: Operation) -> float:
        """Seconds of its bytes at the bandwidth."""
        return operation.num_bytes / self.kind.memory_bytes_per_s
