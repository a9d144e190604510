"""Which figures price a mesh: a calibration of it before its card."""

from gimlax.devices import Cluster
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import Rates

__all__ = ["rates_for"]


def rates_for(cluster: Cluster, mesh_name: str) -> Rates:
    """The best rates that there are for the devices of a mesh."""
    return Roofline(cluster.kind(mesh_name))
