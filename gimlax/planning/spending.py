"""Dollars and joules of the seconds that a mesh is held or works.

A mesh is paid by the hour for all of its devices, whether they compute or wait. It draws its
thermal design power while it computes, which is the most that it may draw for long, and idle power
otherwise; a stage that waits for memory draws less, so joules are an upper estimate. What no card
and no cluster file says is unknown, not zero. Units: seconds, US dollars, joules, watts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gimlax.devices import Cluster
from gimlax.errors import SpecError

__all__ = ["Spending", "spending"]

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a mesh costs by the second; None where it is not known.

    Attributes:
        mesh: its name.
        usd_per_s: of all its devices.
        busy_watts, idle_watts: of all its devices.
    """

    mesh: str
    usd_per_s: float | None
    busy_watts: float | None
    idle_watts: float | None

    def usd(self, held_s: float) -> float | None:
        """Dollars of holding the mesh, None where it has no price."""
        return None if self.usd_per_s is None else self.usd_per_s * held_s

    def joules(self, busy_s: float, idle_s: float = 0.0) -> float | None:
        """Energy of working and of waiting, None where a power that matters is not known."""
        parts = ((self.busy_watts, busy_s), (self.idle_watts, idle_s))
        if any(watts is None for watts, seconds in parts if seconds):
            return None
        return sum((watts or 0.0) * seconds for watts, seconds in parts)


def spending(
    cluster: Cluster, meshes: Iterable[str], *, goal: str | None = None
) -> tuple[Spending, ...]:
    """What each of these meshes costs by the second.

    Args:
        cluster: that has them.
        meshes: their names.
        goal: 'dollars' or 'joules', if that is to be minimised; it then has to be known of all.

    Raises:
        SpecError: the goal cannot be told of a mesh; names each of them and what to add.
    """
    found = tuple(_of(cluster, name) for name in meshes)
    unknown = [
        (s.mesh, cluster.kind(s.mesh).name)
        for s in found
        if (goal == "dollars" and s.usd_per_s is None)
        or (goal == "joules" and s.busy_watts is None)
    ]
    if unknown:
        lacking, advice = {
            "dollars": (
                "no price",
                "give the mesh usd_per_hour in the cluster, or its kind a price",
            ),
            "joules": ("no power", "give its kind tdp_watts in its card or in the cluster file"),
        }[str(goal)]
        named = ", ".join(f"mesh {mesh!r} ({kind})" for mesh, kind in unknown)
        raise SpecError(f"{goal} are to be few, but {lacking} is known of {named}; {advice}")
    return found


def _of(cluster: Cluster, name: str) -> Spending:
    num = cluster.mesh(name).num_devices
    kind, usd_per_hour = cluster.kind(name), cluster.usd_per_hour(name)
    return Spending(
        mesh=name,
        usd_per_s=None if usd_per_hour is None else usd_per_hour * num / _HOUR_S,
        busy_watts=None if kind.tdp_watts is None else kind.tdp_watts * num,
        idle_watts=None if kind.idle_watts is None else kind.idle_watts * num,
    )
