"""One sentence: what took longest beyond its prediction, and the likeliest cause that spans show.

Causes are tried from the best evidence to the least: what was seen to happen at the same time goes
before what a figure rests on. Units: seconds.
"""

from collections.abc import Sequence

from gimlax.planning import Plan
from gimlax.program.account import Entry, Use
from gimlax.units import show_seconds

# What differs by less than this share of the recording is called as predicted.
_NOTABLE = 0.1
_MOSTLY = 0.5

_RESTS_ON = {
    "card": "the prediction rests on figures of its card alone, so calibrate",
    "fitted": "the prediction rests on what was fitted to other devices of its kind, so calibrate",
    "declared": "the prediction rests on what the cluster declares of it, so calibrate",
}


def tell(plan: Plan, seconds: float, entries: Sequence[Entry], uses: Sequence[Use]) -> str:
    """The sentence for a recording of `seconds`."""
    worst = max(entries, key=lambda entry: entry.excess_s)
    idle_s = uses[0].idle_s
    if idle_s > max(worst.excess_s, _NOTABLE * seconds):
        return (
            f"Nothing was at work for {show_seconds(idle_s)} of {show_seconds(seconds)}: the host "
            "was busy between passes, or handed none over."
        )
    if worst.excess_s <= _NOTABLE * seconds:
        return _as_predicted(entries, uses, seconds)
    return f"{_difference(plan, worst)}: {_cause(worst)}."


def _difference(plan: Plan, entry: Entry) -> str:
    phase = f" of {entry.phase!r}" if len(plan.phases) > 1 else ""
    if entry.what == entry.track:
        what = f"Link {entry.track!r}{phase}"
    else:
        what = f"{entry.what.capitalize()}{phase} on {entry.track!r}"
    took = f"{what} took {show_seconds(entry.measured_s)} a pass"
    if not entry.predicted_s:
        return f"{took}, not 0 s"
    return f"{took}, {entry.measured_s / entry.predicted_s:.2g} times what was predicted"


def _cause(entry: Entry) -> str:
    excess_s = entry.measured_s - entry.predicted_s
    if entry.receiving_s > _MOSTLY * excess_s:
        return f"for {show_seconds(entry.receiving_s)} of it its input was still on the way"
    if entry.shared_s > _MOSTLY * entry.measured_s:
        share = entry.shared_s / entry.measured_s
        return f"for {share:.0%} of it {entry.shared_with!r}, which shares its host, ran as well"
    once_s = entry.slowest_s - entry.predicted_s
    if entry.passes > 2 and once_s > _MOSTLY * entry.excess_s:
        return (
            f"one pass alone took {show_seconds(entry.slowest_s)}; a first pass or another process "
            "may do that"
        )
    basis = entry.basis.partition(", ")[0]
    return _RESTS_ON.get(
        basis, "it was quicker when it was measured, and nothing that was recorded ran beside it"
    )


def _as_predicted(entries: Sequence[Entry], uses: Sequence[Use], seconds: float) -> str:
    told = "Nothing took much longer than predicted"
    busiest = max(uses, key=lambda use: use.computing_s + use.copying_s)
    if busiest.waiting_s > _NOTABLE * seconds:
        return (
            f"{told}; {busiest.track!r}, which has most to do, waited for others "
            f"{busiest.waiting_s / seconds:.0%} of the time; more passes in flight would fill that."
        )
    return f"{told}."
