"""A jaxpr as it would be in float32: what a function means before its dtypes round it.

Every float that is narrower than float32 is held as float32: conversions to a narrow dtype keep
the wide value, literals and the bodies of loops, branches and composites are widened too, and
products of matrices are asked for at the highest precision. Chosen over running the same dtypes
elsewhere because that has rounding errors of its own, as large as those that it should judge.
Whole numbers, booleans, keys and float64 stay as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax

__all__ = ["is_narrow", "widen_dtype", "widened"]

# What looks at the bits or calls out: these see the dtypes that the user wrote.
_OF_BITS = {"bitcast_convert_type", "nextafter", "ffi_call", "pure_callback", "io_callback"}
_MOST_PRECISE = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def is_narrow(dtype: Any) -> bool:
    """Whether this is a float dtype with fewer bits than float32."""
    return jnp.issubdtype(dtype, np.floating) and jnp.finfo(dtype).bits < 32


def widen_dtype(dtype: Any) -> Any:
    """float32 for narrower floats, any other dtype itself."""
    return np.dtype(np.float32) if is_narrow(dtype) else dtype


def widened(closed: _jax.ClosedJaxpr) -> Callable[..., list[Any]]:
    """A callable that evaluates `closed` in float32 on flat inputs, which are widened already."""

    def run(*inputs: Any) -> list[Any]:
        env: dict[_jax.Var, Any] = {}
        jaxpr = closed.jaxpr
        env.update(zip(jaxpr.constvars, map(_wide, closed.consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: _jax.Atom) -> Any:
            if isinstance(atom, _jax.Literal):
                return jnp.asarray(atom.val, widen_dtype(_jax.aval_of(atom).dtype))
            return env[atom]

        for eqn in jaxpr.eqns:
            outputs = _apply(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return run


def _apply(eqn: _jax.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The outputs of one equation, widened."""
    if (body := _jax.callee(eqn)) is not None:
        return widened(body)(*inputs)
    name = eqn.primitive.name
    if name == "sharding_constraint":  # it names a mesh that is not the reference's
        return inputs
    if name == "composite":
        (decomposition,) = _jax.inner_jaxprs(eqn)
        return widened(decomposition)(*inputs)
    if name in _OF_BITS:
        given = [
            value.astype(_jax.aval_of(atom).dtype) if is_narrow(_jax.aval_of(atom).dtype) else value
            for atom, value in zip(eqn.invars, inputs, strict=True)
        ]
        return [_wide(output) for output in _jax.bind(eqn, given)]
    params = {key: _widened_param(key, value) for key, value in eqn.params.items()}
    return _jax.bind(eqn.replace(params=params), inputs)


def _widened_param(key: str, value: Any) -> Any:
    if isinstance(value, np.dtype):
        return widen_dtype(value)
    if isinstance(value, _jax.ClosedJaxpr | _jax.Jaxpr):
        return _widened_body(value)
    if isinstance(value, tuple) and any(isinstance(v, _jax.ClosedJaxpr) for v in value):
        return tuple(map(_widened_body, value))
    if key == "precision" and value is not None:
        return _MOST_PRECISE
    return value


def _widened_body(body: Any) -> Any:
    """The jaxpr of a loop or a branch, widened; of the class that it had."""
    is_closed = isinstance(body, _jax.ClosedJaxpr)
    closed = body if is_closed else _jax.ClosedJaxpr(body, ())
    avals = [
        jax.ShapeDtypeStruct(aval.shape, widen_dtype(aval.dtype))
        for aval in map(_jax.aval_of, closed.jaxpr.invars)
    ]
    found = jax.make_jaxpr(widened(closed))(*avals)
    return found if is_closed else found.jaxpr


def _wide(value: Any) -> Any:
    """An array in float32 if it is narrower."""
    dtype = value.dtype if hasattr(value, "dtype") else jax.dtypes.result_type(value)
    return jnp.asarray(value, np.float32) if is_narrow(dtype) else value


def widen_arrays(arrays: Sequence[Any]) -> list[Any]:
    """Host arrays with narrow floats as float32."""
    return [a.astype(np.float32) if is_narrow(a.dtype) else a for a in arrays]
