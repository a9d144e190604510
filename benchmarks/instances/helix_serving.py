"""The serving tables of Helix's 24 machines: compares layouts and proposes one of its own.

An instance has, by kind of machine, seconds of a layer by prompt tokens and by decodes of a batch,
room for keys and values, and batch limits; the link of every pair; and mean lengths of a request.
Layouts that come with it are scored beside the figures that simulation gave for them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.planning.solvers.decode_loop import serve
from gimlax.planning.solvers.decode_proposals import propose
from gimlax.planning.solvers.serving_problem import Held, ServingMachine, ServingProblem
from instances.checking import figure, figures, records, whole

FORMAT = "helix_serving"
TABLES = ("prompt_ms_per_layer_by_tokens", "decode_ms_per_layer_by_batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """Machines and requests, layouts by name, and figures to quote."""

    name: str
    problem: ServingProblem
    layouts: dict[str, list[Held]]
    simulated: list[dict[str, Any]]
    source: str


def recognises(data: Any) -> bool:
    """Whether the content of a file is of this format."""
    if not isinstance(data, dict) or not isinstance(data.get("machines"), dict):
        return False
    kinds = [kind for kind in data["machines"].values() if isinstance(kind, dict)]
    return any(set(TABLES) & set(kind) for kind in kinds)


def read(path: Path, data: dict[str, Any]) -> Instance:
    """An instance from the content of its file.

    Raises:
        SpecError: it is not right; all reasons, each with its key.
    """
    wrong: list[str] = []
    num_layers = whole(data, "num_layers", wrong, least=1, most=100_000)
    machines: dict[str, ServingMachine] = {}
    for kind, record in records(data["machines"], "machines", wrong):
        where = f"machines.{kind}"
        prompt, decode = (figures(record, key, wrong, where=where, width=2) for key in TABLES)
        kv = figures(record, "kv_cache_tokens_by_layers", wrong, where=where)
        most = figures(record, "max_decodes_per_batch_by_layers", wrong, where=where)
        if len(kv) != len(most):
            wrong.append(f"{where}: room is given for {len(kv)} layers, batches for {len(most)}")
        machines[kind] = ServingMachine(
            count=whole(record, "count", wrong, where=where, most=100_000),
            prompt_s=prompt * [1, 1e-3],
            decode_s=decode * [1, 1e-3],
            kv_token_layers=kv,
            max_prompts=whole(record, "max_prompts_per_batch", wrong, where=where, least=1),
            max_decodes=most,
        )
    link, load = _record(data, "link"), _record(data, "workload")
    speed = figure(link, "bandwidth_bytes_per_s", wrong, where="link")
    size = figure(link, "activation_bytes_per_token", wrong, where="link")
    latency_s = figure(link, "latency_s", wrong, where="link")
    input_tokens = figure(load, "mean_input_tokens", wrong, where="workload")
    output_tokens = figure(load, "mean_output_tokens", wrong, where="workload")
    if not (speed and input_tokens and output_tokens):
        wrong.append("link and workload: bandwidth and mean lengths have to be above 0")
    layouts = _layouts(data, machines, num_layers, wrong)
    if wrong:
        raise SpecError("; ".join(f"{path}: {reason}" for reason in wrong))
    return Instance(
        name=str(data.get("name", path.stem)),
        problem=ServingProblem(
            num_layers=num_layers,
            machines=machines,
            latency_s=latency_s,
            token_s=size / speed,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        ),
        layouts=layouts,
        simulated=data.get("results_in_the_authors_simulator", []),
        source=str(data.get("source", "")),
    )


def _record(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _layouts(
    data: dict[str, Any], machines: dict[str, ServingMachine], num_layers: int, wrong: list[str]
) -> dict[str, list[Held]]:
    """The layout that comes with an instance."""
    rows = data.get("published_layout")
    if not isinstance(rows, list):
        return {}
    held: list[Held] = []
    for index, row in enumerate(rows):
        where = f"published_layout[{index}]"
        if not isinstance(row, dict) or row.get("machine") not in machines:
            wrong.append(f"{where}.machine: names none of {', '.join(machines)}")
            continue
        most = machines[row["machine"]].max_layers
        first = whole(row, "first_layer", wrong, where=where, most=num_layers - 1)
        num = whole(row, "num_layers", wrong, where=where, least=1, most=most)
        if first + num > num_layers:
            wrong.append(f"{where}: ends at layer {first + num} of {num_layers}")
        held.append(Held(first_layer=first, num_layers=num, machine=row["machine"]))
    return {"published layout": held}


def solve(instance: Instance, time_limit_s: float) -> dict[str, Any]:
    """The layout that is proposed, with the scores of the others."""
    del time_limit_s  # a fixed number of tries, so that the answer is the same everywhere
    start = time.perf_counter()
    proposed = propose(instance.problem)
    seconds = time.perf_counter() - start
    others = instance.layouts | chains(instance.problem)
    scores = {name: serve(instance.problem, layout) for name, layout in others.items()}
    best = serve(instance.problem, proposed)
    return {
        "format": FORMAT,
        "instance": instance.name,
        "goal": "decoded tokens/s of the service (requests in flight over the decode loop)",
        "objective": best.tokens_per_s,
        "bound": None,
        "gap": None,
        "seconds": seconds,
        "published": {
            "simulated": instance.simulated,
            "source": instance.source,
            "caveat": "tokens/s in the authors' simulator; the objective is a model of means",
        },
        "scores": {name: _shown(score) for name, score in (scores | {"proposed": best}).items()},
        "placement": [
            {"machine": h.machine, "first_layer": h.first_layer, "num_layers": h.num_layers}
            for h in sorted(proposed)
        ],
        "remarks": [
            f"{name}: {score.tokens_per_s:.1f} tokens/s, {score.in_flight:.0f} requests in flight, "
            f"a loop of {score.loop_s:.2f} s"
            for name, score in (scores | {"proposed": best}).items()
        ],
    }


def _shown(score: Any) -> dict[str, float]:
    return {
        "tokens_per_s": score.tokens_per_s,
        "in_flight": score.in_flight,
        "loop_s": score.loop_s,
        "most_tokens_per_s": score.most_tokens_per_s,
    }


def chains(problem: ServingProblem) -> dict[str, list[Held]]:
    """The two other layouts that were simulated for these 24 machines, where it is about them."""
    counts = {kind: machine.count for kind, machine in problem.machines.items()}
    if problem.num_layers != 80 or counts != {"A100": 4, "L4": 8, "T4": 12}:
        return {}
    return {
        "listed alternative": _series((("A100", 4, 9, 1), ("L4", 4, 7, 2), ("T4", 4, 4, 3))),
        "longest chain": _series((("A100", 4, 8, 1), ("L4", 8, 3, 1), ("T4", 12, 2, 1))),
    }


def _series(parts: tuple[tuple[str, int, int, int], ...]) -> list[Held]:
    """Stages one after another: (kind, stages, layers of each, machines that hold each)."""
    layout: list[Held] = []
    first = 0
    for kind, num_stages, num_layers, copies in parts:
        for _ in range(num_stages):
            layout += [Held(first_layer=first, num_layers=num_layers, machine=kind)] * copies
            first += num_layers
    return layout
