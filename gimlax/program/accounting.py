"""Accounts for a timeline: what its plan predicted, what was measured, and who waited for whom.

Everything is read from the spans alone, so that a simulated timeline is accounted for as a measured
one is. Units: seconds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gimlax.errors import SpecError
from gimlax.planning import Plan
from gimlax.program.account import Account, Entry, Use
from gimlax.program.causes import tell
from gimlax.program.instructions import Run, Transfer, task_of, track_of_link

if TYPE_CHECKING:
    from gimlax.program.timeline import Span

Interval = tuple[float, float]


def account_for(spans: Sequence["Span"], plan: Plan) -> Account:
    """Accounts for the spans of a plan of one route.

    Raises:
        PlanError: the plan has several routes.
        SpecError: there are no spans, or some of a task that the plan does not have.
    """
    expected = tuple(_expected(plan))
    if not spans or max(span.end_s for span in spans) <= 0:
        raise SpecError(
            "the timeline has no span that takes time; record passes, with `executable.record()`"
        )
    known = {(of.track, of.task) for of in expected}
    if strange := [span for span in spans if (span.mesh, span.task) not in known]:
        raise SpecError(
            f"the timeline has {strange[0].task!r} on {strange[0].mesh!r}, but the plan has only "
            f"{', '.join(f'{of.task!r} on {of.track!r}' for of in expected)}; give the plan that "
            "was run"
        )
    found: dict[tuple[str, str], list[Interval]] = {key: [] for key in known}
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        found[span.mesh, span.task].append((span.start_s, span.end_s))
    busy: dict[str, list[Interval]] = {of.track: [] for of in expected}
    for (track, _), intervals in found.items():
        busy[track] += intervals
    busy = {track: united(intervals) for track, intervals in busy.items() if intervals}
    sharing = _sharing(plan)
    passes = {
        of.phase: max(len(found[o.track, o.task]) for o in expected if o.phase == of.phase)
        for of in expected
        if not of.link
    }
    entries = tuple(
        _entry(of, found, busy, sharing.get(of.track, ()), passes[of.phase])
        for of in expected
        if found[of.track, of.task]
    )
    seconds = max(span.end_s for span in spans)
    uses = tuple(_uses(busy, seconds))
    return Account(
        seconds=seconds, entries=entries, uses=uses, sentence=tell(plan, seconds, entries, uses)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What the plan says of a stage, or of all transfers of a link, in one pass of a phase."""

    phase: str
    what: str
    track: str
    task: str
    link: bool
    seconds: float
    basis: str
    inbound: tuple[str, str] | None = None  # track and task of what brings its input


def _expected(plan: Plan) -> Iterator[_Expected]:
    meshes = plan.route.meshes
    holdings = plan.layout.holdings
    order = sorted(range(len(holdings)), key=lambda k: holdings[k].first_segment)
    bases = {mesh.mesh: mesh.basis for mesh in plan.meshes}
    for phase in plan.phases:
        stages = {stage.holding: stage for stage in phase.stages}
        for number, holding in enumerate(order):
            here, before = meshes[number], meshes[max(number - 1, 0)]
            carrier = Transfer(values=(), source=before, target=here)
            run = Run(stage=number, streamed=(), inputs=(), outputs=())
            inbound = (track_of_link(before, here), task_of(phase.name, carrier))
            yield _Expected(
                phase=phase.name,
                what=f"stage {number}",
                track=here,
                task=task_of(phase.name, run),
                link=False,
                seconds=stages[holding].seconds,
                basis=bases[here],
                inbound=inbound if before != here else None,
            )
        links = dict.fromkeys((t.source, t.target) for t in phase.transfers)
        for source, target in links:
            those = [t for t in phase.transfers if (t.source, t.target) == (source, target)]
            track = track_of_link(source, target)
            carrier = Transfer(values=(), source=source, target=target)
            yield _Expected(
                phase=phase.name,
                what=track,
                track=track,
                task=task_of(phase.name, carrier),
                link=True,
                seconds=sum(t.seconds for t in those),
                basis=those[0].basis,
            )


def _sharing(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By mesh, the others that share its host's compute or memory."""
    return {
        one.name: tuple(
            other.name
            for other in plan.specs
            if other is not one and other.host == one.host and set(other.shares) & set(one.shares)
        )
        for one in plan.specs
    }


def _entry(
    of: _Expected,
    found: dict[tuple[str, str], list[Interval]],
    busy: dict[str, list[Interval]],
    sharing: Sequence[str],
    passes: int,
) -> Entry:
    spans = found[of.track, of.task]
    inbound = found.get(of.inbound, []) if of.inbound else []
    receiving = 0.0
    if len(inbound) == len(spans):  # else which one belongs to which span is not known
        receiving = sum(overlap_s([a], [b]) for a, b in zip(spans, inbound, strict=True))
    shared = {other: overlap_s(spans, busy[other]) for other in sharing if other in busy}
    most = max(shared, key=lambda other: shared[other], default="")
    return Entry(
        phase=of.phase,
        what=of.what,
        track=of.track,
        passes=passes,
        predicted_s=of.seconds,
        measured_s=sum(b - a for a, b in spans) / passes,
        slowest_s=max(b - a for a, b in spans),
        basis=of.basis,
        receiving_s=receiving / passes,
        shared_s=shared.get(most, 0.0) / passes,
        shared_with=most,
    )


def _uses(busy: dict[str, list[Interval]], end_s: float) -> Iterator[Use]:
    anything = united(interval for intervals in busy.values() for interval in intervals)
    idle_s = end_s - _length_s(anything)
    for track, own in busy.items():
        inbound = united(
            i for link, of in busy.items() if link.endswith(f" -> {track}") for i in of
        )
        own_s = _length_s(own)
        if " -> " in track:
            computing_s, copying_s = 0.0, own_s
        else:
            computing_s, copying_s = own_s, _length_s(inbound) - overlap_s(inbound, own)
        waiting_s = end_s - idle_s - computing_s - copying_s
        yield Use(
            track=track,
            computing_s=computing_s,
            copying_s=max(copying_s, 0.0),
            waiting_s=max(waiting_s, 0.0),  # differences of sums, so that 0 may come out below it
            idle_s=max(idle_s, 0.0),
        )


def united(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments as intervals that are in order and apart."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], end)
        else:
            result.append((start, end))
    return result


def overlap_s(some: Sequence[Interval], others: Sequence[Interval]) -> float:
    """Seconds of `some`, in order, that lie in `others`, in order and apart."""
    total, first = 0.0, 0
    for start, end in some:
        while first < len(others) and others[first][1] <= start:
            first += 1
        k = first
        while k < len(others) and others[k][0] < end:
            total += min(end, others[k][1]) - max(start, others[k][0])
            k += 1
    return total


def _length_s(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
