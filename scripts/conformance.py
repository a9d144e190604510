"""Shows what a backend makes of the operations that models use, beside the CPU in float32.

python scripts/conformance.py --platform=cpu --json=conformance.json

Exit code 0: fit, all that is supported is right and nothing needed is missing; 1: not fit.
"""

import sys
from pathlib import Path

import console
from absl import flags

from gimlax.runtime.conformance import check_platform

PLATFORM = flags.DEFINE_string(
    "platform",
    None,
    "registered name of the backend, as scripts/devices.py lists it",
    required=True,
)
OPERATIONS = flags.DEFINE_list("operations", None, "only these, as in matmul,attention")
JSON = flags.DEFINE_string("json", None, "write all figures here")


def main(argv: list[str]) -> None:
    del argv
    console.check_output(JSON.value)
    with console.progress("conformance") as update:
        found = check_platform(PLATFORM.value, update, only=OPERATIONS.value)
    print(found)
    if JSON.value:
        Path(JSON.value).write_text(found.to_json(), "utf-8")
        print(f"\nwritten to {JSON.value}")
    sys.exit(1 if found.failures else 0)


if __name__ == "__main__":
    console.run(main)
