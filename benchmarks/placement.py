"""How good are placements for published problems, how far from the best can they be, and how long
does it take?

    python benchmarks/placement.py --data_dir=../shared/data --json=placement.json

Runs every instance of a known format below a folder: layers over mixed machines (Helix, ASPLOS
2025; its serving tables too) and graphs over accelerators (Tarnawski et al., NeurIPS 2020). Files
of other formats are left alone; those that are wrong are named, and the rest runs. One thread.

    python benchmarks/placement.py --random=100 --json=placement_random.json

Runs random instances of layers over mixed machines instead (seeds from --first_seed on): unlike the
published ones they have up to 8 kinds of machine and 60 machines. Seconds of these are of the
process, which other work on the computer does not change; the limit of a second is too.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_threads] = "1"

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from instances import helix, helix_serving, tarnawski  # noqa: E402
from instances.random_helix import random_instance  # noqa: E402
from report import environment  # noqa: E402

from gimlax.errors import GimlaxError, SpecError  # noqa: E402

DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data", "folder with instances, any depth")
JSON = flags.DEFINE_string("json", None, "write the records here")
TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s", 20.0, "for each graph; layers over machines get a second", lower_bound=0.1
)
REPEATS = flags.DEFINE_integer("repeats", 3, "how often each is solved", lower_bound=1)

RANDOM = flags.DEFINE_integer(
    "random", 0, "run so many random instances instead of a folder", lower_bound=0
)

FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "of the random instances", lower_bound=0)

FORMATS = (helix_serving, helix, tarnawski)
MOST_BYTES = 256 * 2**20
# What a file that is wrong in a way that no reader foresaw leads to.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_COVER_LIMIT_S = 1.0


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{' '.join(argv[1:])}: no flag; give --data_dir=DIR or --random=N")
    if JSON.value and not Path(JSON.value).parent.is_dir():
        raise app.UsageError(f"--json={JSON.value}: its folder does not exist; create it")
    if RANDOM.value:
        _random(range(FIRST_SEED.value, FIRST_SEED.value + RANDOM.value))
        return
    folder = Path(DATA_DIR.value)
    if not folder.is_dir():
        raise app.UsageError(
            f"--data_dir={DATA_DIR.value} is no folder; give one with instances of Helix "
            "(Thesys-lab/Helix-ASPLOS25) or Tarnawski et al. (msr-fiddle/dnn-partitioning)"
        )
    found: list[tuple[Any, Any]] = []
    refused: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found += _read(path)
        except SpecError as error:
            refused.append(str(error))
    records = [_solved(module, instance) for module, instance in found]
    print("\n".join(f"{key}: {value}" for key, value in environment().items()))
    print(_table(records))
    for record in records:
        for line in record.get("remarks", ()):
            print(f"{record['instance']}: {line}")
    for reason in refused:
        print(f"left out: {reason}")
    if not records:
        print(f"no instance of a known format below {folder}")
    if JSON.value:
        result = {
            "benchmark": "placement",
            "environment": environment(),
            "repeats": REPEATS.value,
            "records": _finite(records),
            "left_out": refused,
        }
        Path(JSON.value).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {JSON.value}")


def _random(seeds: range) -> None:
    """Solves random instances once each, and prints how far from the best they can be."""
    records = []
    for seed in seeds:
        data = random_instance(seed)
        found = helix.solve(
            helix.read(Path(data["name"]), data), _COVER_LIMIT_S, clock=time.process_time
        )
        machines = data["machines"].values()
        records.append(
            {
                "seed": seed,
                "num_layers": data["num_layers"],
                "num_kinds": len(machines),
                "num_machines": sum(machine["count"] for machine in machines),
                **{
                    key: found.get(key) for key in ("objective", "bound", "gap", "seconds", "error")
                },
            }
        )
        print(" ".join(f"{key}={_short(value)}" for key, value in records[-1].items()), flush=True)
    solved = [record for record in records if record["gap"] is not None]
    number, first = len(seeds), seeds.start
    summary: dict[str, Any] = {"instances": number, "first_seed": first, "solved": len(solved)}
    for key in ("gap", "seconds"):
        values = [record[key] for record in solved]
        median, most = np.percentile(values, [50, 90]).tolist()
        summary[key] = {"median": median, "p90": most, "worst": max(values)}
    summary["share_within_1_percent"] = sum(r["gap"] <= 0.01 for r in solved) / number
    summary["share_within_1e-6"] = sum(r["gap"] <= 1e-6 for r in solved) / number
    print("\n".join(f"{key}: {value}" for key, value in (environment() | summary).items()))
    if JSON.value:
        result = {"benchmark": "placement, random", "environment": environment()}
        result |= {"summary": summary, "records": records}
        Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {JSON.value}")


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> list[tuple[Any, Any]]:
    if path.stat().st_size > MOST_BYTES:
        raise SpecError(f"{path}: is larger than {MOST_BYTES} bytes; no instance is")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: cannot be read as JSON ({error}); repair or remove it") from None
    for module in FORMATS:
        if module.recognises(data):
            try:
                return [(module, module.read(path, data))]
            except SpecError:
                raise
            except MALFORMED as error:
                raise SpecError(
                    f"{path}: it is no instance of this format ({error!r}); repair or remove it"
                ) from None
    return []


def _solved(module: Any, instance: Any) -> dict[str, Any]:
    """The record of an instance, with the seconds of all repeats."""
    limit_s = TIME_LIMIT_S.value if module is tarnawski else _COVER_LIMIT_S
    print(f"{instance.name} ...", end=" ", flush=True)
    # The search for a layout that serves takes its time, and its seconds are no claim.
    repeats = 1 if module is helix_serving else REPEATS.value
    try:
        runs = [module.solve(instance, limit_s) for _ in range(repeats)]
    except (GimlaxError, MemoryError, *MALFORMED) as error:  # the other instances still run
        print("failed")
        reason = f"{type(error).__name__}: {error}"
        return {"format": module.FORMAT, "instance": instance.name, "error": reason}
    print("done")
    record = runs[0]
    seconds = sorted(run["seconds"] for run in runs if "seconds" in run)
    if seconds:
        record["seconds"] = seconds[len(seconds) // 2]
        record["seconds_of_repeats"] = seconds
    return record


def _table(records: list[dict[str, Any]]) -> str:
    rows = [["instance", "objective", "bound", "gap", "seconds", "published", "their seconds"]]
    for record in records:
        published = record.get("published") or {}
        if "error" in record:
            rows.append([record["instance"], record["error"], "", "", "", "", ""])
            continue
        theirs = published.get("objective", published.get("optimum"))
        rows.append(
            [
                record["instance"],
                f"{record['objective']:.6g}",
                "-" if record["bound"] is None else f"{record['bound']:.6g}",
                "-" if record["gap"] is None else f"{record['gap']:.2%}",
                f"{record['seconds']:.3f}",
                "-" if theirs is None else f"{theirs:.6g}",
                str(published.get("seconds", "-")),
            ]
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    app.run(main)
