"""How long does a plan for Llama-3-70B take on 64, 256 and 1,024 devices of four kinds, and how
far can it be from the best?

    python benchmarks/scale.py --json=scale.json

Tracing depends on no device and is timed apart. Seconds of a plan are all of it: shardings and
figures of each shape of mesh, bound, search, layout, predictions.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from report import environment

import gimlax as gx
from gimlax import models
from gimlax.devices import Group, Link
from gimlax.graph import Chain, chain

JSON = flags.DEFINE_string("json", None, "write the results here too")
DEVICES = flags.DEFINE_multi_integer("devices", [64, 256, 1024], "devices in all")
REPEATS = flags.DEFINE_integer("repeats", 3, "plans of each size")

# Equally many devices of each, on hosts of 8.
KINDS = {"h100": "H100 SXM", "a100": "A100 SXM 80GB", "mi300x": "MI300X", "l4": "L4"}
# Seconds that the search is given, and what plans of this size are to reach.
LIMITS_S = {64: 0.2, 256: 1.5, 1024: 4.0}
TARGETS = {64: (2.0, 0.03), 256: (5.0, 0.05), 1024: (30.0, 0.10)}
# 100 Gbit/s Ethernet between hosts, whatever they have.
LATENCY_S, BYTES_PER_S = 20e-6, 12.5e9

BATCH, PROMPT, CONTEXT, NEW_TOKENS = 8, 512, 2048, 128


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Plans of one size: `seconds` of each repeat, everything else of the one with most gap."""

    num_devices: int
    seconds: tuple[float, ...]
    requests_per_s: float
    bound_requests_per_s: float
    gap: float
    method: str
    num_meshes: int
    devices_used: int
    target_seconds: float | None
    target_gap: float | None


def main(argv: Sequence[str]) -> None:
    del argv
    start_s = time.perf_counter()
    workload = llama_70b()
    traced_s = time.perf_counter() - start_s
    print(
        f"Llama-3-70B, bfloat16, batch {BATCH}, {PROMPT} + {NEW_TOKENS} tokens;"
        f" {workload.num_segments} segments\ntraced in {traced_s:.1f} s"
    )
    rows, smallest = [], ""
    print(
        f"{'devices':>7}  {'seconds':>16}  {'batches/s':>9}  {'bound':>8}  {'gap':>6}  "
        f"{'method':8}  {'meshes':>6}  {'used':>5}  target"
    )
    for num_devices in DEVICES.value:
        row, plan = measure(workload, num_devices)
        rows.append(row)
        low, high = min(row.seconds), max(row.seconds)
        target = f"{row.target_seconds:g} s, {row.target_gap:.0%}" if row.target_gap else "-"
        print(
            f"{num_devices:>7}  {f'{low:.2f} to {high:.2f}':>16}  {row.requests_per_s:>9.3f}  "
            f"{row.bound_requests_per_s:>8.3f}  {row.gap:>6.2%}  {row.method:8}  "
            f"{row.num_meshes:>6}  {row.devices_used:>5}  {target}"
        )
        if num_devices == DEVICES.value[0]:
            smallest = str(plan)
    print(smallest)
    if JSON.value:
        record = {
            "benchmark": "scale",
            "environment": environment(),
            "model": "Llama-3-70B, bfloat16",
            "workload": {
                "batch": BATCH,
                "prompt_tokens": PROMPT,
                "new_tokens": NEW_TOKENS,
                "context": CONTEXT,
            },
            "kinds": KINDS,
            "num_segments": workload.num_segments,
            "traced_s": traced_s,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        Path(JSON.value).write_text(json.dumps(record, indent=2) + "\n")
        print(f"written to {JSON.value}")


def measure(workload: Chain, num_devices: int) -> tuple[Row, gx.Plan]:
    """Plans of one size, several times, and the one with most gap."""
    limit_s = LIMITS_S.get(num_devices, 20.0)
    seconds, plans = [], []
    for _ in range(REPEATS.value):
        start_s = time.perf_counter()
        plans.append(
            gx.plan(
                workload,
                cluster(num_devices),
                objective=gx.Objective(goal="throughput"),
                time_limit_s=limit_s,
            )
        )
        seconds.append(time.perf_counter() - start_s)
    plan = max(plans, key=lambda plan: plan.gap)  # the worst one counts
    target_s, target_gap = TARGETS.get(num_devices, (None, None))
    return Row(
        num_devices=num_devices,
        seconds=tuple(seconds),
        requests_per_s=1 / plan.value,
        bound_requests_per_s=1 / plan.bound,
        gap=plan.gap,
        method=plan.method,
        num_meshes=len(plan.specs),
        devices_used=sum(spec.num_devices for spec in plan.specs),
        target_seconds=target_s,
        target_gap=target_gap,
    ), plan


def llama_70b() -> Chain:
    """Meta's Llama 3 70B (config.json of the published checkpoint), from shapes alone."""
    config = models.LlamaConfig(
        vocab_size=128256,
        width=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_size=128,
        mlp_width=28672,
        max_context=8192,
        rope_theta=500000.0,
    ).with_dtype("bfloat16")
    apply = models.llama_apply(config)
    params = models.abstract_params(config)
    cache = models.abstract_cache(config, BATCH, CONTEXT)

    def traced(num_tokens: int) -> Any:
        tokens = jax.ShapeDtypeStruct((BATCH, num_tokens), jnp.int32)
        position = jax.ShapeDtypeStruct((), jnp.int32)
        return gx.trace(apply, params, cache, tokens, position, resident=(0,), carried={1: 1})

    return chain(
        gx.Workload(
            {"prefill": traced(PROMPT), "decode": traced(1)},
            calls={"prefill": 1, "decode": NEW_TOKENS},
        )
    )


def cluster(num_devices: int) -> gx.Cluster:
    """Equally many devices of each kind, all hosts joined alike."""
    return gx.Cluster(
        meshes=(),
        groups=tuple(
            Group(
                name=name,
                device_kind=kind,
                num_devices=num_devices // len(KINDS),
                devices_per_host=8,
            )
            for name, kind in KINDS.items()
        ),
        links=tuple(
            Link(
                source=source, target=target, latency_s=LATENCY_S, bandwidth_bytes_per_s=BYTES_PER_S
            )
            for source in KINDS
            for target in KINDS
        ),
    )


if __name__ == "__main__":
    app.run(main)
