"""Replicas in words: meshes that are alike and hold the same segments are one line, `16 x l4`."""

from typing import TYPE_CHECKING

from gimlax.devices.groups import group_of
from gimlax.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from gimlax.planning.plans import Plan


def alike(plan: "Plan") -> list[list[int]]:
    """The holdings of a plan, those together that equal meshes of a group have of a run."""
    found: dict[tuple[object, ...], list[int]] = {}
    devices = {spec.name: spec.num_devices for spec in plan.specs}
    for index, holding in enumerate(plan.layout.holdings):
        pool = group_of(holding.mesh) or holding.mesh
        key = (pool, devices[holding.mesh], holding.first_segment, holding.num_segments)
        found.setdefault(key, []).append(index)
    return list(found.values())


def called(plan: "Plan", same: list[int]) -> str:
    """What meshes that are alike are called: `16 x l4 (4 devices)`, or the mesh by its name."""
    first = plan.layout.holdings[same[0]].mesh
    if len(same) == 1:
        return first
    each = plan.spec(first).num_devices
    return f"{len(same)} x {group_of(first)}" + (f" ({each} devices)" if each > 1 else "")


def replica_rows(plan: "Plan") -> list[list[str]]:
    """meshes | segments | seconds per phase | memory | share of the requests | what binds."""
    shares = plan.layout.shares()
    memory = {mesh.mesh: mesh.needed_bytes for mesh in plan.meshes}
    by_phase = [{stage.holding: stage for stage in phase.stages} for phase in plan.phases]
    rows = [["meshes", "segments", *(p.name for p in plan.phases), "memory", "share", "binds"]]
    for same in alike(plan):
        held = plan.layout.holdings[same[0]]
        first, last = plan.segments[held.first_segment], plan.segments[held.stop - 1]
        stages = [stages[same[0]] for stages in by_phase]
        binds = dict.fromkeys(stage.binds for stage in stages)
        rows.append(
            [
                called(plan, same),
                first if first == last else f"{first} .. {last}",
                *(show_seconds(stage.seconds) for stage in stages),
                show_bytes(memory[held.mesh]),
                f"{sum(shares[index] for index in same):.1%}",
                " / ".join(stage.binds for stage in stages) if len(binds) > 1 else stages[0].binds,
            ]
        )
    num_devices = sum(spec.num_devices for spec in plan.specs)
    blank = [""] * (len(plan.phases) + 3)
    rows.append([f"{len(plan.specs)} meshes", f"{num_devices} devices", *blank])
    return rows
