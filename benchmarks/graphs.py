"""Does the solver for branching graphs hold on shapes other than the published ones?

    python benchmarks/graphs.py --data_dir=graphs && python benchmarks/placement.py \
        --data_dir=graphs --repeats=1 --json=graphs.json

Writes one file per graph and set of devices: convolutions in parallel branches, transformers by
operator, U-nets, backward passes, random series-parallel graphs, the same for the same seed.
"""

import json
from pathlib import Path

from absl import app, flags
from instances import shapes

DATA_DIR = flags.DEFINE_string("data_dir", None, "folder to write to", required=True)
SEED = flags.DEFINE_integer("seed", 0, "of all random figures", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    folder = Path(DATA_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, data in shapes.instances(SEED.value):
        (folder / f"{name}.json").write_text(json.dumps(data) + "\n")
        count += 1
    print(f"{count} graphs written to {folder}")


if __name__ == "__main__":
    app.run(main)
