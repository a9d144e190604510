"""Which stage runs on which mesh: chosen exactly, bounded, and explained."""

from gimlax.planning.layout import Holding, Hop, Layout, Route
from gimlax.planning.objective import Objective
from gimlax.planning.planner import check_plan, plan
from gimlax.planning.plans import Plan
from gimlax.planning.predictions import (
    MeshPrediction,
    PhasePrediction,
    StagePrediction,
    TransferPrediction,
)

__all__ = [
    "Holding",
    "Hop",
    "Layout",
    "MeshPrediction",
    "Objective",
    "PhasePrediction",
    "Plan",
    "Route",
    "StagePrediction",
    "TransferPrediction",
    "check_plan",
    "plan",
]
