"""How devices of one group reach each other: what carries their collectives.

Cards and vendors quote either one direction or both summed; here it is always what one device can
send, one way, so that figures of different makers compare.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.errors import SpecError

__all__ = ["Interconnect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """The links between devices of one group.

    Attributes:
        name: as the vendor calls it.
        bytes_per_s: what one device can send, all its links together; it receives as much.
        num_devices: the largest group that is joined so, None where it is not known.
    """

    name: str
    bytes_per_s: float
    num_devices: int | None = None

    def __post_init__(self) -> None:
        if wrong := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"interconnect {shown(self.name)}: {'; '.join(wrong)}")

    def _mistakes(self) -> Iterator[str]:
        if not (self.bytes_per_s > 0 and math.isfinite(self.bytes_per_s)):
            yield f"bytes_per_s is {self.bytes_per_s}; give a positive figure"
        if self.num_devices is not None and self.num_devices < 2:
            yield f"num_devices is {self.num_devices}; give at least 2 or leave it out"
