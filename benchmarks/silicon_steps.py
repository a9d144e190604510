"""Prices a forward pass of a served model, operation by operation, by laws or by the roofline.

What a pass consists of is what aiconfigurator-core lists for a model: products, attention, experts,
collectives, and what streams through memory. Here each of them gets a price: `Laws` by fitted
coefficients, `Bare` by the plain roofline. Units: seconds; sizes are of one device.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from silicon_rows import ITEMSIZES, exponent
from silicon_scores import WORK

from gimlax.planning.rates import kernels
from gimlax.planning.rates.decodes import decode_attention_s
from gimlax.planning.rates.fitted import Accelerator, choose_coefficients, is_fitted

__all__ = ["Bare", "Laws", "NoLawError", "Pass", "pass_s"]

_WIDER = {"float4": "float8", "float8": "bfloat16"}
_DTYPES = {"nvfp4": "float4", "fp8": "float8", "fp8_block": "float8", "fp8_static": "float8"}
_FOUR_BIT = ("int4", "mxfp4", "w4a")
_COLLECTIVES = ("CustomAllReduce", "MoeDispatch", "Nccl")
_TILES = {
    "matmul": np.array(kernels.MATMUL_TILES, float).T,
    "experts": np.array(kernels.EXPERT_TILES, float).T,
}
_LAWS = {
    "matmul": kernels.matmul_s,
    "context_attention": kernels.context_attention_s,
    "decode_attention": decode_attention_s,
    "experts": kernels.experts_s,
    "all_reduce": kernels.all_reduce_s,
}


class NoLawError(Exception):
    """An operation that nothing here prices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What goes through a model at once: prompts, and sequences that get one token each.

    Attributes:
        prompts: how many prompts, each of `prompt_tokens`.
        decodes: how many sequences, each with `cached_tokens` before it.
    """

    prompts: int = 0
    prompt_tokens: int = 0
    decodes: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All that the products see."""
        return self.prompts * self.prompt_tokens + self.decodes


@dataclasses.dataclass(frozen=True, slots=True)
class Laws:
    """Prices by fitted coefficients; `found` keeps those of kernels, which many rows share."""

    accelerator: Accelerator
    coefficients: Mapping[str, Any]
    found: dict[Any, float] = dataclasses.field(default_factory=dict)

    def seconds(self, name: str, dtype: str, work: tuple[tuple[str, float], ...]) -> float:
        """One kernel."""
        key = name, dtype, work
        if key not in self.found:
            self.found[key] = self._price(name, dtype, dict(work))
        return self.found[key]

    def stream_s(self, num_bytes: float) -> float:
        """What reads and writes so many bytes."""
        c = self._choose("matmul", "bfloat16")
        byte_s = (1 / c["bandwidth"] + 1 / c["cached"]) / self.accelerator.memory_bytes_per_s
        return c["launch_s"] + num_bytes * byte_s

    def _price(self, name: str, dtype: str, work: dict[str, float]) -> float:
        known = dtype
        while known in _WIDER and not is_fitted(self._choose(name, known)):
            known = _WIDER[known]
        c = self._choose(name, known)
        if work.pop("ready", 0.0):  # the operand comes in the short format already
            c["quantise"] = 0.0
        tile = (_TILES[name],) if name in _TILES else ()
        return float(np.min(_LAWS[name](np, c, _device(self.accelerator, dtype), work, *tile)))

    def _choose(self, name: str, dtype: str) -> dict[str, float]:
        law = self.coefficients[name]
        return choose_coefficients(law, self.accelerator.groups(dtype))


@dataclasses.dataclass(frozen=True, slots=True)
class Bare:
    """Prices by the plain roofline."""

    accelerator: Accelerator

    def seconds(self, name: str, dtype: str, work: tuple[tuple[str, float], ...]) -> float:
        """One kernel."""
        flops, num_bytes = WORK[name](dict(work))
        if name == "all_reduce":
            return float(num_bytes / self.accelerator.link_bytes_per_s)
        device = _device(self.accelerator, dtype)
        compute_s = flops / device["peak_flops_per_s"]
        return float(np.maximum(compute_s, num_bytes / device["memory_bytes_per_s"]))

    def stream_s(self, num_bytes: float) -> float:
        """What reads and writes so many bytes."""
        return num_bytes / self.accelerator.memory_bytes_per_s


def pass_s(prices: Laws | Bare, context: list[Any], generation: list[Any], through: Pass) -> float:
    """Seconds of a forward pass.

    Args:
        prices: of kernels.
        context, generation: operations of a pass of prompts and of one of decodes, as the package
            writes them; products are of the former where there are prompts.
        through: what goes through.
    """
    shared, other = (context, generation) if through.prompts else (generation, [])
    seconds = sum(_operation_s(prices, op, through) for op in shared)
    if through.decodes:
        seconds += sum(
            _operation_s(prices, op, through) for op in other if "Attention" in _kind(op)
        )
        seconds += sum(_operation_s(prices, op, through) for op in other if _kind(op) == "Fallback")
    return seconds


def _operation_s(prices: Laws | Bare, op: dict[str, Any], through: Pass) -> float:
    kind, o = _kind(op), op[_kind(op)]
    if kind == "Fallback":
        # Only attention of the block is another for decodes; its products were priced with prompts.
        decodes = through.decodes and "generation" in o["name"] and through.prompts
        parts = o["fallback"]
        if decodes:
            parts = [part for part in parts if "Mla" in _kind(part)]
        return sum(_operation_s(prices, part, through) for part in parts)
    if kind == "Overlap":
        return max(
            sum(_operation_s(prices, part, through) for part in o[group])
            for group in ("group_a", "group_b")
        )
    if kind not in _ONE:
        raise NoLawError(kind)
    each = o.get("scale_factor", 1.0)
    return each * _ONE[kind](prices, o, through) if each else 0.0


def _kind(op: dict[str, Any]) -> str:
    return next(iter(op))


def _gemm(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    last = "logits" in o["name"]
    tokens = through.prompts + through.decodes if last else through.tokens
    tokens = max(tokens // max(o.get("scale_num_tokens", 1), 1), 1)
    return _product_s(prices, o, 1, tokens, o["n"], o["k"])


def _bmm(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    n, k = (512, 128) if o["is_pre"] else (128, 512)
    return _product_s(prices, o, o["num_heads"], max(through.decodes, 1), n, k)


def _product_s(prices: Laws | Bare, o: dict[str, Any], batch: int, m: int, n: int, k: int) -> float:
    dtype = _dtype(o["quant_mode"])
    ready = float(bool(o.get("low_precision_input")))
    work = {"batch": batch, "m": m, "n": n, "k": k, "itemsize": ITEMSIZES[dtype], "warm": 0.0}
    return prices.seconds("matmul", dtype, _frozen(work | {"ready": ready}))


def _context(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    dtype = _dtype(o["fmha_quant_mode"])
    heads = o.get("n", o.get("num_heads"))
    work = {
        "batch": through.prompts,
        "heads": heads,
        "key_heads": o.get("n_kv", heads),
        "queries": through.prompt_tokens,
        "keys": through.prompt_tokens,
        "size": o.get("head_size", 160),  # of latent attention, the mean of 192 and 128
        "window": o.get("window_size", 0),
        "causal": 1.0,
        "itemsize": ITEMSIZES[dtype],
    }
    return prices.seconds("context_attention", dtype, _frozen(work))


def _decode(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    dtype = _dtype(o["kv_cache_dtype"])
    work = {
        "batch": through.decodes,
        # Of latent attention all heads share its keys, in a kernel of its own that takes any number
        # of them together; the law of shared heads holds to 32.
        "heads": o["n"] if "n" in o else min(o["num_heads"], 32),
        "key_heads": o.get("n_kv", 1),
        "keys": through.cached_tokens,
        "size": o.get("head_size", 288),  # of latent attention, half of the 576 that a key takes
        "window": o.get("window_size", 0),
        "itemsize": ITEMSIZES[dtype],
        "warm": 0.0,
    }
    return prices.seconds("decode_attention", dtype, _frozen(work))


def _experts(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    dtype = _dtype(o["quant_mode"])
    work = {
        "tokens": through.tokens * max(o["attention_dp_size"], 1),
        "hidden": o["hidden_size"],
        "inner": o["inter_size"] / o["moe_tp_size"],
        "chosen": o["topk"],
        "experts": o["num_experts"],
        "devices": o["moe_ep_size"],
        "exponent": exponent(o["workload_distribution"]),
        "itemsize": ITEMSIZES[dtype],
    }
    return prices.seconds("experts", dtype, _frozen(work))


def _dispatch(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    """Tokens to experts, or back: an all-reduce, or with data parallel attention half of one."""
    parallel = max(o["attention_dp_size"], 1)
    if parallel == 1 and o["pre_dispatch"] and o.get("attn_ar_modeled"):
        return 0.0
    devices = o["moe_tp_size"] * o["moe_ep_size"]
    whole_s = _reduce_s(prices, through.tokens * parallel * o["hidden_size"] * 2, devices)
    return whole_s / (2 if parallel > 1 else 1)


def _all_reduce(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    return _reduce_s(prices, through.tokens * o["hidden_size"] * 2, o["tp_size"])


def _reduce_s(prices: Laws | Bare, num_bytes: float, devices: int) -> float:
    if devices <= 1:
        return 0.0
    work = {"num_devices": devices, "num_bytes": num_bytes}
    return prices.seconds("all_reduce", "bfloat16", _frozen(work))


def _elementwise(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    return prices.stream_s(o["bytes_per_token"] * through.tokens)


def _embedding(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    return prices.stream_s(4.0 * o["hidden_size"] * through.tokens)


def _recurrent(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    """A gated delta rule: its state once for each sequence, its streams for each token."""
    width = o["num_v_heads"] * o["head_v_dim"]
    state = 2 * 4 * width * o["head_k_dim"] * (through.prompts + through.decodes)
    return prices.stream_s(state + 12.0 * width * through.tokens)


def _nothing(prices: Laws | Bare, o: dict[str, Any], through: Pass) -> float:
    del prices, o, through
    return 0.0


_ONE = {
    "Gemm": _gemm,
    "MlaBmm": _bmm,
    "ContextAttention": _context,
    "ContextMla": _context,
    "GenerationAttention": _decode,
    "GenerationMla": _decode,
    "Moe": _experts,
    "MoeDispatch": _dispatch,
    "CustomAllReduce": _all_reduce,
    "Elementwise": _elementwise,
    "Embedding": _embedding,
    "Gdn": _recurrent,
    "P2P": _nothing,
}


def _dtype(quantised: str) -> str:
    """Our name of a format of the package; formats of 4-bit weights count as float4."""
    if quantised.startswith(_FOUR_BIT):
        return "float4"
    return _DTYPES.get(quantised, "bfloat16")


def _device(accelerator: Accelerator, dtype: str) -> dict[str, float]:
    while dtype not in accelerator.peak_flops_per_s:
        dtype = _WIDER[dtype]
    return accelerator.figures() | {"peak_flops_per_s": accelerator.peak_flops_per_s[dtype]}


def _frozen(work: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(value)) for name, value in work.items())
