"""Converts a model between the formats of its files: GGUF, safetensors as on Hugging Face, Orbax.

python scripts/convert.py --source=model.gguf --target=model --dtype=bfloat16
python scripts/convert.py --source=model --target=model-orbax --to=orbax
"""

from typing import cast

import console
from absl import flags, logging

from gimlax import models
from gimlax.models.decoder import DType

SOURCE = flags.DEFINE_string(
    "source", None, "GGUF file, folder of Hugging Face, or checkpoint of Orbax", required=True
)
TARGET = flags.DEFINE_string("target", None, "folder to write", required=True)
TO = flags.DEFINE_string("to", "safetensors", "safetensors or orbax")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "of all weights; by default what they are, and float32 where they are quantised",
)
VERIFY = flags.DEFINE_bool("verify", True, "check the files of the source with its manifest")


def main(argv: list[str]) -> None:
    del argv
    console.prepare_jax()
    logging.set_verbosity(logging.ERROR)  # Orbax says much that is no concern here
    with console.progress("conversion") as update:
        lacks = models.convert(
            SOURCE.value,
            TARGET.value,
            to=TO.value,
            dtype=cast(DType | None, DTYPE.value),
            verify=VERIFY.value,
            progress=lambda done, total: update(done, total, ""),
        )
    print(f"written to {TARGET.value}", *lacks, sep="\n")


if __name__ == "__main__":
    console.run(main)
