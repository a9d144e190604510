"""Times to first token and per output token of served models, beside three predictions.

Each prediction is the same schedule with other times of a step: by the fitted laws, by the plain
roofline, and by aiconfigurator-core's own engine. The schedule is that package's (`run_agg` of its
backends: mixed steps of one prompt beside decodes, then steps of decodes only, and its factor for
waiting), so that columns differ by what a step takes. Nothing here was fitted to these rows.

Rows of prefill and decode on separate workers are left out: the sample does not say how many
sequences a worker had. Units: milliseconds, as in the sample.
"""

import contextlib
import csv
import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

# pyright: reportMissingImports=false
from aiconfigurator_core.sdk.backends.factory import get_backend
from aiconfigurator_core.sdk.config_builders import build_model_config
from aiconfigurator_core.sdk.engine import EngineHandle, build_ops_json
from aiconfigurator_core.sdk.errors import MissingSystemFlopsError, PerfDataNotAvailableError
from aiconfigurator_core.sdk.models import get_model
from silicon_rows import systems_folder
from silicon_steps import Bare, Laws, NoLawError, Pass, pass_s

from gimlax.planning.rates.fitted import accelerators

__all__ = ["end_to_end", "print_table"]

METHODS = ("fitted", "roofline", "package")
# What the sample calls models whose architecture the package has under another name.
_SAME = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How a model was served: what decides its operations."""

    model: str
    system: str
    backend: str
    tp_size: int
    attention_dp_size: int
    moe_tp_size: int
    moe_ep_size: int
    gemm_quant_mode: str | None
    moe_quant_mode: str | None


def end_to_end(coefficients: Mapping[str, Any], every: int = 1) -> dict[str, Any]:
    """Scores on every n-th row of the sample that can be predicted, in total and by model."""
    with (systems_folder() / "silicon_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    logging.disable(logging.CRITICAL)
    prices = {
        each.system: {"fitted": Laws(each, coefficients), "roofline": Bare(each)}
        for each in accelerators().values()
    }
    left_out: Counter[str] = Counter()
    scored: list[tuple[str, np.ndarray]] = []
    models: dict[Served, Any] = {}
    for number, row in enumerate(rows[::every]):
        if sys.stderr.isatty():
            print(f"\r  row {number * every}/{len(rows)}", end="", file=sys.stderr)
        if row["mode"] != "agg":
            left_out["separate workers for prefill and decode"] += 1
            continue
        try:
            times = _predict(row, prices[row["system"]], models)
        except NoLawError as error:
            left_out[f"no law for {error}"] += 1
            continue
        except Exception as error:  # the package's own, for what it has no data or model for
            left_out[f"the package: {type(error).__name__}"] += 1
            continue
        measured = float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"])
        scored.append(
            (row["model_path"], np.array([times[method] for method in METHODS]) / measured)
        )
    names = np.array([name for name, _ in scored])
    ratios = np.array([ratio for _, ratio in scored])  # [row, method, TTFT or TPOT]
    return {
        "rows": len(rows[::every]),
        "predicted": len(scored),
        "left_out": dict(left_out),
        "all": _medians(ratios),
        "by_model": {
            str(name): {"rows": int((names == name).sum())} | _medians(ratios[names == name])
            for name in np.unique(names)
        },
    }


def print_table(scores: dict[str, Any]) -> None:
    """Median errors of time to first token and time per output token, one model a line."""
    print(
        f"end to end: {scores['predicted']} of {scores['rows']} rows; left out {scores['left_out']}"
    )
    print(
        f"  {'median error':32} {'rows':>5}" + "".join(f"{m + ' TTFT':>15}" for m in METHODS),
        end="",
    )
    print("".join(f"{m + ' TPOT':>15}" for m in METHODS))
    lines = {"all": scores["all"] | {"rows": scores["predicted"]}} | scores["by_model"]
    for name, line in lines.items():
        figures = [line[f"{m} {what}"] for what in ("ttft", "tpot") for m in METHODS]
        print(f"  {name:32} {line['rows']:>5}" + "".join(f"{figure:>15.1%}" for figure in figures))


def _medians(ratios: np.ndarray) -> dict[str, float]:
    errors = np.median(np.abs(ratios - 1), axis=0)
    return {
        f"{method} {what}": float(errors[i, j])
        for i, method in enumerate(METHODS)
        for j, what in enumerate(("ttft", "tpot"))
    }


def _predict(
    row: dict[str, str], prices: Mapping[str, Laws | Bare], models: dict[Served, Any]
) -> dict:
    """(TTFT, TPOT) by method."""
    served = _served(row)
    batch, isl, osl = int(float(row["batch_size"])), int(row["isl"]), int(row["osl"])
    if served not in models:
        models[served] = _load(served, isl)
    model, engine, backend, context, generation = models[served]
    schedule = _Schedule(backend, model, batch, isl, osl)
    cached = isl + osl // 2
    mixed = Pass(prompts=1, prompt_tokens=isl, decodes=schedule.mixed_decodes, cached_tokens=cached)
    decodes = Pass(decodes=batch, cached_tokens=cached)
    times = {
        "package": schedule.times(
            engine.mixed_step_latency(isl, schedule.mixed_decodes, isl, osl),
            engine.decode_step_latency(batch, isl, osl),
        )
    }
    for method, each_s in prices.items():
        steps = (1e3 * pass_s(each_s, context, generation, each) for each in (mixed, decodes))
        times[method] = schedule.times(*steps)
    return times


class _Schedule:
    """The package's mean-field schedule of a batch with one prompt a mixed step."""

    def __init__(self, backend: Any, model: Any, batch: int, isl: int, osl: int) -> None:
        self._backend, self._model, self._batch, self._osl = backend, model, batch, osl
        one = batch == 1
        self.mixed_decodes = 0 if one else backend._mix_step_gen_tokens(batch, isl, isl, float(osl))

    def times(self, mixed_ms: float, decodes_ms: float) -> tuple[float, float]:
        """(TTFT, TPOT) where steps take so long."""
        batch, osl, backend = self._batch, self._osl, self._backend
        waiting = backend._ttft_queuing_factor(batch, float(batch))
        ttft = (mixed_ms + backend._prefill_dispatch_overhead_ms(self._model)) * waiting
        if batch == 1:
            return ttft, decodes_ms
        counted = batch if batch >= osl else backend._tpot_mix_steps(batch)
        only = 0 if batch >= osl else osl - batch
        return ttft, (mixed_ms * counted + decodes_ms * only) / (counted + only)


def _served(row: dict[str, str]) -> Served:
    def whole(name: str) -> int:
        return max(int(float(row[name])) if row[name] else 1, 1)

    model = _SAME.get(row["model_path"], row["model_path"])
    # Some rows count data parallel attention within tp_size; the package does not.
    tp_size = whole("tp_size")
    if tp_size * whole("attention_dp_size") > whole("moe_tp_size") * whole("moe_ep_size"):
        tp_size = max(tp_size // whole("attention_dp_size"), 1)
    # The sample calls formats of gpt-oss by what others of its precision have; its own is mxfp4.
    own = model.startswith("openai/")
    return Served(
        model=model,
        system=row["system"],
        backend=row["backend"],
        tp_size=tp_size,
        attention_dp_size=whole("attention_dp_size"),
        moe_tp_size=whole("moe_tp_size"),
        moe_ep_size=whole("moe_ep_size"),
        gemm_quant_mode=None if own else row["gemm_quant_mode"] or None,
        moe_quant_mode=None if own else row["moe_quant_mode"] or None,
    )


def _load(served: Served, isl: int) -> Any:
    """The model, its engine and its backend, and its operations in a pass of each kind.

    Where the package has no measurements for the formats of the row, attention in bfloat16 is
    tried, then the formats that it takes for the model by itself.
    """
    given = dataclasses.asdict(served)
    names = given.pop("model"), given.pop("system"), given.pop("backend")
    own = {"gemm_quant_mode": None, "moe_quant_mode": None}
    whole = {"fmha_quant_mode": "bfloat16"}
    for how in (given, given | whole, given | own):
        with contextlib.suppress(PerfDataNotAvailableError, MissingSystemFlopsError):
            return _load_as(names, how, isl)
    return _load_as(names, given | own | whole, isl)


def _load_as(names: tuple[str, str, str], how: dict[str, Any], isl: int) -> Any:
    path, system, backend = names
    engine = EngineHandle.compile(path, system, backend, **how)
    engine.mixed_step_latency(isl, 1, isl, 64)  # raises where a measurement is missing
    model = get_model(path, build_model_config(pp_size=1, **how), backend)
    context, generation = map(build_ops_json, (model.context_ops, model.generation_ops))
    return model, engine, get_backend(backend), json.loads(context), json.loads(generation)
