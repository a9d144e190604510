"""Device-placement graphs of Tarnawski et al. (NeurIPS 2020): reads, checks and solves them.

The format is that of msr-fiddle/dnn-partitioning (its README): `maxFPGAs` accelerators of
`maxSizePerFPGA` bytes, `maxCPUs` CPUs, nodes and edges. A file `optima.json` beside an instance may
give published figures; they are quoted with the source that it names.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gimlax.errors import PlanError, SpecError
from gimlax.planning.solvers.dag import DagProblem, loads_s
from gimlax.planning.solvers.downsets import solve_downsets

FORMAT = "tarnawski"
KEYS = ("maxSizePerFPGA", "maxFPGAs", "maxCPUs", "nodes", "edges")
FIGURES = ("fpgaLatency", "cpuLatency", "size")
COST_TOLERANCE = 1e-6  # the authors' own, between edges out of one node
MOST_DEVICES = 10_000
MOST_FIGURE = 1e300  # sums of more would be infinite
MOST_REASONS = 5  # of one file that are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A graph with the ids of its nodes, and what was published about it."""

    name: str
    path: Path
    problem: DagProblem
    ids: tuple[int, ...]
    published: dict[str, Any] | None
    remark: str = ""


def recognises(data: Any) -> bool:
    """Whether the content of a file is of this format."""
    return isinstance(data, dict) and bool({"maxFPGAs", "maxSizePerFPGA"} & set(data))


def solve(instance: Instance, time_limit_s: float) -> dict[str, Any]:
    """The best split as a record; one that cannot be has an `error` and no placement."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "instance": instance.name,
        "goal": "least load of the busiest device (time per sample)",
        "published": instance.published,
        "remarks": [instance.remark] if instance.remark else [],
    }
    try:
        found = solve_downsets(instance.problem, time_limit_s=time_limit_s)
    except PlanError as error:
        return record | {"error": str(error)}
    loads = loads_s(instance.problem, found.assignment)
    held: list[list[int]] = [[] for _ in loads]
    for node, device in zip(instance.ids, found.assignment, strict=True):
        held[device].append(node)
    k = instance.problem.num_accelerators
    placement = [
        {
            "device": f"accelerator {d}" if d < k else f"cpu {d - k}",
            "load": float(load),
            "nodes": sorted(held[d]),
        }
        for d, load in enumerate(loads)
    ]
    return record | {
        "objective": found.value_s,
        "bound": found.bound_s,
        "independent_bound": found.independent_bound_s,
        "gap": found.gap,
        "proven": found.proven,
        "seconds": found.seconds,
        "num_ideals": found.num_ideals,
        "placement": placement,
    }


def read(path: Path, data: dict[str, Any]) -> Instance:
    """An instance from the content of its file.

    Raises:
        SpecError: it is not right; all reasons, each with its key.
    """
    wrong = list(_wrong(data))
    if wrong:
        more = [f"and {len(wrong) - MOST_REASONS} more"] if len(wrong) > MOST_REASONS else []
        raise SpecError(f"{path}: " + "; ".join(wrong[:MOST_REASONS] + more))
    nodes, edges = data["nodes"], data["edges"]
    ids = tuple(node["id"] for node in nodes)
    place = {node: index for index, node in enumerate(ids)}
    output_s = np.zeros(len(ids))
    for edge in edges:
        output_s[place[edge["sourceId"]]] = edge["cost"]
    names: dict[tuple[str, int], int] = {}
    colour = []
    for node in nodes:
        own = node.get("colorClass")
        key = ("node", node["id"]) if own is None else ("colour", own)
        colour.append(names.setdefault(key, len(names)))
    ends = [(place[edge["sourceId"]], place[edge["destId"]]) for edge in edges]
    try:
        problem = DagProblem(
            accelerator_s=np.array([node["fpgaLatency"] for node in nodes], float),
            cpu_s=np.array([node["cpuLatency"] for node in nodes], float),
            output_s=output_s,
            num_bytes=np.array([node.get("size", 0.0) for node in nodes], float),
            supported=np.array([bool(node["supportedOnFpga"]) for node in nodes], bool),
            backward=np.array([bool(node.get("isBackwardNode", 0)) for node in nodes], bool),
            colour=np.array(colour, int),
            edges=np.array(ends, int).reshape(-1, 2),
            num_accelerators=data["maxFPGAs"],
            num_cpus=data["maxCPUs"],
            capacity_bytes=float(data["maxSizePerFPGA"]),
        )
    except SpecError as error:
        raise SpecError(f"{path}: edges: {error}") from None
    published, remark = _published(path)
    return Instance(
        name=path.stem, path=path, problem=problem, ids=ids, published=published, remark=remark
    )


def _wrong(data: dict[str, Any]) -> Iterator[str]:
    """What is not right with a file, by key."""
    missing = [key for key in KEYS if key not in data]
    if missing:
        yield f"{', '.join(missing)}: missing; the format needs {', '.join(KEYS)}"
        return
    for key in ("maxFPGAs", "maxCPUs"):
        if not _whole(data[key]) or not 0 <= data[key] <= MOST_DEVICES:
            yield f"{key}: is {data[key]!r}; give a whole number from 0 to {MOST_DEVICES}"
    if not _figure(data["maxSizePerFPGA"]):
        yield f"maxSizePerFPGA: is {data['maxSizePerFPGA']!r}; give bytes, at least 0"
    for key in ("nodes", "edges"):
        if not isinstance(data[key], list) or not all(isinstance(x, dict) for x in data[key]):
            yield f"{key}: is no list of records"
            return
    if not data["nodes"]:
        yield "nodes: there are none"
    ids: set[int] = set()
    for index, node in enumerate(data["nodes"]):
        spot = f"nodes[{index}]"
        if not _whole(node.get("id")):
            yield f"{spot}.id: is {node.get('id')!r}; give a whole number"
        elif node["id"] in ids:
            yield f"{spot}.id: {node['id']} is taken by an earlier node"
        else:
            ids.add(node["id"])
        for key in FIGURES:
            value = node.get(key, 0.0 if key == "size" else None)
            if not _figure(value):
                yield f"{spot}.{key}: is {value!r}; give a number of at least 0"
        for key, default in (("supportedOnFpga", None), ("isBackwardNode", 0)):
            if node.get(key, default) not in (0, 1):
                yield f"{spot}.{key}: is {node.get(key)!r}; give true or false"
        if node.get("colorClass") is not None and not _whole(node["colorClass"]):
            yield f"{spot}.colorClass: is {node['colorClass']!r}; give a whole number or none"
    cost_of: dict[int, float] = {}
    for index, edge in enumerate(data["edges"]):
        spot = f"edges[{index}]"
        for key in ("sourceId", "destId"):
            if not _whole(edge.get(key)) or edge[key] not in ids:
                yield f"{spot}.{key}: {edge.get(key)!r} is the id of no node"
        cost = edge.get("cost")
        if not _figure(cost):
            yield f"{spot}.cost: is {cost!r}; give a number of at least 0"
        elif _whole(edge.get("sourceId")):
            first = cost_of.setdefault(edge["sourceId"], cost)
            if abs(first - cost) > COST_TOLERANCE:
                yield (
                    f"{spot}.cost: is {cost}, but {first} on another edge out of node "
                    f"{edge['sourceId']}; the cost is that of the node's output, give one"
                )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _figure(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MOST_FIGURE


def _published(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Optimum and the authors' time with their source, where `optima.json` knows the instance.

    And a remark, if that file cannot be read or used; the instance does not need it.
    """
    beside = path.parent / "optima.json"
    if not beside.exists():
        return None, ""
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
        known = data.get("instances", {}).get(path.stem)
        if known is None:
            return None, ""
        return {
            "optimum": float(known["optimum"]),
            "seconds": float(known["reference_seconds"]),
            "source": str(data["source"]),
        }, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return None, f"{beside}: no published figures ({type(error).__name__}: {error})"
