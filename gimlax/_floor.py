"""The oldest JAX that gimlax runs on, checked before anything else is imported.

Below it the first sign would be a missing name deep in some import; here it is one sentence with
the command to run. It is an `ImportError`, not one of `gimlax.errors`: those cannot be imported by
then.
"""

import importlib.metadata
import re

JAX_FLOOR = (0, 10, 0)


def require_jax(version: str | None = None) -> None:
    """Raises `ImportError` when JAX is older than `JAX_FLOOR`.

    Args:
      version: what to check, by default the version of the installed package.
    """
    if version is None:
        version = importlib.metadata.version("jax")
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if found < JAX_FLOOR:
        floor = ".".join(map(str, JAX_FLOOR))
        raise ImportError(
            f"gimlax needs JAX {floor} or newer and found {version}; run: "
            f'python -m pip install --upgrade "jax>={floor}" "jaxlib>={floor}"'
        )
