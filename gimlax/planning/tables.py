"""A plan in words: a table for the eye, one line per stage for an explanation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gimlax.planning.carriers import CARRIERS
from gimlax.planning.explanation.telling import beside, reasons, show, tier, tiers
from gimlax.planning.replicas import alike, called, replica_rows
from gimlax.units import show_bytes, show_flops, show_seconds

if TYPE_CHECKING:
    from gimlax.planning.plans import Plan

_MEANS = {
    "compute": "arithmetic binds",
    "bandwidth": "memory bandwidth binds",
    "overhead": "the dispatch binds",
    "host": "the link to host memory binds",
}

_MOST_ENDS = 4  # hops that one line names

_FOUND = {
    "exact": "exact: nothing better exists for what was asked",
    "stopped": "stopped: time ran out before it was known whether anything better exists",
    "local": "local: only what lies near a good plan was tried",
}


def table(plan: "Plan") -> str:
    """stage | mesh | segments | seconds per phase | bytes | sent bytes | what binds; total; gap.

    Replicas that are alike share a line.
    """
    rivals = (
        beside(plan, plan.comparison)
        if plan.comparison
        else ["not compared with other plans: time ran out"]
    )
    if found := [repr(of.mesh) for of in plan.shardings if not of.exact]:
        rivals.append(f"sharding of {', '.join(found)}: the best that was found, not proved best")
    if plan.order:
        rivals.append("segments that stand side by side are in another order than in the program")
    rivals.append(tier(plan))
    if plan.layout.branches:
        return "\n".join([*_columns(replica_rows(plan)), _verdict(plan), *rivals])
    phases = [phase.name for phase in plan.phases]
    head = ["stage", "mesh", "segments", *phases, "memory", "sent on", "binds"]
    rows = [head]
    for index, holding in enumerate(plan.layout.holdings):
        stages = [next(s for s in p.stages if s.holding == index) for p in plan.phases]
        rows.append(
            [
                str(index),
                _where(plan, holding.mesh),
                segment_range(plan, index),
                *(show_seconds(stage.seconds) for stage in stages),
                _memory(plan, index),
                _per_phase([show_bytes(b) if b else "-" for b in _sent_bytes(plan, index)]),
                _per_phase(_binds(plan, index)),
            ]
        )
    moving = [sum(t.seconds for t in phase.transfers) for phase in plan.phases]
    if any(moving):
        blank = ["", "", "transfers", *map(show_seconds, moving), "", "", ""]
        rows.append(blank)
    total = ["", "", "total", *(show_seconds(p.seconds) for p in plan.phases), "", "", ""]
    return "\n".join([*_columns([*rows, total]), _verdict(plan), *rivals])


def explained(plan: "Plan") -> str:
    """One line per stage, then what the plan was compared with and what it rests on."""
    lines = []
    for same in alike(plan):
        index, holding = same[0], plan.layout.holdings[same[0]]
        mesh = next(m for m in plan.meshes if m.mesh == holding.mesh)
        where = repr(holding.mesh) if len(same) == 1 else called(plan, same)
        parts = []
        for phase in plan.phases:
            stage = next(s for s in phase.stages if s.holding == index)
            parts.append(
                f"{phase.name} {show_seconds(stage.seconds)}, {_MEANS[stage.binds]} "
                f"({show_flops(stage.flops)}, {show_bytes(stage.bytes_accessed)} accessed)"
            )
        sent = [
            f"{phase.name} sends {show_bytes(t.num_bytes)} to {t.target!r} "
            f"in {show_seconds(t.seconds)}"
            for phase in plan.phases
            for t in phase.transfers
            if plan.layout.hops[t.hop].source == index and t.num_bytes
        ]
        lines.append(
            f"stage {index} on {where} ({segment_range(plan, index)}): "
            f"{'; '.join([*parts, *sent])}; the mesh needs {show_bytes(mesh.needed_bytes)} of "
            f"{show_bytes(mesh.capacity_bytes)}{_full(plan, index)}"
        )
    lines += _carriers(plan)
    lines += _tolerances(plan)
    lines += ["", _verdict(plan)]
    if plan.comparison:
        lines += [*beside(plan, plan.comparison), *reasons(plan, plan.comparison)]
    lines += [tier(plan), *tiers(plan)]
    return "\n".join(lines)


def _carriers(plan: "Plan") -> list[str]:
    """What goes how, a line for all that go alike."""
    alike: dict[str, list[str]] = {}
    for of in plan.carriers:
        narrowed = f", float32 narrowed to {of.narrowing}" if of.narrowing else ""
        how = f"{CARRIERS[of.kind]}{narrowed}"
        alike.setdefault(how, []).append(f"{of.source!r} -> {of.target!r}")
    return [f"{_some(ends)}: values go {how}" for how, ends in alike.items()]


def _some(ends: Sequence[str]) -> str:
    more = f" and {len(ends) - _MOST_ENDS} more" if len(ends) > _MOST_ENDS else ""
    return ", ".join(ends[:_MOST_ENDS]) + more


def _tolerances(plan: "Plan") -> list[str]:
    """What may be off on which hops, a line for all that allow the same."""
    alike: dict[str, dict[str, None]] = {}
    for edge in plan.tolerances:
        allowed = f"{edge.relation}, {'; '.join(map(str, edge.tolerances)) or 'nothing crosses'}"
        if edge.narrowing:
            allowed += f"; float32 goes as {edge.narrowing}"
        alike.setdefault(allowed, {})[f"{edge.source!r} -> {edge.target!r}"] = None
    lines = []
    for allowed, ends in alike.items():
        lines.append(f"what crosses {_some(list(ends))} may be off by ({allowed})")
    return lines


def _binds(plan: "Plan", index: int) -> list[str]:
    """What binds a holding in each phase: the link where it sends for longer than it works."""
    result = []
    for phase in plan.phases:
        stage = next(s for s in phase.stages if s.holding == index)
        hops = [t.seconds for t in phase.transfers if plan.layout.hops[t.hop].source == index]
        word = "link" if sum(hops) > stage.seconds else stage.binds
        full = plan.comparison is not None and index in plan.comparison.crowded
        result.append(f"{word}, memory" if full else word)
    return result


def _full(plan: "Plan", index: int) -> str:
    crowded = plan.comparison.crowded if plan.comparison else ()
    return ", no room for a segment next to its own" if index in crowded else ""


def _where(plan: "Plan", mesh: str) -> str:
    """A mesh with its axes, `data` x `model`, if it has several devices."""
    spec = plan.spec(mesh)
    return f"{mesh} ({' x '.join(map(str, spec.shape))})" if spec.num_devices > 1 else mesh


def segment_range(plan: "Plan", holding: int) -> str:
    """The segments of a holding as `first .. last`."""
    held = plan.layout.holdings[holding]
    first, last = plan.segments[held.first_segment], plan.segments[held.stop - 1]
    return first if held.num_segments == 1 else f"{first} .. {last}"


def _memory(plan: "Plan", index: int) -> str:
    """What the mesh of a holding needs, told at the first of its holdings."""
    mesh = plan.layout.holdings[index].mesh
    if any(holding.mesh == mesh for holding in plan.layout.holdings[:index]):
        return '"'
    return show_bytes(next(m for m in plan.meshes if m.mesh == mesh).needed_bytes)


def _sent_bytes(plan: "Plan", index: int) -> list[int]:
    """Bytes that a holding sends on in one call of each phase."""
    return [
        sum(t.num_bytes for t in phase.transfers if plan.layout.hops[t.hop].source == index)
        for phase in plan.phases
    ]


def _per_phase(words: list[str]) -> str:
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def _verdict(plan: "Plan") -> str:
    calls = " + ".join(f"{phase.calls:g} x {phase.name}" for phase in plan.phases)
    value = show(plan, plan.value)
    goal = plan.objective.goal
    if goal == "throughput":
        rate = f"{1 / plan.value:.3g} requests/s" if plan.value else "no limit"
        said = f"throughput {rate}: the busiest part takes {value} per request ({calls})"
    else:
        said = f"{goal} {value} per request ({calls})"
    said += f"{_terms(plan)}; {_FOUND[plan.method]}"
    if plan.bound <= 0:
        return f"{said}; no bound"
    least = show(plan, plan.bound)
    # The bound of an exact plan says how sharp the bound is, not what a search could gain.
    if plan.method == "exact":
        return f"{said} ({plan.gap:.1%} above the bound that needs no search, {least})"
    return f"{said}; at most {plan.gap:.1%} above the best possible, {least}"


def _terms(plan: "Plan") -> str:
    """Dollars and joules of a request in the full pipeline, where they are known."""
    known = [(plan.usd, "usd"), (plan.joules, "J")]
    shown = [f"{value:.3g} {unit}" for value, unit in known if value is not None]
    return f"; {' and '.join(shown)} per request when full" if shown else ""


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-+-".join("-" * width for width in widths), *lines[1:]]
