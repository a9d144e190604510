"""What devices of a mesh send each other along one of its axes so that arrays lie as they should.

Units: bytes.
"""

from dataclasses import dataclass

__all__ = ["ALL_GATHER", "ALL_REDUCE", "ALL_TO_ALL", "PERMUTE", "REDUCE_SCATTER", "Collective"]

ALL_REDUCE = "all_reduce"
ALL_GATHER = "all_gather"
REDUCE_SCATTER = "reduce_scatter"
ALL_TO_ALL = "all_to_all"
PERMUTE = "permute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective.

    Attributes:
        kind: ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL or PERMUTE.
        num_bytes: what one device holds of the array before or after, whichever is more: all of a
            sum, a gathered array after, a scattered one before.
        axis: the mesh axis; of a permutation the first of the two whose order changes.
        num_devices: its size.
    """

    kind: str
    num_bytes: int
    axis: str
    num_devices: int
