"""Rates from coefficients that were fitted to measurements of the same kind of device.

A card says what a device could do; what its kernels reach depends on their sizes, and laws of a few
coefficients for each architecture say how (`kernels.py`, `decodes.py`). The coefficients are in
`silicon.toml`; `benchmarks/silicon.py` fits and scores them. What no law was fitted for
(elementwise work, look-ups, products in float32) takes a launch and the roofline's time at the
share of the bandwidth that products reach. Units: seconds, bytes, FLOP/s.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from gimlax.devices import DeviceKind
from gimlax.graph.operations import ATTENTION, GROUPED, MATMUL, ROUTED, Operation
from gimlax.planning.rates import kernels
from gimlax.planning.rates.decodes import decode_attention_s
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import FITTED

__all__ = [
    "Accelerator",
    "Fitted",
    "accelerators",
    "choose_coefficients",
    "coefficients",
    "is_fitted",
]

_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "float8_e4m3fn": "float8",
    "float8_e5m2": "float8",
    "float4_e2m1fn": "float4",
}
_ITEMSIZES = {"bfloat16": 2.0, "float8": 1.0, "float4": 0.5625}  # float4 with its scales
_WIDER = {"float4": "float8", "float8": "bfloat16"}  # what a device without the format works in
_TILES = np.array(kernels.MATMUL_TILES, float).T  # [3, tile]
_EXPERT_TILES = np.array(kernels.EXPERT_TILES, float).T


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What laws need to know of an accelerator: figures of its card, none of them fitted.

    Attributes:
        name: as in the catalogue of device kinds, where it is listed there.
        system: what the package with the measurements calls it.
        architecture: whose coefficients it shares.
        four_bit_architecture: whose coefficients of 4-bit formats, where its units for them differ.
        peak_flops_per_s: dense, by dtype.
        memory_bytes_per_s: peak.
        link_bytes_per_s: to its neighbours, one way.
        processors: that tiles are given to.
        cache_bytes: the cache that they share.
        clock_hz: the fastest of the processors.
        fills: whether its library cuts the keys of a decode so that all parts run at once.
        joins: whether decodes over caches of 8 bits have a kernel of their own.
        bus: whether its link is that of the host.
    """

    name: str
    system: str
    architecture: str
    peak_flops_per_s: Mapping[str, float]
    memory_bytes_per_s: float
    link_bytes_per_s: float
    processors: int
    cache_bytes: float
    clock_hz: float
    fills: bool = False
    joins: bool = False
    bus: bool = False
    four_bit_architecture: str | None = None

    def groups(self, dtype: str) -> tuple[str, str, str]:
        """Groups of coefficients that concern it, the narrowest first."""
        own = self.four_bit_architecture if dtype == "float4" else None
        return f"{own or self.architecture}/{dtype}", self.architecture, "all"

    def figures(self) -> dict[str, float]:
        """What laws take of it but for the peak, which is that of a dtype."""
        return {
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "link_bytes_per_s": self.link_bytes_per_s,
            "processors": self.processors,
            "cache_bytes": self.cache_bytes,
            "clock_hz": self.clock_hz,
            "fills": float(self.fills),
            "joins": float(self.joins),
            "bus": float(self.bus),
        }


@functools.cache
def _document() -> dict[str, Any]:
    text = resources.files("gimlax.planning.rates").joinpath("silicon.toml").read_text()
    return tomllib.loads(text)


def accelerators() -> dict[str, Accelerator]:
    """The accelerators whose measurements were used, by name."""
    listed = _document()["accelerator"]
    return {each["name"]: Accelerator(**each) for each in listed}


def coefficients() -> dict[str, Any]:
    """All coefficients: by class of kernel, architecture, and dtype where they depend on it."""
    return _document()["coefficients"]


@functools.cache
def find_coefficients(law: str, groups: tuple[str, ...]) -> dict[str, float]:
    """The coefficients of a law for one architecture and dtype."""
    return choose_coefficients(coefficients()[law], groups)


def choose_coefficients(
    law: Mapping[str, Mapping[str, float]], groups: tuple[str, ...]
) -> dict[str, float]:
    """By name, those of the first group there is; 0 where one concerns other dtypes only."""
    return {
        name: next((known[group] for group in groups if group in known), 0.0)
        for name, known in law.items()
    }


def is_fitted(c: Mapping[str, float]) -> bool:
    """Whether a law was fitted for the dtype that these were chosen for."""
    return bool(c["launch_s"] and c.get("efficiency", 1.0))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rates by the laws, with the card of a device kind.

    Attributes:
        kind: the card.
        accelerator: what laws need beyond it.
    """

    kind: DeviceKind
    accelerator: Accelerator

    @classmethod
    def of(cls, kind: DeviceKind) -> "Fitted | None":
        """Rates of a kind whose measurements were used, None for any other."""
        accelerator = accelerators().get(kind.name)
        return None if accelerator is None else cls(kind, accelerator)

    @property
    def source(self) -> str:
        """Coefficients that were fitted."""
        return FITTED

    def seconds(self, operation: Operation) -> float:
        """Seconds by the law of its class, or by the roofline at fitted bandwidth.

        Raises:
            SpecError: the card has no peak for the dtype.
        """
        dtype = self._dtype(operation.dtype)
        if dtype and operation.kind == MATMUL:
            return self._matmul_s(operation, dtype)
        if dtype and operation.kind in (GROUPED, ROUTED):
            return self._grouped_s(operation, dtype)
        if dtype and operation.kind == ATTENTION:
            return self._attention_s(operation, dtype)
        card = Roofline(self.kind)
        c = find_coefficients("matmul", self.accelerator.groups("bfloat16"))
        memory_s = card.memory_s(operation) * (1 / c["bandwidth"] + 1 / c["cached"])
        return c["launch_s"] + max(card.compute_s(operation), memory_s)

    def _dtype(self, name: str) -> str | None:
        """The fitted dtype that stands for a dtype of JAX."""
        dtype = _DTYPES.get(name)
        while dtype and dtype not in self.accelerator.peak_flops_per_s:
            dtype = _WIDER[dtype]
        return dtype

    def _matmul_s(self, operation: Operation, dtype: str) -> float:
        batch, m, n, k = operation.dims
        work = {
            "batch": batch,
            "m": m,
            "n": n,
            "k": k,
            "itemsize": _ITEMSIZES[dtype],
            "warm": 0.0 if operation.resident_bytes else 1.0,
        }
        c = find_coefficients("matmul", self.accelerator.groups(dtype))
        return float(np.min(kernels.matmul_s(np, c, self._device(dtype), work, _TILES)))

    def _grouped_s(self, operation: Operation, dtype: str) -> float:
        """A third of a layer of gated experts, which has three such products, of even load.

        The law is of whole layers, with what brings tokens to experts and back; which of its
        products this is matters little to them (at most 6 % for layers of four public models).
        """
        groups, rows, n, k = operation.dims[:4]
        work = {
            "tokens": rows,  # a token of several experts is several rows
            "chosen": 1,
            "experts": groups,
            "hidden": k,
            "inner": n,
            "devices": 1,
            "exponent": 0.0,
            "itemsize": _ITEMSIZES[dtype],
            "warm": 0.0,
        }
        c = find_coefficients("experts", self.accelerator.groups(dtype))
        device = self._device(dtype)
        return float(np.min(kernels.experts_s(np, c, device, work, _EXPERT_TILES))) / 3

    def _attention_s(self, operation: Operation, dtype: str) -> float:
        batch, heads, key_heads, queries, keys, size = operation.dims
        work = {
            "batch": batch,
            "heads": heads,
            "key_heads": key_heads,
            "queries": queries,
            "keys": keys,
            "size": size,
            "window": 0,
            "causal": 0.0,  # an operation's FLOPs count every pair of a query and a key
            "itemsize": _ITEMSIZES[dtype],
            "warm": 0.0,  # every layer has a cache of its own
        }
        dtype = "float8" if dtype == "float4" else dtype
        law = "decode_attention" if queries == 1 else "context_attention"
        if not is_fitted(find_coefficients(law, self.accelerator.groups(dtype))):
            dtype = "bfloat16"  # no kernel of the device was measured in the shorter format
        c = find_coefficients(law, self.accelerator.groups(dtype))
        device = self._device(dtype)
        if queries == 1:
            return float(decode_attention_s(np, c, device, work))
        return float(kernels.context_attention_s(np, c, device, work))

    def _device(self, dtype: str) -> dict[str, float]:
        listed = dict(self.kind.peak_flops_per_s)
        return self.accelerator.figures() | {
            "peak_flops_per_s": listed.get(dtype, self.accelerator.peak_flops_per_s[dtype]),
            "memory_bytes_per_s": self.kind.memory_bytes_per_s,
        }
