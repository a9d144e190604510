"""What a backend makes of the operations that models use, to show that a new plugin is fit."""

from gimlax.runtime.conformance.isolated import check_platform
from gimlax.runtime.conformance.report import Conformance, Outcome

__all__ = ["Conformance", "Outcome", "check_platform"]
