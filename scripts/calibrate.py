"""Measures what is here and writes a calibration file, which plans then rest on.

python scripts/calibrate.py --out=calibration.json
"""

import console
from absl import flags

import gimlax as gx
from gimlax.devices import calibrate

OUT = flags.DEFINE_string("out", "calibration.json", "write the calibration here")
CLUSTER = flags.DEFINE_string("cluster", None, "TOML file with live meshes; discovered by default")


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    console.check_output(OUT.value)
    with console.progress("backends"):
        cluster = gx.Cluster.load(CLUSTER.value) if CLUSTER.value else gx.discover()
    with console.progress("calibration") as update:
        calibration = calibrate(cluster, progress=update)
    print(calibration)
    calibration.save(OUT.value)
    print(f"\nwritten to {OUT.value}")


if __name__ == "__main__":
    console.run(main)
