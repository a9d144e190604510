"""Arguments for a probe: made from the shapes of a trace, or read from what somebody passed.

Made ones are a function of the seed and the leaf. They have to be safe without knowing what an
argument means:

- Floats of two and more dims are normal, parameters with the deviation that keeps a product of
  matrices near 1 (one over the root of the longer of the last two dims). Vectors and scalars lie
  between 0.5 and 1.5, since a scale or a variance of zero or below makes a model break down.
- Whole numbers that find their way to a gather or a slice index what lies within it: they are drawn
  below the smallest extent that they index anywhere, or below half of it where other numbers are
  added to them on the way (a position plus an offset). Those of 8 bits and less that index nothing
  are quantised weights and take their full range; all others are 0 or 1, which an index, a count, a
  length and a flag can be.
- Three booleans of four are true, so that a mask leaves something over. Keys are split from one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.graph import Part, Role, Traced
from gimlax.runtime.handles import to_host

__all__ = ["from_leaves", "index_limits", "made_from_shapes"]


def made_from_shapes(traced: Traced, seed: int = 0) -> Callable[[Role, Part], Any]:
    """Arguments for a function, as a probe takes them; a leaf is made when it is asked for."""
    limits = index_limits(traced)

    def given(role: Role, part: Part) -> Any:
        leaf = traced.leaves(role)[part.leaf]
        rng = np.random.default_rng((seed, leaf))
        array = _make(traced.arguments[leaf].aval, role, limits.get(leaf), rng)
        return array if part.whole else array[part.start : part.stop]

    return given


def from_leaves(traced: Traced, leaves: Sequence[Any]) -> Callable[[Role, Part], Any]:
    """Arguments that are at hand: one array for each argument of the trace, in order."""

    def given(role: Role, part: Part) -> Any:
        leaf = traced.leaves(role)[part.leaf]
        array = leaves[leaf] if part.whole else leaves[leaf][part.start : part.stop]
        if isinstance(array, jax.Array):
            return to_host(array)
        return np.asarray(array, traced.arguments[leaf].aval.dtype)

    return given


def index_limits(traced: Traced) -> dict[int, int]:
    """By argument leaf, below what its whole numbers stay if they index only what is there."""
    reach = _Reach()
    jaxpr = traced.jaxpr.jaxpr
    held = {var: {leaf: False} for leaf, var in enumerate(jaxpr.invars) if _is_whole(var)}
    reach.walk(jaxpr, held)
    return reach.limits


def _make(
    aval: jax.ShapeDtypeStruct, role: Role, limit: int | None, rng: np.random.Generator
) -> Any:
    dtype, shape = aval.dtype, aval.shape
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        blank = jnp.empty((), dtype)
        words = rng.integers(0, 2**32, (*shape, *jax.random.key_data(blank).shape), np.uint32)
        return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(blank))
    if dtype == np.bool_:
        return rng.random(shape) < 0.75
    if jnp.issubdtype(dtype, np.integer):
        low, high = 0, 2 if limit is None else limit
        if limit is None and jnp.iinfo(dtype).bits <= 8:
            low, high = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max) + 1
        high = min(high, int(jnp.iinfo(dtype).max) + 1)
        return rng.integers(low, high, shape, np.int64).astype(dtype)
    if len(shape) < 2:
        return (0.5 + rng.random(shape)).astype(dtype)
    scale = max(shape[-2:]) ** -0.5 if role is Role.RESIDENT else 1.0
    values = scale * rng.standard_normal(shape)
    if jnp.issubdtype(dtype, np.complexfloating):
        values = values + 1j * scale * rng.standard_normal(shape)
    return values.astype(dtype)


class _Reach:
    """Follows whole numbers through equations to what they index.

    What is held of a variable maps argument leaves to whether other numbers were added to them.
    """

    def __init__(self) -> None:
        self.limits: dict[int, int] = {}

    def walk(self, jaxpr: _jax.Jaxpr, held: dict[Any, dict[int, bool]]) -> None:
        """Follows through a jaxpr, given what is held of its inputs."""
        for eqn in jaxpr.eqns:
            of = [held.get(v, {}) if isinstance(v, _jax.Var) else {} for v in eqn.invars]
            self._index(eqn, of)
            for body in _jax.inner_jaxprs(eqn):
                # Bodies take the last inputs, whatever stands before them (an index, constants).
                inner = body.jaxpr.invars
                if len(inner) <= len(of):
                    self.walk(body.jaxpr, dict(zip(inner, of[len(of) - len(inner) :])))
            mixed = self._is_mixing(eqn, of)
            found: dict[int, bool] = {}
            for leaves in of:
                for leaf, added in leaves.items():
                    found[leaf] = found.get(leaf, False) or added or mixed
            for var in eqn.outvars:
                if found and _is_whole(var):
                    held[var] = found

    def _index(self, eqn: _jax.JaxprEqn, of: Sequence[dict[int, bool]]) -> None:
        name = eqn.primitive.name
        if name in ("dynamic_slice", "dynamic_update_slice"):
            first = 1 if name == "dynamic_slice" else 2
            whole = eqn.invars[0].aval.shape  # type: ignore[attr-defined]
            taken = (
                eqn.params["slice_sizes"] if name == "dynamic_slice" else eqn.invars[1].aval.shape  # type: ignore[attr-defined]
            )
            for leaves, size, part in zip(of[first:], whole, taken, strict=True):
                self._limit(leaves, size - part + 1)
        elif name == "gather" or name.startswith("scatter"):
            numbers = eqn.params["dimension_numbers"]
            dims = (
                numbers.start_index_map
                if name == "gather"
                else numbers.scatter_dims_to_operand_dims
            )
            shape = eqn.invars[0].aval.shape  # type: ignore[attr-defined]
            sizes = eqn.params.get("slice_sizes", [1] * len(shape))
            if dims:
                self._limit(of[1], min(shape[d] - sizes[d] + 1 for d in dims))

    def _limit(self, leaves: dict[int, bool], extent: int) -> None:
        for leaf, added in leaves.items():
            limit = max(1, extent // 2 if added else extent)
            self.limits[leaf] = min(limit, self.limits.get(leaf, limit))

    @staticmethod
    def _is_mixing(eqn: _jax.JaxprEqn, of: Iterable[dict[int, bool]]) -> bool:
        """Whether an equation adds something else than a literal (which wraps negative indices)."""
        if eqn.primitive.name not in ("add", "sub", "mul", "cumsum", "reduce_sum", "dot_general"):
            return False
        return sum(isinstance(v, _jax.Var) for v in eqn.invars) > 1


def _is_whole(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, np.integer)
