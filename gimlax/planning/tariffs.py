"""What a mesh costs and draws: dollars per second while it is held, watts busy and idle.

Prices are those of the cluster file, else the lowest on demand of the card; power is of the card.
All devices of a mesh count. Transfers draw nothing, and hosts, networks and cooling are not in it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.errors import SpecError
from gimlax.planning.objective import Objective
from gimlax.planning.problem import Array


def tariffs(cluster: Cluster) -> dict[str, Array]:
    """`usd_per_s`, `busy_watts` and `idle_watts` of each mesh, NaN where nobody knows. [mesh]

    Where the idle power of any kind is not known waiting is free on all of them: else what was
    published, not what is drawn, would tell meshes apart.
    """
    kinds = [cluster.kind(mesh.name) for mesh in cluster.meshes]
    num_devices = np.array([mesh.num_devices for mesh in cluster.meshes], float)
    usd_per_hour = [cluster.usd_per_hour(mesh.name) for mesh in cluster.meshes]
    idle = [kind.idle_watts for kind in kinds]
    return {
        "usd_per_s": num_devices * np.array(usd_per_hour, float) / 3600,
        "busy_watts": num_devices * np.array([kind.tdp_watts for kind in kinds], float),
        "idle_watts": num_devices * np.array([0.0 if None in idle else w for w in idle], float),
    }


def without_unknown(
    cluster: Cluster, objectives: Iterable[Objective], meshes: Sequence[str] | None
) -> Cluster:
    """The cluster without meshes whose price or power is asked for, is not known and need not be.

    Args:
        cluster: with meshes or groups.
        objectives: what looks at prices and power.
        meshes: that the caller placed the stages on; others take part in comparisons only. None
            where the planner chooses, so that every figure matters.
    """
    asked = tuple(objectives)
    if meshes is None or not set(meshes) <= {mesh.name for mesh in cluster.meshes}:
        return cluster
    kept = tuple(
        mesh
        for mesh in cluster.meshes
        if mesh.name in meshes or not any(_lacking(cluster, mesh.name, of) for of in asked)
    )
    if len(kept) == len(cluster.meshes):
        return cluster
    gone = {mesh.name for mesh in cluster.meshes} - {mesh.name for mesh in kept}
    links = tuple(link for link in cluster.links if not gone & {link.source, link.target})
    return replace(cluster, meshes=kept, links=links)


def _lacking(cluster: Cluster, name: str, objective: Objective) -> bool:
    """Whether an objective looks at a figure of a mesh or group that nobody knows."""
    no_price = objective.needs("usd") and cluster.usd_per_hour(name) is None
    return no_price or (objective.needs("joules") and cluster.kind(name).tdp_watts is None)


def check_known(
    cluster: Cluster, objective: Objective, meshes: Sequence[str] | None = None
) -> None:
    """Refuses an objective that looks at a price or a power that nobody knows.

    Args:
        cluster: with meshes or groups.
        objective: what is asked for.
        meshes: where the stages are placed, so that only the figures of these matter; None where
            the planner chooses.

    Raises:
        SpecError: names every mesh, group or kind whose figure is missing, and where it belongs.
    """
    cluster = without_unknown(cluster, (objective,), meshes)
    wrong: list[str] = []
    one, many, records = "mesh", "meshes", cluster.meshes
    if not records:
        one, many, records = "group", "groups", cluster.groups
    names = [record.name for record in records]
    if objective.needs("usd"):
        lacking = [name for name in names if cluster.usd_per_hour(name) is None]
        if lacking:
            wrong.append(
                f"dollars are asked for, but {_listed(one, many, lacking)} no price: its kind "
                f"lists none on demand; give usd_per_hour in its [[{one}]] of the cluster file"
            )
    if objective.needs("joules"):
        kinds = [cluster.kind(name) for name in names]
        lacking = [kind.name for kind in kinds if kind.tdp_watts is None]
        if lacking:
            wrong.append(
                f"joules are asked for, but {_listed('kind', 'kinds', lacking)} no tdp_watts; give "
                "it with its source in a [[kind]] of the cluster file"
            )
    if wrong:
        raise SpecError(f"objective: {'; '.join(wrong)}")


def _listed(one: str, many: str, names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    had = ", ".join(map(repr, names))
    return f"{one} {had} has" if len(names) == 1 else f"{many} {had} have"
