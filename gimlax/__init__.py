"""gimlax runs one JAX model across whatever accelerators its user has.

A function is traced to a jaxpr, cut into stages, planned with numbers over meshes of mixed
backends, and run as a pipeline. `README.md` shows the road, `gimlax.jit` does all of it in one
call.
"""

from gimlax._floor import require_jax

require_jax()

from gimlax.api import Jitted, Lowered, jit
from gimlax.checkpoints import load, save
from gimlax.devices import Cluster, Link, MeshSpec, discover
from gimlax.errors import (
    BackendError,
    ContractWarning,
    GimlaxError,
    InternalError,
    PlanError,
    SpecError,
    TraceError,
)
from gimlax.graph import Chain, Role, Traced, Workload, chain, trace
from gimlax.planning import Objective, Plan, pareto, plan
from gimlax.program import Timeline
from gimlax.runtime import (
    Carried,
    Executable,
    Executables,
    Placed,
    Report,
    Workers,
    compile,
    gather,
    probe,
    start_workers,
)
from gimlax.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Carried",
    "Chain",
    "Cluster",
    "ContractWarning",
    "Executable",
    "Executables",
    "GimlaxError",
    "InternalError",
    "Jitted",
    "Link",
    "Lowered",
    "MeshSpec",
    "Objective",
    "Placed",
    "Plan",
    "PlanError",
    "Report",
    "Role",
    "SpecError",
    "Timeline",
    "TraceError",
    "Traced",
    "Verification",
    "Workers",
    "Workload",
    "chain",
    "compile",
    "discover",
    "gather",
    "jit",
    "load",
    "pareto",
    "plan",
    "probe",
    "save",
    "start_workers",
    "trace",
    "verify",
]
