"""A comparison in words: a few lines under the table, all of it in an explanation."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gimlax.devices.kinds import ANY_VENDOR
from gimlax.planning.explanation.comparison import Comparison, Rival
from gimlax.planning.rates import CARD
from gimlax.planning.rates.fitted import accelerators
from gimlax.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from gimlax.planning.plans import Plan

__all__ = ["beside", "reasons", "show", "tier", "tiers"]

_MEANS = {
    "figures only": "nothing was run on it or compiled for it yet",
    "lowered only": "code was lowered for its platform, and not compiled yet",
    "compiled for": "code was compiled for it, and not run yet",
    "ran": "the tests ran on such devices",
}


def beside(plan: "Plan", comparison: Comparison) -> list[str]:
    """The best single mesh and single vendor with the gain over each, and what transfers take."""
    single = comparison.single_mesh
    if len(plan.mesh_names) == 1 and single and single.value <= plan.value:
        lines = [f"one mesh wins: nothing is better than all of it on {single.meshes[0]!r}"]
    elif single is None:
        lines = ["best single mesh: none; no mesh can do it alone within memory and limits"]
    else:
        lines = [
            f"best single mesh: {single.meshes[0]!r}, {show(plan, single.value)}; "
            f"{_gain(plan, single)}"
        ]
    if comparison.single_group is not None:
        lines.append(_group(plan, comparison.single_group))
    lines.append(_vendor(plan, comparison))
    if comparison.transfer_share:
        lines.append(
            f"transfers take {comparison.transfer_share:.1%} of a request that runs alone"
            f"{_break_even(plan, comparison)}"
        )
    return lines


def reasons(plan: "Plan", comparison: Comparison) -> list[str]:
    """The next best plan, what would change the decision, and what the figures rest on."""
    lines = []
    if comparison.free is not None:
        lines.append(
            "with cuts and meshes free: "
            f"{_layout(plan, comparison.free)}, {show(plan, comparison.free.value)}"
        )
    if comparison.next_best is not None:
        more = _more(comparison.next_best.value, plan.value)
        lines.append(
            f"next best plan: {_layout(plan, comparison.next_best)}, "
            f"{show(plan, comparison.next_best.value)}{more}"
        )
    for change in comparison.changes:
        value = show(plan, change.best.value)
        said = (
            f"another plan: {_layout(plan, change.best)}, {value}"
            if change.moves
            else (f"the same plan, {value}")
        )
        lines.append(f"with {change.what}: {said}")
    if not plan.objective.needs("usd"):
        lines.append("prices do not enter this objective: a cheaper device changes nothing")
    return [*lines, *_figures(plan)]


def tier(plan: "Plan") -> str:
    """The lowest tier of the kinds that it uses, and of which ones."""
    lowest = [of.device_kind for of in plan.evidence if of.tier == plan.lowest_tier]
    whose = f" ({_listed(lowest)})" if lowest else ""
    return f"lowest tier: {plan.lowest_tier}{whose}; {_MEANS[plan.lowest_tier]}"


def tiers(plan: "Plan") -> list[str]:
    """The tier of each kind, with what was done."""
    return [f"tier of {of.device_kind!r}: {of}{of.what and f', {of.what}'}" for of in plan.evidence]


def show(plan: "Plan", value: float) -> str:
    """A value of the plan's objective with its unit."""
    return show_seconds(value) if plan.unit == "s" else f"{value:.4g} {plan.unit}".rstrip()


def _gain(plan: "Plan", rival: Rival) -> str:
    if math.isclose(rival.value, plan.value, rel_tol=1e-9):
        return "no gain"
    if rival.value > plan.value:
        return f"the plan takes {1 - plan.value / rival.value:.1%} less"
    more = f"{plan.value / rival.value - 1:.1%}" if rival.value else show(plan, plan.value)
    return f"the plan takes {more} more, as cuts or meshes were given"


def _group(plan: "Plan", rival: Rival) -> str:
    if rival.value <= plan.value * (1 + 1e-9):
        return f"one group wins: nothing better was found than {_layout(plan, rival)}"
    return (
        f"best single group: {_layout(plan, rival)}, {show(plan, rival.value)}; "
        f"{_gain(plan, rival)}"
    )


def _vendor(plan: "Plan", comparison: Comparison) -> str:
    rival = comparison.single_vendor
    if comparison.vendor == ANY_VENDOR:
        return "single vendor: not known; the cluster has a kind that stands for any vendor's"
    if comparison.num_vendors == 1:
        return f"single vendor: all meshes are of {comparison.vendor or 'one vendor'}"
    if rival is None:
        return "best single vendor: none; no vendor's meshes can do it within memory and limits"
    return (
        f"best single vendor: {comparison.vendor} ({_layout(plan, rival)}), "
        f"{show(plan, rival.value)}; {_gain(plan, rival)}"
    )


def _break_even(plan: "Plan", comparison: Comparison) -> str:
    single, slower = comparison.single_mesh, comparison.break_even
    if single is None or single.value <= plan.value:
        return ""
    if slower is None:
        return "; the gain over one mesh does not hang on the speed of links"
    if not slower:
        return "; time ran out before it was known how slow links may be"
    moved = [t for phase in plan.phases for t in phase.transfers if t.seconds and t.num_bytes]
    largest = {(t.source, t.target): t for t in sorted(moved, key=lambda t: t.num_bytes)}
    speeds = (
        []
        if plan.layout.branches
        else [
            f"{source!r} -> {target!r} at {show_bytes(t.num_bytes / t.seconds / slower)}/s"
            for (source, target), t in largest.items()
        ]
    )
    effective = f" ({', '.join(speeds)} for the largest message)" if speeds else ""
    return f"; with links {slower:.3g} times slower{effective} the gain over one mesh is zero"


def _layout(plan: "Plan", rival: Rival) -> str:
    if len(rival.meshes) == 1:
        return f"all on {rival.meshes[0]!r}"
    if not rival.cuts:
        return ", ".join(rival.meshes)
    ends = [*rival.cuts, len(plan.segments)]
    parts = [
        f"{mesh!r} to {plan.segments[stop - 1]}"
        for mesh, stop in zip(rival.meshes, ends, strict=True)
    ]
    return ", ".join(parts)


def _more(value: float, best: float) -> str:
    if math.isclose(value, best, rel_tol=1e-6):
        return ", as good"
    if value > 3 * best > 0:
        return f" ({value / best:.3g} times as much)"
    return f" ({value / best - 1:.2%} more)" if best else ""


def _figures(plan: "Plan") -> Iterator[str]:
    """What seconds of each mesh and transfer rest on, and where the figures of cards are from."""
    for basis, names in _grouped((m.basis, m.mesh) for m in plan.meshes):
        by = f" ({plan.calibration})" if basis.startswith("measured") and plan.calibration else ""
        yield f"seconds of {_listed(names)}: {basis}{by}"
    fitted = {s.device_kind for s in plan.specs} & set(accelerators())
    if fitted and any(mesh.basis == CARD for mesh in plan.meshes):
        yield (
            f"{_listed(sorted(fitted))} would have fitted figures; so that all kinds of the "
            "cluster are compared alike, those of cards are taken"
        )
    for basis, names in _grouped((m.collectives, m.mesh) for m in plan.meshes if m.collectives):
        yield f"collectives of {_listed(names)}: {basis}"
    if on_chip := [m.mesh for m in plan.meshes if m.memory == "on_chip"]:
        yield f"bytes of {_listed(on_chip)}: as fast as on_chip_bytes_per_s of the card"
    hops = ((t.basis, f"{t.source} -> {t.target}") for p in plan.phases for t in p.transfers)
    for basis, names in _grouped(hops):
        yield f"link {_listed(names)}: {basis}"
    for kind, figures in _grouped((s.device_kind, f"{s.figure}: {s.source}") for s in plan.sources):
        yield f"figures of {kind}:"
        yield from (f"  {figure}" for figure in figures)


def _grouped(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    groups: dict[str, dict[str, None]] = {}
    for key, item in pairs:
        groups.setdefault(key, {})[item] = None
    yield from ((key, list(items)) for key, items in groups.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
