"""Layer placements over mixed machines (Helix, Mei et al., ASPLOS 2025), from file to record.

An instance has `num_layers`, `machines` by kind (`count`, and `tokens_per_s_by_layers`: what one of
them passes when it holds 1, 2, ... layers, up to `max_layers` of them where that is given), and the
`link` between every pair. `published` may give figures to quote: they are those of the authors'
model of throughput, not of a serving system.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gimlax.errors import PlanError, SpecError
from gimlax.planning.solvers.cover import solve_cover
from gimlax.planning.solvers.cover_problem import CoverProblem
from instances.checking import figure, figures, records, whole

FORMAT = "helix"
CAVEAT = "largest flow in the authors' model of throughput, which is not tokens/s of a service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A cluster and a model, with what was published about it."""

    name: str
    problem: CoverProblem
    published: dict[str, Any] | None


def recognises(data: Any) -> bool:
    """Whether the content of a file is of this format."""
    if not isinstance(data, dict) or not isinstance(data.get("machines"), dict):
        return False
    kinds = [kind for kind in data["machines"].values() if isinstance(kind, dict)]
    return any("tokens_per_s_by_layers" in kind for kind in kinds)


def read(path: Path, data: dict[str, Any]) -> Instance:
    """An instance from the content of its file.

    Raises:
        SpecError: it is not right; all reasons, each with its key.
    """
    wrong: list[str] = []
    num_layers = whole(data, "num_layers", wrong, least=1, most=100_000)
    counts: dict[str, int] = {}
    rates: dict[str, np.ndarray] = {}
    for kind, record in records(data["machines"], "machines", wrong):
        where = f"machines.{kind}"
        counts[kind] = whole(record, "count", wrong, where=where, most=100_000)
        rates[kind] = figures(record, "tokens_per_s_by_layers", wrong, where=where)
        if record.get("max_layers") is not None:
            most = whole(record, "max_layers", wrong, where=where, least=1, most=100_000)
            rates[kind] = rates[kind][:most]
    link = data.get("link")
    limit = float("inf")
    if link is not None:
        if not isinstance(link, dict):
            wrong.append("link: is no record; give bandwidth_bytes_per_s of every pair, or no link")
        else:
            speed = figure(link, "bandwidth_bytes_per_s", wrong, where="link")
            size = figure(link, "activation_bytes_per_token", wrong, where="link")
            limit = speed / size if size else limit
    if wrong:
        raise SpecError("; ".join(f"{path}: {reason}" for reason in wrong))
    try:
        problem = CoverProblem(
            num_layers=num_layers, counts=counts, rates=rates, link_tokens_per_s=limit
        )
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    published = data.get("published")
    return Instance(
        name=str(data.get("name", path.stem)),
        problem=problem,
        published=_quoted(data, published) if isinstance(published, dict) else None,
    )


def solve(
    instance: Instance, time_limit_s: float, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """The best placement as a record; an instance without one has an `error`."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "instance": instance.name,
        "goal": "largest tokens/s that pass every layer",
        "published": instance.published,
    }
    try:
        found = solve_cover(instance.problem, time_limit_s=time_limit_s, clock=clock)
    except PlanError as error:
        return record | {"error": str(error)}
    placement = [
        {"machine": i.machine, "first_layer": i.first_layer, "num_layers": i.num_layers}
        for i in found.layout
    ]
    return record | {
        "objective": found.value,
        "bound": found.bound,
        "gap": found.gap,
        "seconds": found.seconds,
        "placement": placement,
    }


def _quoted(data: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    return {
        "objective": _number(published.get("objective_tokens_per_s")),
        "seconds": published.get("solver_seconds"),
        "gap_percent": published.get("solver_gap_percent"),
        "solver": published.get("solver"),
        "proven": published.get("proven_optimal"),
        "source": data.get("source"),
        "caveat": CAVEAT,
    }


def _number(value: object) -> float | None:
    """A figure to quote, none where it is no number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
