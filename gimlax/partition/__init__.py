"""Carries out given cuts: stages as closed jaxprs, and the values that cross between them."""

from gimlax.partition.cutting import cut
from gimlax.partition.stages import Edge, Partition, Stage

__all__ = ["Edge", "Partition", "Stage", "cut"]
