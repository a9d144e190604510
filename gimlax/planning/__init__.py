"""Which stage runs on which mesh: chosen exactly, bounded, and explained."""

from gimlax.planning.layout import Holding, Hop, Layout, Route
from gimlax.planning.objective import Objective
from gimlax.planning.planner import check_plan, pareto, plan
from gimlax.planning.plans import Plan
from gimlax.planning.predictions import (
    MeshPrediction,
    PhasePrediction,
    StagePrediction,
    TransferPrediction,
)
from gimlax.planning.shardings import MeshSharding

__all__ = [
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
    "TransferPrediction",
    "check_plan",
    "pareto",
    "plan",
]
