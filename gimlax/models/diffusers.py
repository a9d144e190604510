"""Stable Diffusion 3 out of a folder in diffusers' layout: `model_index.json`, a folder a part.

Each part is opened as a model of its own (`open_huggingface`), and the schedule is read from its
config. What a folder has that is not computed here, such as a safety checker, is left alone; what
is computed otherwise, such as another schedule, is refused.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.models.checkpoint import read_json
from gimlax.models.decoder import DType
from gimlax.models.families import Reader
from gimlax.models.flow_matching import FlowMatching
from gimlax.models.huggingface import open_huggingface
from gimlax.models.leaves import ModelFiles, Progress, read_tree
from gimlax.models.manifest import verified
from gimlax.models.prompts import PromptTokenizer, load_prompt_tokenizer
from gimlax.models.replacing import standing
from gimlax.models.stable_diffusion import StableDiffusionConfig

__all__ = [
    "load_prompt_tokenizers",
    "load_stable_diffusion",
    "open_stable_diffusion",
    "part_folders",
]

INDEX = "model_index.json"
PIPELINE = "StableDiffusion3Pipeline"
FOLDERS = {  # of each part: its folder, and the class that it must be of
    "clip_l": ("text_encoder", "CLIPTextModelWithProjection"),
    "clip_g": ("text_encoder_2", "CLIPTextModelWithProjection"),
    "t5": ("text_encoder_3", "T5EncoderModel"),
    "transformer": ("transformer", "SD3Transformer2DModel"),
    "vae": ("vae", "AutoencoderKL"),
}
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
OPTIONAL = ("t5",)
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def open_stable_diffusion(path: str | os.PathLike[str], *, dtype: DType = "float32") -> ModelFiles:
    """The model in a folder, its config a `StableDiffusionConfig`; no weights are read.

    Raises:
        SpecError: a file is missing or not sound, a part is of a kind that is not supported, or
            parts do not fit each other.
    """
    path = standing(Path(path))
    parts: dict[str, Any] = dict.fromkeys(OPTIONAL)
    leaves = []
    for name in _parts(path):
        found = open_huggingface(path / FOLDERS[name][0], dtype=dtype)
        parts[name] = found.config
        leaves += [dataclasses.replace(leaf, path=(name, *leaf.path)) for leaf in found.leaves]
    try:
        config = StableDiffusionConfig(**parts, schedule=_schedule(path))
    except SpecError as error:
        raise SpecError(f"'{path}': {error}") from error
    return ModelFiles(config=config, leaves=tuple(leaves))


def load_stable_diffusion(
    path: str | os.PathLike[str],
    *,
    dtype: DType = "float32",
    verify: bool = True,
    progress: Progress | None = None,
) -> tuple[StableDiffusionConfig, dict[str, Any]]:
    """The config and all parameters of the model in a folder, as arrays of the host.

    With `verify`, the folder and those of its parts are compared with their manifests before.
    """
    path = standing(Path(path))
    found = open_stable_diffusion(path, dtype=dtype)
    if verify:
        progress = verified([path, *part_folders(path)], progress)
    return found.config, read_tree(found.leaves, progress)


def load_prompt_tokenizers(path: str | os.PathLike[str]) -> dict[str, PromptTokenizer]:
    """The tokenizer of each text encoder that the folder has."""
    path = standing(Path(path))
    names = [name for name in _parts(path) if name in TOKENIZERS]
    return {name: load_prompt_tokenizer(path / TOKENIZERS[name]) for name in names}


def part_folders(path: Path) -> list[Path]:
    """Where the parts that the index says are there lie."""
    return [standing(path / FOLDERS[name][0]) for name in _parts(path)]


def _parts(path: Path) -> list[str]:
    """The parts that the index says are there."""
    reader = Reader(path / INDEX, read_json(path / INDEX, "index"))
    kind = reader.get("_class_name", str)
    if kind != PIPELINE:
        reader.fail(f"it is a {kind[:80]!r}, which is not supported; supported is {PIPELINE}")
    found = []
    for name, (folder, wanted) in FOLDERS.items():
        entry = reader.get(folder, list, [None, None])
        if entry == [None, None] and name in OPTIONAL:
            continue
        if len(entry) != 2 or entry[1] != wanted:
            reader.fail(f"its {folder!r} is {repr(entry)[:80]}; supported is {wanted}")
        found.append(name)
    scheduler = reader.get("scheduler", list)
    if scheduler[1:] != [SCHEDULER]:
        reader.fail(f"its 'scheduler' is {repr(scheduler)[:80]}; supported is {SCHEDULER}")
    return found


def _schedule(path: Path) -> FlowMatching:
    file = path / "scheduler" / "scheduler_config.json"
    reader = Reader(file, read_json(file, "scheduler config"))
    reader.only(
        use_dynamic_shifting=False,
        invert_sigmas=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        stochastic_sampling=False,
    )
    if reader.values.get("shift_terminal"):
        reader.fail("it has 'shift_terminal', which is not supported")
    return FlowMatching(
        shift=reader.get("shift", float, 1.0),
        num_times=reader.get("num_train_timesteps", int, 1000),
    )
