"""Which figures price a mesh: a calibration, else what was fitted to its kind, else the card."""

from gimlax.devices import Calibration, Cluster
from gimlax.planning.rates.fitted import Fitted
from gimlax.planning.rates.measured import Measured
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import Rates

__all__ = ["rates_for"]


def rates_for(
    cluster: Cluster,
    mesh_name: str,
    calibration: Calibration | None = None,
    *,
    resident_bytes: float = 0.0,
) -> Rates:
    """The best rates that there are for the devices of a mesh.

    Args:
        cluster: that has the mesh.
        mesh_name: of the mesh.
        calibration: measured figures, which go before those of the card.
        resident_bytes: parameters that a device goes through between two uses of the same one,
            which decides whether a cache still holds them.

    Raises:
        SpecError: the calibration lacks a class of operation.
    """
    measured = None if calibration is None else calibration.mesh(mesh_name)
    if measured is not None:
        return Measured.of(measured, resident_bytes)
    kind = cluster.kind(mesh_name)
    return Fitted.of(kind) or Roofline(kind)
