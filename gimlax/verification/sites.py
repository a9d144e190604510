"""Where stages of each mesh of a plan are compiled: here, in a child, or nowhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from gimlax import _jax, devices
from gimlax.errors import GimlaxError, SpecError
from gimlax.planning import Plan
from gimlax.verification.targets import Target, target_of
from gimlax.verification.toolchains import PLATFORMS, Toolchain, find_toolchain, how_to_install

__all__ = ["Site", "find_sites"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How stages on a mesh are compiled: here if `live`, in a child with `toolchain`, or not."""

    target: Target
    live: jax.sharding.Mesh | None = None
    toolchain: Toolchain | None = None
    why_not: str = ""

    @property
    def compiler(self) -> str:
        """Its versions, as tables and records have them."""
        if self.live is not None:
            return f"JAX {jax.__version__}, live backend"
        return str(self.toolchain) if self.toolchain else ""


def find_sites(plan: Plan, pythons: Mapping[str, str | Path]) -> dict[str, Site]:
    """The site of each mesh of a plan.

    Args:
        plan: whose meshes.
        pythons: interpreters that the user named, by platform.

    Raises:
        SpecError: one of these cannot compile for its platform, or there is no such platform.
    """
    found: dict[str, Site] = {}
    toolchains: dict[str, Toolchain | None] = {}
    targets = {spec.name: target_of(spec) for spec in plan.specs}
    for platform, python in pythons.items():  # what was named has to be right, used or not
        if platform not in PLATFORMS:
            raise SpecError(
                f"pythons names platform {platform!r}; give an interpreter for"
                f" {', '.join(map(repr, PLATFORMS))}"
            )
        toolchains[platform] = find_toolchain(platform, python)
    for spec in plan.specs:
        target = targets[spec.name]
        if (live := _live(spec)) is not None:
            found[spec.name] = Site(target=target, live=live)
            continue
        if target.why_not:
            found[spec.name] = Site(target=target, why_not=target.why_not)
            continue
        if target.platform not in toolchains:
            toolchains[target.platform] = find_toolchain(target.platform)
        toolchain = toolchains[target.platform]
        why_not = "" if toolchain else f"no compiler is here; {how_to_install(target.platform)}"
        found[spec.name] = Site(target=target, toolchain=toolchain, why_not=why_not)
    return found


def _live(spec: devices.MeshSpec) -> jax.sharding.Mesh | None:
    """The mesh of a spec if its backend is live in this process; starts none."""
    if not spec.backend or spec.backend not in _jax.backend_names():
        return None
    try:
        return devices.bind([spec])[spec.name]
    except GimlaxError:  # another machine's plan: fewer devices here, or of another kind
        return None
