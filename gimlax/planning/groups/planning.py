"""Plans for groups of devices: meshes made of them, replicas, shares, predictions, bound.

The requests of a boundary are shared out over the meshes that go on from there, among equal ones
evenly. A goal that looks at latency alone has one request at a time in mind, and gets no replicas.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jax.sharding import PartitionSpec

from gimlax.devices import Calibration, Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.planning.carriers import carriers
from gimlax.planning.fronts import curve
from gimlax.planning.groups.comparing import compare_groups
from gimlax.planning.groups.infeasible import why_not
from gimlax.planning.groups.pricing import GroupCosts, price_groups
from gimlax.planning.layout import Holding, Layout
from gimlax.planning.objective import Objective
from gimlax.planning.plans import Plan, Source, evidence_of
from gimlax.planning.predicting import predict_phase
from gimlax.planning.predictions import MeshPrediction
from gimlax.planning.shardings import MeshSharding
from gimlax.planning.solvers.pools import Held, Solution, solve
from gimlax.planning.tolerances import edge_tolerances

__all__ = ["GroupSetting"]

_TIME_LIMIT_S = 20.0
_NUM_POINTS = 9  # of a front


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupSetting:
    """All that plans for one chain on the groups of one cluster have in common."""

    chain: Chain
    cluster: Cluster
    calibration: Calibration | None
    figures: GroupCosts

    @classmethod
    def of(
        cls,
        chain: Chain,
        cluster: Cluster,
        *,
        calibration: Calibration | None,
        shardings: Mapping[str, PartitionSpec] | None,
        split_batch: bool,
    ) -> Self:
        """The figures of all segments on meshes of all shapes."""
        figures = price_groups(chain, cluster, calibration, shardings, split_batch=split_batch)
        return cls(chain=chain, cluster=cluster, calibration=calibration, figures=figures)

    def search(self, objective: Objective, time_limit_s: float | None) -> Solution | None:
        """The best plan that was found, None if none was."""
        problem = self.figures.problem(self.cluster)
        return solve(problem, objective, time_limit_s=time_limit_s or _TIME_LIMIT_S)

    def front(
        self, goals: tuple[str, str], limits: Mapping[str, float], time_limit_s: float | None
    ) -> list[tuple[Objective, Solution]]:
        """Points of the front of two terms, each with the question it answers."""
        return curve(
            goals, lambda objective: self.search(objective, time_limit_s), limits, _NUM_POINTS
        )

    def why_not(self, objective: Objective) -> PlanError:
        """Why no plan was found."""
        return why_not(self.cluster, self.figures, objective)

    def plan(self, objective: Objective, found: Solution, time_limit_s: float | None) -> Plan:
        """The record of a plan that was found."""
        chain, figures, period_s = self.chain, self.figures, found.terms.period_s
        held = sorted(found.held, key=lambda h: (h.first, h.stop, h.option))
        each = [h for h in held for _ in range(h.count)]
        names, made = self._meshes(each)
        shares = [h.requests_per_s / h.count * period_s for h in each]
        layout = Layout.shared(
            [
                Holding(mesh=name, first_segment=h.first, num_segments=h.stop - h.first)
                for name, h in zip(names, each, strict=True)
            ],
            shares,
            pools=[int(figures.option_group[h.option]) for h in each],
            inward=[[part / h.count * period_s for part in h.inward] for h in each],
            onward=[[part / h.count * period_s for part in h.onward] for h in each],
        )
        options = [h.option for h in each]
        stage_s = [float(figures.figures.problem.stage_s[h.option, h.first, h.stop]) for h in each]
        latency_s = found.terms.latency_s
        hops_s = latency_s - float(np.dot(shares, stage_s))
        single = [] if layout.branches else list(zip(names, options, strict=True))
        groups = [self.cluster.groups[figures.option_group[option]].name for option in options]
        return Plan(
            objective=objective,
            layout=layout,
            phases=tuple(
                predict_phase(
                    chain, made, self.calibration, figures.figures, layout, options, index
                )
                for index in range(len(chain.phases))
            ),
            meshes=_memory(figures, names, each, np.array(shares) * stage_s),
            value=found.value,
            bound=found.bound,
            latency_s=latency_s,
            period_s=period_s,
            usd=_known(found.terms.usd),
            joules=_known(found.terms.joules),
            method=found.method,
            model=chain.fingerprint(),
            cluster=self.cluster.fingerprint(),
            specs=tuple(made.mesh(name) for name in names),
            segments=chain.names,
            calibration=self.calibration.title if self.calibration else "",
            sources=Source.of(self.cluster, groups),
            evidence=evidence_of(self.cluster, groups),
            comparison=compare_groups(
                self.cluster,
                figures,
                objective,
                found,
                max(hops_s, 0.0) / latency_s,
                time_limit_s or _TIME_LIMIT_S,
            ),
            # Only what has one route can be compiled.
            shardings=tuple(
                MeshSharding.of(name, figures.figures.sharded[shape], chain)
                for name, option in single
                if (shape := figures.shapes[option].name) in figures.figures.sharded
            ),
            tolerances=edge_tolerances(layout, made.meshes, chain),
            carriers=carriers(layout, made.meshes, made.workers),
        )

    def _meshes(self, each: Sequence[Held]) -> tuple[list[str], Cluster]:
        """A mesh for every replica: their names, and the cluster with them."""
        shapes: dict[str, list[tuple[int, int]]] = {group.name: [] for group in self.cluster.groups}
        names: list[str] = []
        for h in each:
            group = self.cluster.groups[self.figures.option_group[h.option]].name
            names.append(f"{group}/{len(shapes[group])}")
            axes = dict(self.figures.shapes[h.option].axes)
            shapes[group].append((axes["data"], axes["model"]))
        return names, self.cluster.carve(shapes)


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _memory(
    figures: GroupCosts, names: Sequence[str], each: Sequence[Held], load_s: np.ndarray
) -> tuple[MeshPrediction, ...]:
    result = []
    known: dict[Held, tuple[int, int]] = {}
    for name, h, load in zip(names, each, load_s, strict=True):
        temp, received = figures.figures.passing_bytes(h.first, h.stop)
        if h not in known:
            run = [(h.first, h.stop)]
            known[h] = (
                figures.figures.resident_bytes(h.option, run),
                figures.figures.carried_bytes(h.option, run),
            )
        resident, carried = known[h]
        result.append(
            MeshPrediction(
                mesh=name,
                resident_bytes=resident,
                carried_bytes=carried,
                temp_bytes=temp,
                received_bytes=received,
                capacity_bytes=int(figures.figures.problem.capacity_bytes[h.option]),
                load_s=float(load),
                basis=figures.figures.rates[h.option].source,
                collectives=figures.figures.collectives[h.option],
                memory="on_chip" if figures.figures.on_chip[h.option] else "device",
            )
        )
    return tuple(result)
