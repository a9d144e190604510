"""What in a plan contradicts itself: a plan may come from a file that somebody else wrote.

Each is a sentence, and all are found at once. That figures are numbers within their range is for
the reader of JSON (`records.py`) to say.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gimlax.devices import TIERS
from gimlax.fabric import NARROWINGS
from gimlax.planning.carriers import BETWEEN_PROCESSES, CARRIERS
from gimlax.planning.explanation.comparison import Comparison, Rival
from gimlax.planning.layout import Hop
from gimlax.planning.predictions import BINDS, MEMORIES, PhasePrediction
from gimlax.planning.rates import CARD, DECLARED, FITTED, MEASURED
from gimlax.planning.tolerances import RELATIONS

if TYPE_CHECKING:
    from gimlax.planning.plans import Plan

__all__ = ["METHODS", "contradictions"]

METHODS = ("exact", "stopped", "local")
_OF_MESHES = (CARD, FITTED, MEASURED)
_OF_LINKS = (DECLARED, MEASURED)
_ROUNDING = 1e-9


def contradictions(plan: "Plan") -> Iterator[str]:
    """All of them, none if the plan can be true."""
    last = max(holding.stop for holding in plan.layout.holdings)
    if last != len(plan.segments):
        yield f"its layout ends at segment {last}, but it names {len(plan.segments)}"
        return  # what counts segments would be wrong as well
    yield from _of_meshes(plan)
    unknown = [of for of in plan.evidence if of.tier not in TIERS]
    for of in unknown:
        yield f"the tier of {of.device_kind!r} is {of.tier!r}, not one of {', '.join(TIERS)}"
    if not unknown and [of.rank for of in plan.evidence] != sorted(of.rank for of in plan.evidence):
        yield "its evidence does not begin with the lowest tier"
    if plan.method not in METHODS:
        yield f"its method is {plan.method!r}, not one of {', '.join(METHODS)}"
    if plan.bound > plan.value * (1 + _ROUNDING):
        yield f"its value is {plan.value:g}, below the bound of {plan.bound:g}"
    if plan.order and sorted(plan.order) != list(range(len(plan.segments))):
        yield f"its order is {plan.order}, for {len(plan.segments)} segments"
    if not plan.phases:
        yield "it has no phase"
    inner = {k: hop for k, hop in enumerate(plan.layout.hops) if min(hop.source, hop.target) >= 0}
    for phase in plan.phases:
        yield from _of_phase(plan, phase, inner)
    if plan.tolerances:
        yield from _of_tolerances(plan, inner)
    yield from _of_carriers(plan)
    if plan.comparison is not None:
        yield from _of_comparison(plan, plan.comparison)


def _of_meshes(plan: "Plan") -> Iterator[str]:
    names = sorted(plan.mesh_names)
    for what, found in (
        ("specs", [spec.name for spec in plan.specs]),
        ("meshes", [mesh.mesh for mesh in plan.meshes]),
    ):
        if sorted(found) != names:
            yield f"its {what} are of {found}, but its layout uses {names}"
    yield from (f"mesh {spec.name!r} has no axes" for spec in plan.specs if not spec.axes)
    for mesh in plan.meshes:
        if mesh.basis.partition(", ")[0] not in _OF_MESHES:  # "measured, float16 as float32 ..."
            yield _unknown(f"seconds of mesh {mesh.mesh!r} rest", mesh.basis, _OF_MESHES)
        if mesh.memory not in MEMORIES:
            yield f"mesh {mesh.mesh!r} reads {mesh.memory!r}, not one of {', '.join(MEMORIES)}"
        if mesh.parked_bytes > (held := mesh.resident_bytes + mesh.carried_bytes):
            yield f"mesh {mesh.mesh!r} parks {mesh.parked_bytes} bytes, but has {held} to park"


def _of_phase(plan: "Plan", phase: PhasePrediction, inner: dict[int, Hop]) -> Iterator[str]:
    holdings = plan.layout.holdings
    where = f"phase {phase.name!r}"
    if sorted(stage.holding for stage in phase.stages) != list(range(len(holdings))):
        yield f"{where} does not predict each of its {len(holdings)} stages once"
    if sorted(transfer.hop for transfer in phase.transfers) != list(inner):
        yield f"{where} does not predict each of its {len(inner)} hops once"
    for transfer in phase.transfers:
        if transfer.basis not in _OF_LINKS:
            yield _unknown(f"{where}, hop {transfer.hop} rests", transfer.basis, _OF_LINKS)
        if (hop := inner.get(transfer.hop)) is None:
            continue
        ends = holdings[hop.source].mesh, holdings[hop.target].mesh
        if (transfer.source, transfer.target) != ends:
            yield (
                f"{where}, hop {transfer.hop} leads from {transfer.source!r} to "
                f"{transfer.target!r}, in its layout from {ends[0]!r} to {ends[1]!r}"
            )
    yield from (
        f"{where} says that {stage.binds!r} binds holding {stage.holding}"
        for stage in phase.stages
        if stage.binds not in BINDS
    )
    if not phase.calls > 0:
        yield f"{where} is called {phase.calls} times"


def _of_carriers(plan: "Plan") -> Iterator[str]:
    names = set(plan.mesh_names)
    pairs = {(of.source, of.target) for of in plan.carriers}
    for hop in plan.layout.hops:
        if min(hop.source, hop.target) < 0:
            continue
        source, target = (plan.layout.holdings[end].mesh for end in (hop.source, hop.target))
        on_workers = {source, target} & {spec.name for spec in plan.specs if spec.worker}
        if on_workers and source != target and (source, target) not in pairs:
            yield f"it does not say what carries values from {source!r} to {target!r}"
    for of in plan.carriers:
        if of.kind not in CARRIERS:
            yield (
                f"what goes from {of.source!r} to {of.target!r} is carried by {of.kind!r}, not one"
                f" of {', '.join(CARRIERS)}"
            )
        if of.narrowing and of.kind not in BETWEEN_PROCESSES:
            yield f"from {of.source!r} to {of.target!r} float32 goes narrowed inside a process"
        if of.narrowing not in ("", *NARROWINGS):
            yield (
                f"from {of.source!r} to {of.target!r} float32 goes as {of.narrowing!r}, not one of"
                f" {', '.join(NARROWINGS)}"
            )
        if missing := sorted({of.source, of.target} - names):
            yield f"something goes over mesh {missing[0]!r}, which its layout does not use"


def _of_tolerances(plan: "Plan", inner: dict[int, Hop]) -> Iterator[str]:
    if sorted(edge.hop for edge in plan.tolerances) != list(inner):
        yield f"it does not have tolerances for each of its {len(inner)} hops once"
    narrowings = {(of.source, of.target): of.narrowing for of in plan.carriers}
    for edge in plan.tolerances:
        if edge.narrowing != (sent := narrowings.get((edge.source, edge.target), "")):
            yield (
                f"tolerances of hop {edge.hop} are of float32 that goes as"
                f" {edge.narrowing or 'float32'!r}, but it goes as {sent or 'float32'!r}"
            )
        if edge.relation not in RELATIONS:
            yield _unknown(f"tolerances of hop {edge.hop} rest", edge.relation, RELATIONS)
        if (hop := inner.get(edge.hop)) is None:
            continue
        ends = plan.layout.holdings[hop.source].mesh, plan.layout.holdings[hop.target].mesh
        if (edge.source, edge.target) != ends:
            yield (
                f"tolerances of hop {edge.hop} are of {edge.source!r} to {edge.target!r}, in its "
                f"layout it leads from {ends[0]!r} to {ends[1]!r}"
            )


def _of_comparison(plan: "Plan", comparison: Comparison) -> Iterator[str]:
    rivals: dict[str, Rival | None] = {
        "best single mesh": comparison.single_mesh,
        "best single vendor": comparison.single_vendor,
        "best single group": comparison.single_group,
        "next best plan": comparison.next_best,
        "best plan with cuts and meshes free": comparison.free,
        **{f"best plan with {change.what}": change.best for change in comparison.changes},
    }
    for what, rival in rivals.items():
        if rival is not None:
            yield from (f"its {what} {wrong}" for wrong in _of_rival(rival, len(plan.segments)))
    num = len(plan.layout.holdings)
    if beyond := [stage for stage in comparison.crowded if stage >= num]:
        yield f"it says that stages {beyond} have no room, but has {num}"
    if comparison.break_even is not None and 0 < comparison.break_even < 1:
        yield f"its gain over one mesh ends with links {comparison.break_even:g} times slower"


def _of_rival(rival: Rival, num_segments: int) -> Iterator[str]:
    """What is made from groups has no cuts, however many meshes it names."""
    cuts = rival.cuts
    if not rival.meshes:
        yield "is on no mesh"
    elif cuts and len(cuts) + 1 != len(rival.meshes):
        yield f"has {len(cuts)} cuts and {len(rival.meshes)} meshes"
    if any(a >= b for a, b in zip((0, *cuts), (*cuts, num_segments), strict=True)):
        yield f"has cuts {cuts} of {num_segments} segments"


def _unknown(what: str, basis: str, known: tuple[str, ...]) -> str:
    return f"{what} on {basis!r}, not one of {', '.join(known)}"
