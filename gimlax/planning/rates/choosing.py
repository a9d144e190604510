"""Which figures price a mesh: a calibration, else what was fitted to its kind, else the card.

Kinds are compared by figures of one sort: what was fitted to measured kernels lies well above the
roofline of a card, so where nothing was fitted to some kind of a cluster the cards decide for all.
"""

from dataclasses import replace

from gimlax.devices import Calibration, Cluster, DeviceKind
from gimlax.planning.rates.collectives import Collectives, MeasuredCollectives, by_kind
from gimlax.planning.rates.fitted import Fitted
from gimlax.planning.rates.measured import Measured
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import Rates

__all__ = ["card_for", "collectives_for", "rates_for", "reads_on_chip"]


def reads_on_chip(kind: DeviceKind, *, held_on_chip: bool = False) -> bool:
    """Whether stages read at the bandwidth on the chip, as far as the card knows it.

    Args:
        kind: of the devices.
        held_on_chip: whether stages have to fit on the chip; a device that has no memory beyond it
            holds them there anyway.
    """
    nothing_below = kind.on_chip_bytes is not None and kind.memory_bytes <= kind.on_chip_bytes
    return kind.on_chip_bytes_per_s is not None and (held_on_chip or nothing_below)


def card_for(cluster: Cluster, mesh_name: str, *, held_on_chip: bool = False) -> DeviceKind:
    """The card of a mesh, with the bandwidth of the memory that its stages lie in."""
    kind = cluster.kind(mesh_name)
    on_chip_bytes_per_s = kind.on_chip_bytes_per_s
    if on_chip_bytes_per_s is None or not reads_on_chip(kind, held_on_chip=held_on_chip):
        return kind
    return replace(kind, memory_bytes_per_s=on_chip_bytes_per_s)


def rates_for(
    cluster: Cluster,
    mesh_name: str,
    calibration: Calibration | None = None,
    *,
    resident_bytes: float = 0.0,
    held_on_chip: bool = False,
) -> Rates:
    """The best rates that there are for the devices of a mesh, of one sort with its rivals.

    Args:
        cluster: that has the mesh.
        mesh_name: of the mesh.
        calibration: measured figures, which go before those of the card.
        resident_bytes: parameters that a device goes through between two uses of the same one,
            which decides whether a cache still holds them.
        held_on_chip: whether stages have to fit on the chip: they are then read as fast as that by
            card, and are no more than a sweep over so much by calibration.

    Raises:
        SpecError: the calibration lacks a class of operation.
    """
    kind = card_for(cluster, mesh_name, held_on_chip=held_on_chip)
    measured = None if calibration is None else calibration.mesh(mesh_name)
    if measured is not None:
        if held_on_chip and kind.on_chip_bytes is not None:
            resident_bytes = min(resident_bytes, kind.on_chip_bytes)
        return Measured.of(measured, resident_bytes)
    fitted = Fitted.of(kind)
    return fitted if fitted and _all_fitted(cluster, calibration) else Roofline(kind)


def _all_fitted(cluster: Cluster, calibration: Calibration | None) -> bool:
    """Whether something was fitted to each kind that is not calibrated."""
    kinds = {
        mesh.device_kind: mesh.name
        for mesh in cluster.meshes
        if calibration is None or calibration.mesh(mesh.name) is None
    }
    return all(Fitted.of(cluster.kind(name)) for name in kinds.values())


def collectives_for(
    cluster: Cluster, mesh_name: str, calibration: Calibration | None = None
) -> Collectives | None:
    """What is known of collectives between the devices of a mesh.

    Returns:
        Those of its calibration, else of its kind; None where it has one device, or nothing says
        how several are joined.
    """
    if cluster.mesh(mesh_name).num_devices < 2:
        return None
    measured = None if calibration is None else calibration.mesh(mesh_name)
    timed = None if measured is None else MeasuredCollectives.of(measured)
    return timed or by_kind(cluster.kind(mesh_name))
