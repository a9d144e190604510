"""The number that each element type has on the wire, and why some have none.

Elements travel in NumPy's layout: native little-endian, one byte for each element of less than a
byte. Typed PRNG keys have no layout that two versions of JAX promise each other, so they are
refused by name; their `key_data` is an ordinary array.
"""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gimlax.errors import SpecError

__all__ = ["code_of", "dtype_of_code"]

# Append only: a number never gets another meaning.
_NAMES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "int2",
    "int4",
    "uint2",
    "uint4",
    "float4_e2m1fn",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "int1",
    "uint1",
    "float6_e2m3fn",
    "float6_e3m2fn",
)


def _known() -> Mapping[int, np.dtype]:
    found = {
        code: getattr(np, name, None) or getattr(ml_dtypes, name, None)
        for code, name in enumerate(_NAMES, 1)
    }
    return types.MappingProxyType(
        {code: np.dtype(scalar) for code, scalar in found.items() if scalar is not None}
    )


_DTYPES = _known()
_CODES: Mapping[np.dtype, int] = types.MappingProxyType({d: c for c, d in _DTYPES.items()})


def code_of(dtype: Any, what: str) -> int:
    """The number of an element type.

    Args:
        dtype: of an array.
        what: how a message calls the array.

    Raises:
        SpecError: it cannot travel; names the type and what to do.
    """
    code = _CODES.get(dtype) if isinstance(dtype, np.dtype) else None
    if code is not None:
        return code
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise SpecError(
            f"{what} holds typed PRNG keys ({dtype}), which do not travel; send "
            "jax.random.key_data of it and wrap it with jax.random.wrap_key_data at the other end"
        )
    raise SpecError(f"{what} has dtype {dtype}, which does not travel; give a dtype of JAX's")


def dtype_of_code(code: int) -> np.dtype | None:
    """The element type of a number, None if this gimlax knows none."""
    return _DTYPES.get(code)
