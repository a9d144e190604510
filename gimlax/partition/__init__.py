"""Carries out given cuts, and says how stages may be sharded: mechanism without choice."""

from gimlax.partition.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    PERMUTE,
    REDUCE_SCATTER,
    Collective,
)
from gimlax.partition.cutting import cut
from gimlax.partition.groups import Group, Split, find_groups
from gimlax.partition.inside import GroupSplits, evaluate_inside
from gimlax.partition.runs import Run, Source, find_runs
from gimlax.partition.specs import Spec, mistakes, normal, partition_spec, shard_shape, whole
from gimlax.partition.stages import Edge, Partition, Stage
from gimlax.partition.ways import evaluate

__all__ = [
    "ALL_GATHER",
    "ALL_REDUCE",
    "ALL_TO_ALL",
    "PERMUTE",
    "REDUCE_SCATTER",
    "Collective",
    "Edge",
    "Group",
    "GroupSplits",
    "Partition",
    "Run",
    "Source",
    "Spec",
    "Split",
    "Stage",
    "cut",
    "evaluate",
    "evaluate_inside",
    "find_groups",
    "find_runs",
    "mistakes",
    "normal",
    "partition_spec",
    "shard_shape",
    "whole",
]
