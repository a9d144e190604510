"""One case on a device beside the reference, or why it does not run there."""

from typing import Any

import jax

from gimlax import _jax
from gimlax.planning.tolerances import BETWEEN_CLIENTS, SAME_CLIENT, narrowest, tolerance
from gimlax.runtime.conformance.operations import Case, build
from gimlax.runtime.conformance.report import OFF, RIGHT, UNSUPPORTED, Outcome
from gimlax.runtime.handles import to_host
from gimlax.runtime.passes import first_line
from gimlax.runtime.probing.comparing import compare_arrays
from gimlax.runtime.probing.reference import Reference

__all__ = ["run_case"]


def run_case(case: Case, device: Any, reference: Reference) -> Outcome:
    """What becomes of a case on a device.

    Args:
        case: an operation in a dtype.
        device: of the backend.
        reference: runs the same in float32.
    """
    fn, args = build(case)
    leaves, treedef = jax.tree.flatten(args)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(fn(*jax.tree.unflatten(treedef, leaves)))

    closed = jax.make_jaxpr(flat)(*leaves)
    expected = reference.run(closed, leaves)
    try:
        given = jax.device_put(leaves, device)
        found = [to_host(x) for x in jax.jit(_jax.evaluate(closed))(*given)]
    except Exception as error:  # whatever a plugin raises, it does not run this
        return Outcome(
            operation=case.operation,
            dtype=case.dtype,
            status=UNSUPPORTED,
            why=f"{type(error).__name__}: {first_line(error)}"[:300],
        )
    relation = SAME_CLIENT if device.client is reference.device.client else BETWEEN_CLIENTS
    computed_in = narrowest([closed])
    worst: Outcome | None = None
    for mine, theirs in zip(found, expected, strict=True):
        allowed = tolerance(mine.dtype, relation, computed_in)
        difference = compare_arrays(mine, theirs, allowed)
        bound = allowed.bound(difference.largest)
        outcome = Outcome(
            operation=case.operation,
            dtype=case.dtype,
            status=OFF if difference.outside.any() else RIGHT,
            absolute=difference.absolute,
            relative=difference.relative,
            ulp=difference.ulp,
            bound=bound,
            result=f"{mine.dtype}{list(mine.shape)}",
        )
        if worst is None or outcome.rank > worst.rank:
            worst = outcome
    assert worst is not None
    return worst
