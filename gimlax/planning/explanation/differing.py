"""What differs between two plans, line by line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gimlax.planning.explanation.telling import show

if TYPE_CHECKING:
    from gimlax.planning.plans import Plan

__all__ = ["difference"]


def difference(before: "Plan", after: "Plan") -> str:
    """What `after` has otherwise than `before`; 'no difference' if nothing."""
    return "\n".join(_lines(before, after)) or "no difference"


def _lines(before: "Plan", after: "Plan") -> Iterator[str]:
    if before.model != after.model:
        yield "model: another one"
    if before.cluster != after.cluster:
        yield "cluster: another one, or other figures"
    if before.calibration != after.calibration:
        yield f"calibration: {before.calibration or 'none'} -> {after.calibration or 'none'}"
    if before.objective != after.objective:
        yield f"objective: {_asked(before)} -> {_asked(after)}"
    yield from _segments(before, after)
    if before.objective.goal == after.objective.goal and before.value != after.value:
        yield (
            f"{before.objective.goal}: {show(before, before.value)} -> {show(after, after.value)}"
            f"{_relative(before.value, after.value)}"
        )
    for what, unit, a, b in (
        ("latency", "s", before.latency_s, after.latency_s),
        ("period", "s", before.period_s, after.period_s),
        ("dollars per request", "usd", before.usd, after.usd),
        ("energy per request", "J", before.joules, after.joules),
    ):
        if a != b:
            said = ["not known" if v is None else f"{v:.4g} {unit}" for v in (a, b)]
            yield f"{what}: {said[0]} -> {said[1]}{_relative(a, b)}"
    needed = [{m.mesh: m.needed_bytes for m in plan.meshes} for plan in (before, after)]
    for mesh in dict.fromkeys([*needed[0], *needed[1]]):
        a, b = needed[0].get(mesh), needed[1].get(mesh)
        if a != b:
            said = ["not used" if v is None else f"{v} bytes" for v in (a, b)]
            yield f"memory of {mesh!r}: {said[0]} -> {said[1]}"


def _asked(plan: "Plan") -> str:
    """A goal with its weights and limits."""
    objective = plan.objective
    weights = [f"{weight:g} x {term}" for term, weight in objective.weights]
    limits = [f"{name} {limit:g}" for name, limit in objective.limits]
    return ", ".join([objective.goal, *weights, *limits])


def _segments(before: "Plan", after: "Plan") -> Iterator[str]:
    """Runs of segments that moved from some meshes to others."""
    if before.segments != after.segments:
        yield f"segments: {len(before.segments)} -> {len(after.segments)}, or other names"
        return
    places = [_places(plan) for plan in (before, after)]
    moved = list(zip(*places, strict=True))
    start = 0
    for index in range(1, len(moved) + 1):
        if index < len(moved) and moved[index] == moved[start]:
            continue
        a, b = moved[start]
        if a != b:
            first, last = before.segments[start], before.segments[index - 1]
            run = first if first == last else f"{first} .. {last}"
            yield f"{run}: {' and '.join(a)} -> {' and '.join(b)}"
        start = index


def _places(plan: "Plan") -> list[tuple[str, ...]]:
    """The meshes that hold each segment."""
    return [
        tuple(sorted(h.mesh for h in plan.layout.holdings if h.first_segment <= index < h.stop))
        for index in range(len(plan.segments))
    ]


def _relative(before: float | None, after: float | None) -> str:
    return f" ({after / before - 1:+.1%})" if before and after is not None else ""
