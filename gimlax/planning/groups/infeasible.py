"""Why there is no plan for groups of devices: a limit that cannot hold, or too little memory."""

from dataclasses import replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.planning.groups.pricing import GroupCosts
from gimlax.planning.infeasible import beyond_limits, fewest_meshes
from gimlax.planning.objective import Objective
from gimlax.planning.problem import Problem
from gimlax.planning.solvers.pools import solve
from gimlax.units import show_bytes

__all__ = ["why_not"]

_TIME_LIMIT_S = 2.0  # of one of the searches


def why_not(cluster: Cluster, figures: GroupCosts, objective: Objective) -> PlanError:
    """The error that says why no plan satisfies an objective."""
    problem = figures.problem(cluster)

    def least(asked: Objective) -> tuple[float, bool] | None:
        found = solve(problem, asked, time_limit_s=_TIME_LIMIT_S)
        return None if found is None else (found.value, found.method == "exact")

    if objective.limits and least(Objective(goal="throughput")):
        return beyond_limits(objective, least)
    return _nothing_fits(cluster, figures)


def _nothing_fits(cluster: Cluster, figures: GroupCosts) -> PlanError:
    problem = figures.figures.problem
    enough: dict[str, int] = {}
    nearest: tuple[float, str, int] | None = None  # bytes that each device lacks
    for option, shape in enumerate(figures.shapes):
        group = cluster.groups[figures.option_group[option]]
        number = fewest_meshes(problem, option)
        if number is not None:
            devices = number * shape.num_devices
            enough[group.name] = min(devices, enough.get(group.name, devices))
        lacks = _lacks_bytes(problem, option, group.num_devices // shape.num_devices)
        if lacks is not None and (nearest is None or lacks < nearest[0]):
            nearest = lacks, group.name, shape.num_devices
    everything = [(0, problem.num_segments)]
    whole = figures.figures.resident_bytes(0, everything)
    whole += figures.figures.carried_bytes(0, everything)
    room = sum(g.num_devices * cluster.memory_bytes(g.name) for g in cluster.groups)
    said = (
        f"the model fits nowhere: parameters and state need {show_bytes(whole)}, and all devices "
        f"have {show_bytes(room)} together"
    )
    if nearest is not None:
        lacks, name, size = nearest
        split = f", split over {size} devices at a time" if size > 1 else ""
        said += (
            f"; on group {name!r} alone{split}, {show_bytes(lacks)} are missing on the fullest "
            "device, temporaries counted"
        )
    if not enough:
        return PlanError(
            f"{said}; no number of these devices would do, because segments are never cut: add "
            "larger ones, or lower batch, context or precision"
        )
    there = {group.name: group.num_devices for group in cluster.groups}
    would = ", or ".join(f"{n} of group {g!r} (it has {there[g]})" for g, n in enough.items())
    return PlanError(
        f"{said}; the smallest number of devices that would do is {would}; add devices, or lower "
        "batch, context or precision"
    )


def _lacks_bytes(problem: Problem, option: int, num_meshes: int) -> float | None:
    """By how many bytes larger the devices of so many meshes in a row have to be.

    Returns:
        None if there is no such mesh.
    """
    if num_meshes < 1:
        return None
    held = problem.stage_bytes()[option] - problem.parked_bytes[option]
    sizes = np.unique(held[np.isfinite(problem.stage_s[option])])
    # The least capacity at which they suffice is that of some run of segments.
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        larger = np.full_like(problem.capacity_bytes, sizes[middle])
        number = fewest_meshes(replace(problem, capacity_bytes=larger), option)
        low, high = (low, middle) if number and number <= num_meshes else (middle + 1, high)
    return float(sizes[low] - problem.capacity_bytes[option])
