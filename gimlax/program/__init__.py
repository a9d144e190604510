"""From a plan to instruction lists, and the record of what happened when they ran."""

from gimlax.program.account import Account, Entry, Use
from gimlax.program.emission import emit, lay_out
from gimlax.program.instructions import (
    Free,
    Instruction,
    Program,
    Run,
    Step,
    Transfer,
    sequence,
    task_of,
    track_of_link,
)
from gimlax.program.timeline import Span, Timeline

__all__ = [
    "Account",
    "Entry",
    "Free",
    "Instruction",
    "Program",
    "Run",
    "Span",
    "Step",
    "Timeline",
    "Transfer",
    "Use",
    "emit",
    "lay_out",
    "sequence",
    "task_of",
    "track_of_link",
]
