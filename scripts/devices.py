"""Prints which devices are here, what their backends can do, and why others are not here.

python scripts/devices.py --cluster_out=cluster.toml

It also prints the catalogue of device kinds, and checks cards that are to join it:

python scripts/devices.py --kinds
python scripts/devices.py --check=mine.toml,yours.toml
"""

import datetime
from pathlib import Path

import console
from absl import flags

import gimlax as gx
from gimlax.devices import catalogue, check_cards, show_kinds

CLUSTER_OUT = flags.DEFINE_string("cluster_out", None, "write the cluster here, as TOML")
TIMEOUT_S = flags.DEFINE_float(
    "timeout_s", 60.0, "how long each backend may take to answer", lower_bound=0.1
)
KINDS = flags.DEFINE_bool("kinds", False, "print the catalogue, and look for no devices")
CHECK = flags.DEFINE_list("check", None, "check these cards, and look for no devices")


def main(argv: list[str]) -> None:
    del argv
    console.check_output(CLUSTER_OUT.value)
    if KINDS.value or CHECK.value is not None:
        if CLUSTER_OUT.value:
            raise gx.SpecError("--cluster_out needs devices; leave out --kinds and --check")
        if KINDS.value:
            print(show_kinds(catalogue()))
        if CHECK.value is not None:
            print(show_kinds(check_cards(CHECK.value, datetime.date.today())))
        return
    cluster = gx.discover(timeout_s=TIMEOUT_S.value)
    print(cluster)
    if CLUSTER_OUT.value:
        Path(CLUSTER_OUT.value).write_text(cluster.to_toml(), "utf-8")
        print(f"\nwritten to {CLUSTER_OUT.value}")


if __name__ == "__main__":
    console.run(main)
