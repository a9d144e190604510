"""What a cost model asks of whoever knows a device: the seconds of one operation."""

from typing import Protocol

from gimlax.graph.operations import Operation

__all__ = ["CARD", "DECLARED", "FITTED", "MEASURED", "Rates"]

CARD = "card"  # figures of a data sheet
FITTED = "fitted"  # a data sheet and coefficients that were fitted to measurements of its kind
MEASURED = "measured"  # a calibration of this very mesh
DECLARED = "declared"  # of a link: what the cluster says


class Rates(Protocol):
    """Seconds of operations on one JAX device."""

    @property
    def source(self) -> str:
        """What the seconds rest on: CARD, FITTED or MEASURED."""
        ...

    def seconds(self, operation: Operation) -> float:
        """Seconds of doing `operation` once, however often it is done (`count`).

        Raises:
            SpecError: there is no figure for its dtype.
        """
        ...
