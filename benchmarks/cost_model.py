"""Predicted against measured time of every stage of models that nothing was calibrated on.

python benchmarks/cost_model.py --json=benchmarks/results/cost_model.json

The machine is calibrated first, unless a calibration is given. Then the stages of all specimens are
timed in rounds, a probe before and after each. A round of a stage counts if both probes ran near
their best: other work on the machine then stood still. What is left of the drift is divided out by
the probe. A prediction is the cost model's: operations by the rates of the calibration, and one
dispatch; the plain roofline of the card, which is that of two cores, stands beside it. On one core
times repeat within some percent; on several, threads of a pool may wake on the same one, and times
of the same program differ by half.
"""

import dataclasses
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from report import environment
from specimens import specimens
from stages import TimedStage, stages

import gimlax as gx
from gimlax import _jax
from gimlax.devices import Calibration, Cluster, bind, calibrate
from gimlax.devices.measuring.timing import Probe, time_calls
from gimlax.planning.rates import Roofline, rates_for
from gimlax.planning.rates.pricing import price

CALIBRATION = flags.DEFINE_string("calibration", None, "file; by default the mesh is calibrated")
CORES = flags.DEFINE_integer("cores", None, "use so many; by default all", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 12, "at most so many rounds", lower_bound=2)
FAMILIES = flags.DEFINE_list("families", None, "only these models")
JSON = flags.DEFINE_string("json", None, "write the result here")

_LEAST_S = 50e-6  # stages below are left out: a dispatch would be most of them
_ENOUGH = 3  # undisturbed rounds of each stage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A stage, measured and predicted; `spread` is of its rounds, over their median."""

    family: str
    case: str
    stage: str
    part: str
    alike: int
    measured_s: float
    predicted_s: float
    roofline_s: float
    rounds: int
    spread: float

    def error(self, which: str) -> float:
        """Of a prediction, relative to the measured time."""
        return getattr(self, which) / self.measured_s - 1


def main(argv: list[str]) -> None:
    del argv
    if CORES.value:  # before JAX starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES.value :])
    cluster = gx.discover()
    cluster = Cluster(meshes=cluster.meshes[:1])
    mesh = cluster.meshes[0]
    if CALIBRATION.value:
        calibration = Calibration.load(CALIBRATION.value)
        calibration.check(cluster)
    else:
        _say("calibrating")
        calibration = calibrate(cluster)
    device = bind(cluster.meshes)[mesh.name].devices.flat[0]
    found: list[TimedStage] = []
    for specimen in specimens():
        if FAMILIES.value is None or specimen.family in FAMILIES.value:
            _say(f"compiling {specimen.family}, {specimen.case}")
            found += stages(specimen, device)
    scores = [score for score in _scores(found, device, calibration, cluster) if score is not None]
    record = _record(scores, calibration)
    print(_table(record))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        print(f"written to {JSON.value}")


def _scores(
    found: Sequence[TimedStage], device: _jax.Device, calibration: Calibration, cluster: Cluster
) -> Iterable[Score]:
    name = cluster.meshes[0].name
    measured = calibration.mesh(name)
    assert measured is not None
    kind = cluster.kind(name)
    for stage, (seconds, probes) in zip(found, _timed(found, device), strict=True):
        paced = np.array(seconds) * measured.probe_s / np.array(probes)
        low, middle, high = np.percentile(paced, [25, 50, 75])
        if middle < _LEAST_S:
            continue
        rates = rates_for(cluster, name, calibration, resident_bytes=stage.resident_bytes)
        predicted, roofline = price(stage.segments, [rates, Roofline(kind)], [kind, kind])
        yield Score(
            family=stage.family,
            case=stage.case,
            stage=stage.name,
            part=stage.part,
            alike=stage.alike,
            measured_s=float(middle),
            predicted_s=float(predicted.seconds.sum()) + measured.dispatch_s,
            roofline_s=float(roofline.seconds.sum()),
            rounds=len(seconds),
            spread=float((high - low) / middle),
        )


def _timed(
    found: Sequence[TimedStage], device: _jax.Device
) -> list[tuple[list[float], list[float]]]:
    """Of each stage the seconds of its undisturbed rounds, and of the probes around them."""
    probe = Probe(device)
    samples: list[list[tuple[float, float, float]]] = [[] for _ in found]
    for round_ in range(ROUNDS.value):
        before_s = probe.seconds()
        waiting = 0
        for index, stage in enumerate(found):
            if sum(map(probe.undisturbed, (max(s[1:]) for s in samples[index]))) >= _ENOUGH:
                continue
            waiting += 1
            seconds = time_calls(stage.call).seconds
            after_s = probe.seconds()
            samples[index].append((seconds, before_s, after_s))
            before_s = after_s
        _say(
            f"round {round_ + 1}: {waiting} of {len(found)} stages, best probe {probe.best_s:.2e} s"
        )
        if not waiting:
            break
    result = []
    for own in samples:
        quiet = [s for s in own if probe.undisturbed(max(s[1:]))]
        kept = quiet or [min(own, key=lambda s: max(s[1:]))]
        result.append(([s[0] for s in kept], [(s[1] + s[2]) / 2 for s in kept]))
    return result


def _record(scores: Sequence[Score], calibration: Calibration) -> dict:
    by_family: dict[str, list[Score]] = defaultdict(list)
    layers = [score for score in scores if score.part == "layer"]
    for score in layers:
        by_family[score.family].append(score)
    parts = {part: [s for s in scores if s.part == part] for part in ("embedding", "head")}
    groups = {**by_family, "all": layers, **parts}
    return {
        "benchmark": "cost_model",
        "environment": environment(),
        "calibration": calibration.title,
        "summary": {name: _summary(own) for name, own in groups.items() if own},
        "stages": [dataclasses.asdict(score) for score in scores],
    }


def _summary(scores: Sequence[Score]) -> dict:
    predicted = np.array([score.error("predicted_s") for score in scores])
    roofline = np.array([score.error("roofline_s") for score in scores])
    return {
        "distinct_stages": len(scores),
        "stages": sum(score.alike for score in scores),
        "median_error": float(np.median(np.abs(predicted))),
        "p90_error": float(np.percentile(np.abs(predicted), 90)),
        "bias": float(np.median(predicted)),
        "roofline_median_error": float(np.median(np.abs(roofline))),
        "roofline_p90_error": float(np.percentile(np.abs(roofline), 90)),
        "spread": float(np.median([score.spread for score in scores])),
    }


def _table(record: dict) -> str:
    lines = [f"cost_model, calibrated {record['calibration']}"]
    lines += [f"  {key}: {value}" for key, value in record["environment"].items()]
    head = ("distinct", "stages", "error", "p90", "bias", "roofline", "p90", "spread")
    lines.append(f"{'model':16}" + "".join(f"{word:>10}" for word in head))
    for name, row in record["summary"].items():
        counts = f"{row['distinct_stages']:>10}{row['stages']:>10}"
        shares = [value for key, value in row.items() if not key.endswith("stages")]
        lines.append(f"{name:16}{counts}" + "".join(f"{share:>10.1%}" for share in shares))
    return "\n".join(lines)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main)
