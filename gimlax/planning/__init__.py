"""Which stage runs on which mesh: chosen exactly, bounded, and explained."""

from gimlax.planning.belonging import check_plan, in_order
from gimlax.planning.carriers import Carrier
from gimlax.planning.layout import Holding, Hop, Layout, Route
from gimlax.planning.objective import Objective
from gimlax.planning.planner import pareto, plan
from gimlax.planning.plans import Plan
from gimlax.planning.predictions import (
    MeshPrediction,
    PhasePrediction,
    StagePrediction,
    TransferPrediction,
)
from gimlax.planning.shardings import MeshSharding
from gimlax.planning.tariffs import check_known
from gimlax.planning.tolerances import EdgeTolerance, Tolerance

__all__ = [
    "Carrier",
    "EdgeTolerance",
    "Holding",
    "Hop",
    "Layout",
    "MeshPrediction",
    "MeshSharding",
    "Objective",
    "PhasePrediction",
    "Plan",
    "Route",
    "StagePrediction",
    "Tolerance",
    "TransferPrediction",
    "check_known",
    "check_plan",
    "in_order",
    "pareto",
    "plan",
]
