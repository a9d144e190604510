"""How well do a few coefficients say what kernels take on real accelerators?

    make bench-silicon
    make bench-silicon SILICON_FLAGS=--fit

Scores the coefficients that gimlax ships on measured kernels that they were not fitted to, beside
the plain roofline; `--fit` fits them anew first and writes them. What is held out is told in
silicon_rows.py.
"""

import json
import platform
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from silicon_endtoend import end_to_end, print_table
from silicon_fit import LAWS, Coefficients, count, fit, predict
from silicon_rows import CLASSES, HELD_MODELS, Rows, read, source_file, systems_folder
from silicon_scores import bare_s, by_group, ordered, score

from gimlax.planning.rates.fitted import accelerators, coefficients

JSON = flags.DEFINE_string("json", None, "write the report here too")
FIT = flags.DEFINE_bool("fit", False, "fit the coefficients anew and write them")
QUICK = flags.DEFINE_bool("quick", False, "a tenth of the rows, and nothing left out in turn")

_FITTED_ROWS, _SCORED_ROWS = 2000, 20000  # of each accelerator and dtype
_MOST_COEFFICIENTS = 200
_MANY = 20  # of the end-to-end rows, every so many for a quick look


def main(argv: list[str]) -> None:
    del argv
    report: dict[str, Any] = {"benchmark": "silicon", "environment": environment()}
    print_lines("silicon", report["environment"])
    tenth = 10 if QUICK.value else 1
    known: Coefficients = {} if FIT.value else coefficients()
    report["scores"], report["held_out"], report["left_out_in_turn"] = {}, {}, {}
    for name in LAWS:
        rows = read(name)
        own, held = rows.take(~rows.held), rows.take(rows.held)
        if FIT.value:
            print(f"{name}: fitting")
            known[name] = fit(name, own.sample(_FITTED_ROWS // tenth))
        held = held.sample(_SCORED_ROWS // tenth)
        report["held_out"][name] = sorted(set(held.kind_of.tolist()))
        seconds = predict(name, known[name], held)
        report["scores"][name] = report_class(name, held, seconds)
        if not QUICK.value:
            report["left_out_in_turn"][name] = leave_out(name, own, held)
    if FIT.value:
        write(known)
    report["end_to_end"] = end_to_end(known, _MANY if QUICK.value else 1)
    print_table(report["end_to_end"])
    report["coefficients"] = count(known)
    print(f"{count(known)} coefficients, at most {_MOST_COEFFICIENTS}")
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {JSON.value}")


def report_class(name: str, held: Rows, seconds: np.ndarray) -> dict[str, Any]:
    """Prints and returns the scores of one class of kernel."""
    scores = {
        "rows": len(held),
        "fitted": score(held, seconds),
        "roofline": score(held, bare_s(name, held)),
        "ordered_within_two": ordered(held, seconds),
        "ordered_within_two_and_five_percent_apart": ordered(held, seconds, 1.05),
        "by_accelerator_and_dtype": by_group(held, seconds),
    }
    fitted, bare = scores["fitted"], scores["roofline"]
    print(
        f"{name}: {len(held)} held-out rows, median error {fitted['median']:.1%} "
        f"(within a quarter: {fitted['within_quarter']:.0%}), roofline {bare['median']:.1%}; "
        f"pairs within a factor of two in order {scores['ordered_within_two']:.1%}, "
        f"if 5 % apart {scores['ordered_within_two_and_five_percent_apart']:.1%}"
    )
    print_lines("", {k: f"{v:.1%}" for k, v in scores["by_accelerator_and_dtype"].items()})
    return scores


def leave_out(name: str, own: Rows, held: Rows) -> dict[str, float]:
    """Median error on each accelerator when only its card is known."""
    errors = {}
    for accelerator in np.unique(own.accelerator):
        known = fit(name, own.take(own.accelerator != accelerator).sample(_FITTED_ROWS // 4), 30)
        rows = held.take(held.accelerator == accelerator)
        errors[str(accelerator)] = score(rows, predict(name, known, rows))["median"]
    print_lines(f"{name}: each accelerator left out", {k: f"{v:.1%}" for k, v in errors.items()})
    return errors


def write(known: Coefficients) -> None:
    """Puts coefficients below the cards in the file that gimlax ships."""
    path = Path(str(resources.files("gimlax.planning.rates").joinpath("silicon.toml")))
    head = path.read_text().split("\n[coefficients.")[0].rstrip()
    lines = [head]
    for name, law in known.items():
        lines += ["", f"[coefficients.{name}]"]
        for coefficient, groups in law.items():
            values = ", ".join(f'"{group}" = {value:g}' for group, value in groups.items())
            lines.append(f"{coefficient} = {{ {values} }}")
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path.name}")


def environment() -> dict[str, Any]:
    """Versions and the measurements that were read."""
    names = ["aiconfigurator-core", "jax", "optax", "numpy", "pandas"]
    folder = systems_folder()
    files = [
        str(path.relative_to(folder))
        for accelerator in accelerators().values()
        for name in CLASSES
        if (path := source_file(folder, name, accelerator)).exists()
    ]
    return {
        "device": f"{platform.machine()} CPU, where the fit ran",
        "python": platform.python_version(),
        "versions": " ".join(f"{name} {metadata.version(name)}" for name in names),
        "held_models": ", ".join(HELD_MODELS),
        "files": files,
    }


def print_lines(title: str, lines: dict[str, Any]) -> None:
    """A title and what belongs to it, a line each."""
    if title:
        print(title)
    for key, value in lines.items():
        if isinstance(value, list):
            value = f"{len(value)}"
        print(f"  {key}: {value}")


if __name__ == "__main__":
    app.run(main)
