"""Measured kernels of ten accelerators, as arrays: what coefficients are fitted to or scored on.

The rows are those of the newest version of TensorRT-LLM that aiconfigurator-core has for an
accelerator, and of vLLM for the one that TensorRT-LLM does not run on. Rows are held out by whole
(n, k) pairs of products, whole head layouts of attention, whole expert models, and whole message
sizes of collectives: those whose digest falls into one of five parts, and everything that the
models in HELD_MODELS consist of. Units: seconds, bytes, FLOP/s.
"""

import dataclasses
import importlib.util
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingImports]  # comes with the measurements
import yaml

from gimlax.planning.rates.fitted import Accelerator, accelerators

__all__ = ["CLASSES", "HELD_MODELS", "Rows", "exponent", "held_out", "read"]

_PARTS = 5
# Width, inner width, heads, key heads, head size, and experts (inner width, chosen, all).
HELD_MODELS = {
    "meta-llama/Llama-3.1-70B": (8192, 28672, 64, 8, 128, None),
    "Qwen/Qwen3-32B": (5120, 25600, 64, 8, 128, None),
    "Qwen/Qwen3-235B-A22B": (4096, 12288, 64, 4, 128, (1536, 8, 128)),
    "openai/gpt-oss-120b": (2880, 2880, 64, 8, 64, (2880, 4, 128)),
}
# Class of kernel: family and file of the package, and our dtypes by its names for them.
CLASSES = {
    "matmul": ("gemm", "gemm_perf"),
    "context_attention": ("attention", "context_attention_perf"),
    "decode_attention": ("attention", "generation_attention_perf"),
    "experts": ("moe", "moe_perf"),
    "all_reduce": ("comm", "custom_allreduce_perf"),
}
ITEMSIZES = {"bfloat16": 2.0, "float8": 1.0, "float4": 0.5625}  # float4 with its scales
_DTYPES = {"bfloat16": "bfloat16", "fp8": "float8", "nvfp4": "float4"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Measurements of one class of kernel. [row] each.

    Attributes:
        work: sizes, as the law of the class takes them.
        device: figures of the accelerator's card, as laws take them.
        accelerator, architecture, dtype: of each row.
        group: of its coefficients that depend on the dtype, such as 'hopper/float8'.
        kind_of: what is held out as one, such as '4096x512'.
        held: whether it is.
        seconds: measured.
    """

    work: Mapping[str, np.ndarray]
    device: Mapping[str, np.ndarray]
    accelerator: np.ndarray
    architecture: np.ndarray
    dtype: np.ndarray
    group: np.ndarray
    kind_of: np.ndarray
    held: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, index: np.ndarray) -> "Rows":
        """Some of the rows, by mask or index."""
        return Rows(
            work={name: column[index] for name, column in self.work.items()},
            device={name: column[index] for name, column in self.device.items()},
            accelerator=self.accelerator[index],
            architecture=self.architecture[index],
            dtype=self.dtype[index],
            group=self.group[index],
            kind_of=self.kind_of[index],
            held=self.held[index],
            seconds=self.seconds[index],
        )

    def sample(self, each: int, seed: int = 0) -> "Rows":
        """At most `each` rows of every accelerator and dtype."""
        generator = np.random.default_rng(seed)
        groups = pd.Series(range(len(self))).groupby([self.accelerator, self.dtype]).indices
        chosen = [generator.permutation(index)[:each] for _, index in sorted(groups.items())]
        return self.take(np.concatenate(chosen))


def systems_folder() -> Path:
    """Where the package keeps its measurements."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise SystemExit("aiconfigurator-core is not installed; run `make bench-silicon`")
    return Path(spec.origin).parent / "systems"


def held_out(kind: str) -> bool:
    """Whether a pair, a head layout, an expert model or a message size is held out."""
    return zlib.crc32(kind.encode()) % _PARTS == 0


def exponent(distribution: str) -> float:
    """Of the power law of the loads of experts, by the package's name: 0 where all are equal."""
    return 0.0 if distribution == "balanced" else float(distribution.removeprefix("power_law_"))


def read(name: str) -> Rows:
    """All measurements of a class of kernel."""
    folder, known = systems_folder(), accelerators()
    tables = [_table(folder, name, accelerator) for accelerator in known.values()]
    table = pd.concat([t for t in tables if len(t)], ignore_index=True)
    work, dtype, kind_of, model_held = _SHAPES[name](table)
    keep = np.isin(dtype, list(ITEMSIZES))
    names = table["accelerator"].to_numpy(str)
    by_name = {key: known[key] for key in np.unique(names)}
    figures = {key: accelerator.figures() for key, accelerator in by_name.items()}
    peaks = {
        (key, d): accelerator.peak_flops_per_s.get(d, accelerator.peak_flops_per_s["bfloat16"])
        for key, accelerator in by_name.items()
        for d in ITEMSIZES
    }
    rows = Rows(
        work={key: np.asarray(value, np.float64) for key, value in work.items()},
        device={
            "peak_flops_per_s": np.array([peaks.get((a, d), np.nan) for a, d in zip(names, dtype)]),
            **{
                figure: np.array([figures[a][figure] for a in names], np.float64)
                for figure in next(iter(figures.values()))
            },
        },
        accelerator=names,
        architecture=np.array([by_name[a].architecture for a in names]),
        dtype=dtype,
        group=np.array([by_name[a].groups(d)[0] for a, d in zip(names, dtype)]),
        kind_of=kind_of,
        held=np.array([held_out(kind) for kind in kind_of]) | model_held,
        seconds=table["latency"].to_numpy() * 1e-3,
    )
    return rows.take(keep & np.isfinite(rows.seconds) & (rows.seconds > 0))


def source_file(folder: Path, name: str, accelerator: Accelerator) -> Path:
    """The file with the measurements of a class on an accelerator."""
    family, file = CLASSES[name]
    versions = yaml.safe_load((folder / "query_versions.yaml").read_text())
    framework = "vllm" if accelerator.system == "b60" else "trtllm"
    own = versions["overrides"].get(accelerator.system, {})
    version = own.get(framework, versions["defaults"][framework])["current"]
    return folder / "data" / accelerator.system / family / framework / version / f"{file}.parquet"


def _table(folder: Path, name: str, accelerator: Accelerator) -> pd.DataFrame:
    path = source_file(folder, name, accelerator)
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_parquet(path).drop(columns="framework")
    return table.assign(accelerator=accelerator.name)


def _matmul(t: pd.DataFrame) -> tuple:
    dtype = _dtypes(t["gemm_dtype"])
    one = np.ones(len(t))
    work = {"batch": one, "m": t.m, "n": t.n, "k": t.k, "itemsize": _itemsizes(dtype), "warm": one}
    pairs = (t.n.astype(str) + "x" + t.k.astype(str)).to_numpy(str)
    return work, dtype, pairs, np.isin(pairs, sorted(_model_pairs()))


def _context(t: pd.DataFrame) -> tuple:
    same = t.attn_dtype == t.kv_cache_dtype
    dtype = np.where(same, _dtypes(t.attn_dtype), "other")
    work = _heads(t) | {"queries": t.isl, "keys": t.isl, "itemsize": _itemsizes(dtype)}
    work["causal"] = np.ones(len(t))
    return work, dtype, *_head_kinds(t)


def _decode(t: pd.DataFrame) -> tuple:
    dtype = _dtypes(t.kv_cache_dtype)
    work = _heads(t) | {"keys": t.isl + t.step, "itemsize": _itemsizes(dtype)}
    work["warm"] = np.ones(len(t))
    return work, dtype, *_head_kinds(t)


def _heads(t: pd.DataFrame) -> dict:
    return {
        "batch": t.batch_size,
        "heads": t.num_heads,
        "key_heads": t.num_key_value_heads,
        "size": t.head_dim,
        "window": t.window_size if "window_size" in t else np.zeros(len(t)),
    }


def _head_kinds(t: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    columns = [t.num_heads, t.num_key_value_heads, t.head_dim]
    kinds = np.array(["/".join(map(str, each)) for each in zip(*columns)])
    held = [
        f"{heads // parts}/{max(key_heads // parts, 1)}/{size}"
        for _, _, heads, key_heads, size, _ in HELD_MODELS.values()
        for parts in (1, 2, 4, 8)
    ]
    return kinds, np.isin(kinds, held)


def _experts(t: pd.DataFrame) -> tuple:
    dtype = _dtypes(t.moe_dtype)
    gated = ~t.kernel_source.astype(str).str.contains("nongated|min_latency")
    dtype = np.where(gated, dtype, "other")
    work = {
        "tokens": t.num_tokens,
        "hidden": t.hidden_size,
        "inner": t.inter_size / t.moe_tp_size,
        "chosen": t.topk,
        "experts": t.num_experts,
        "devices": t.moe_ep_size,
        "exponent": t.distribution.astype(str).map(exponent),
        "itemsize": _itemsizes(dtype),
    }
    columns = [t.hidden_size, t.inter_size, t.topk, t.num_experts]
    kinds = np.array(["/".join(map(str, each)) for each in zip(*columns)])
    held = [f"{m[0]}/{'/'.join(map(str, m[-1]))}" for m in HELD_MODELS.values() if m[-1]]
    return work, dtype, kinds, np.isin(kinds, held)


def _all_reduce(t: pd.DataFrame) -> tuple:
    work = {"num_devices": t.num_gpus, "num_bytes": t.message_size * 2}  # of bfloat16 elements
    own = t.kernel_source.astype(str).isin(["TRTLLM", "vLLM_custom_eager"])
    dtype = np.where(own, "bfloat16", "other")
    return (
        work,
        dtype,
        (t.message_size.astype(str) + " elements").to_numpy(str),
        np.zeros(len(t), bool),
    )


def _model_pairs() -> set[str]:
    """(n, k) of the products of the held-out models, split over 1 to 8 devices."""
    pairs = set()
    for width, inner, heads, key_heads, size, _ in HELD_MODELS.values():
        for parts in (1, 2, 4, 8):
            fused = (heads + 2 * max(key_heads, parts)) * size // parts
            pairs |= {f"{fused}x{width}", f"{width}x{heads * size // parts}"}
            pairs |= {f"{2 * inner // parts}x{width}", f"{width}x{inner // parts}"}
    return pairs


def _dtypes(names: pd.Series) -> np.ndarray:
    return names.astype(str).map(_DTYPES).fillna("other").to_numpy(str)


def _itemsizes(dtype: Sequence[str] | np.ndarray) -> np.ndarray:
    return np.array([ITEMSIZES.get(each, 2.0) for each in dtype])


_SHAPES = {
    "matmul": _matmul,
    "context_attention": _context,
    "decode_attention": _decode,
    "experts": _experts,
    "all_reduce": _all_reduce,
}
