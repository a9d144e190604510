"""A verification as tables: stages, meshes, what was found wrong, and what was not looked at."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gimlax.units import show_bytes, show_flops, show_seconds

if TYPE_CHECKING:
    from gimlax.verification.answers import Emitted
    from gimlax.verification.verdicts import MeshVerdict, StageVerdict, Verification

__all__ = ["show"]


def show(verification: "Verification") -> str:
    """Stages, meshes, and the sentences that belong to them."""
    lines = [
        *_columns(
            [
                ("phase", "stage", "mesh", "for", "verdict", "memory", "FLOPs", "sends", "took"),
                *map(_stage_row, verification.stages),
            ]
        ),
        "",
        *_columns(
            [
                ("mesh", "devices", "needs", "planned", "there", "verdict"),
                *map(_mesh_row, verification.meshes),
            ]
        ),
        "",
        _summary(verification),
    ]
    lines += [f"  {said}" for said in _reasons(verification)]
    if differing := list(map(_differing, filter(_differs, verification.stages))):
        lines += ["sends otherwise than planned:", *(f"  {said}" for said in differing)]
    if used := list(dict.fromkeys(of.compiler for of in verification.stages if of.compiler)):
        lines.append(f"compiled by: {'; '.join(used)}")
    lines.append("not checked:")
    lines += [f"  {said}" for said in verification.not_checked]
    return "\n".join(lines)


def _stage_row(stage: "StageVerdict") -> tuple[str, ...]:
    compiled = stage.compiled
    return (
        stage.phase,
        str(stage.stage),
        stage.mesh,
        stage.target,
        stage.outcome,
        show_bytes(compiled.needed_bytes) if compiled and compiled.told_memory else "-",
        _against(compiled.flops if compiled else None, stage.planned_flops),
        _sends(stage),
        "as above" if stage.same_as else show_seconds(stage.seconds) if stage.seconds else "-",
    )


def _mesh_row(mesh: "MeshVerdict") -> tuple[str, ...]:
    return (
        mesh.mesh,
        f"{mesh.num_devices} x {mesh.device_kind}",
        "-" if mesh.needed_bytes is None else show_bytes(mesh.needed_bytes),
        show_bytes(mesh.planned_bytes),
        show_bytes(mesh.capacity_bytes),
        {True: "fits", False: "no room", None: "not known"}[mesh.fits],
    )


def _against(found: float | None, planned: float) -> str:
    """A figure and how it relates to the plan's."""
    if found is None:
        return f"- of {show_flops(planned)}"
    share = f" ({found / planned:.2f} of plan)" if planned else ""
    return f"{show_flops(found)}{share}"


def _sends(stage: "StageVerdict") -> str:
    if stage.compiled is None:
        return "-"
    found = _listed(stage.compiled.collectives)
    return f"{found}{' (!)' if _differs(stage) else ''}"


def _listed(collectives: Sequence["Emitted"]) -> str:
    return (
        ", ".join(f"{of.count} {of.kind} {show_bytes(of.num_bytes)}" for of in collectives)
        or "nothing"
    )


def _differs(stage: "StageVerdict") -> bool:
    """Whether bytes of some kind are more than a tenth apart, or a count of it is 0."""
    if stage.compiled is None or stage.planned_collectives is None:
        return False
    found = {of.kind: of.num_bytes for of in stage.compiled.collectives}
    planned = {of.kind: of.num_bytes for of in stage.planned_collectives}
    return any(
        not math.isclose(found.get(kind, 0), planned.get(kind, 0), rel_tol=0.1)
        for kind in {*found, *planned}
    )


def _differing(stage: "StageVerdict") -> str:
    assert stage.compiled is not None and stage.planned_collectives is not None
    found, planned = stage.compiled.collectives, stage.planned_collectives
    where = f"{stage.phase} stage {stage.stage} on {stage.mesh!r}"
    return f"{where}: {_listed(found)}; planned {_listed(planned)}"


def _summary(verification: "Verification") -> str:
    counts: dict[str, int] = {}
    for stage in verification.stages:
        counts[stage.outcome] = counts.get(stage.outcome, 0) + 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    verdict = (
        "nothing stands in its way"
        if verification.ok
        else "it would not run"
        if verification.faults
        else "not all of it could be compiled here"
        if any(stage.compiled is None for stage in verification.stages)
        else "it compiles, and how much memory it needs is not known"
    )
    return f"{verdict}: {len(verification.stages)} stages, {said}"


def _reasons(verification: "Verification") -> list[str]:
    said = [
        f"{stage.phase} stage {stage.stage} on {stage.mesh!r}, {stage.outcome}: {stage.reason}"
        for stage in verification.stages
        if stage.reason
    ]
    said += [
        f"mesh {mesh.mesh!r} has no room: its stages need {show_bytes(mesh.needed_bytes)} on each"
        f" device, and one has {show_bytes(mesh.capacity_bytes)}"
        for mesh in verification.meshes
        if mesh.needed_bytes is not None and mesh.fits is False
    ]
    return said


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
