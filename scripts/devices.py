"""Prints which devices are here, what their backends can do, and why others are not here.

python scripts/devices.py --cluster_out=cluster.toml
"""

from pathlib import Path

import console
from absl import flags

import gimlax as gx

CLUSTER_OUT = flags.DEFINE_string("cluster_out", None, "write the cluster here, as TOML")
TIMEOUT_S = flags.DEFINE_float(
    "timeout_s", 60.0, "how long each backend may take to answer", lower_bound=0.1
)


def main(argv: list[str]) -> None:
    del argv
    console.check_output(CLUSTER_OUT.value)
    cluster = gx.discover(timeout_s=TIMEOUT_S.value)
    print(cluster)
    if CLUSTER_OUT.value:
        Path(CLUSTER_OUT.value).write_text(cluster.to_toml(), "utf-8")
        print(f"\nwritten to {CLUSTER_OUT.value}")


if __name__ == "__main__":
    console.run(main)
