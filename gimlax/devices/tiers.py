"""The memories that a device of a mesh can reach, nearest first. Units: bytes, bytes/s."""

from dataclasses import dataclass

__all__ = ["Tier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One memory of one device.

    Attributes:
        name: 'on_chip', 'device' or 'host'.
        num_bytes: what one device has of it.
        bytes_per_s: how fast the device reads it.
    """

    name: str
    num_bytes: int
    bytes_per_s: float
