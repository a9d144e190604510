"""Why a plan is what it is: its rivals, what transfers take, and what would change the decision."""

from gimlax.planning.explanation.comparing import compare
from gimlax.planning.explanation.comparison import Change, Comparison, Rival

__all__ = ["Change", "Comparison", "Rival", "compare"]
