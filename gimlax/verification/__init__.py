"""Plans verified for hardware that is not there: compiled, measured by XLA's own account, told."""

from gimlax.verification.answers import Answer, Compiled, Emitted
from gimlax.verification.targets import Target, mesh_of, target_of
from gimlax.verification.verdicts import OUTCOMES, MeshVerdict, StageVerdict, Verification
from gimlax.verification.verifying import verify

__all__ = [
    "OUTCOMES",
    "Answer",
    "Compiled",
    "Emitted",
    "MeshVerdict",
    "StageVerdict",
    "Target",
    "Verification",
    "mesh_of",
    "target_of",
    "verify",
]
