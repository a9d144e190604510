"""Models from folders as Hugging Face has them: config.json and safetensors.

`open_huggingface` reads the sizes, and finds for each parameter the tensors that hold it; weights
stay in their files until somebody reads a leaf. Each family says how its config and its tensors are
called; everything that can be checked from names and shapes is checked before a weight is read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.models.bert_files import BERT
from gimlax.models.checkpoint import read_checkpoint, read_json
from gimlax.models.decoder import DType
from gimlax.models.decoder_files import LLAMA, MIXTRAL
from gimlax.models.families import Family, Reader
from gimlax.models.leaves import (
    ModelFiles,
    Progress,
    check_fit,
    flat_shapes,
    leaf_of,
    read_tree,
    wanted_tensors,
)
from gimlax.models.manifest import verified
from gimlax.models.replacing import standing
from gimlax.models.scaled import ScaledCheckpoint, check_method
from gimlax.models.stable_diffusion_files import CLIP, MMDIT, T5, VAE
from gimlax.models.state_space_files import MAMBA, MAMBA2

__all__ = ["CONFIG", "family_of", "load_huggingface", "open_huggingface"]

CONFIG = "config.json"
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": BERT,
        "clip_text_model": CLIP,
        "llama": LLAMA,
        "mamba": MAMBA,
        "mamba2": MAMBA2,
        "mixtral": MIXTRAL,
        "t5": T5,
        "AutoencoderKL": VAE,
        "SD3Transformer2DModel": MMDIT,
    }
)


def family_of(file: Path, values: Mapping[str, Any], dtype: DType) -> tuple[Family, Any]:
    """The family and the sizes of a config.json, whose values these are.

    Raises:
        SpecError: the architecture, or a variant of it, is not supported.
    """
    reader = Reader(file, values)
    kind = reader.get("model_type", str, values.get("_class_name"))  # the latter: diffusers
    if kind not in FAMILIES:
        reader.fail(
            f"it is a model of type {kind[:80]!r}, which is not supported; supported are"
            f" {', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[kind], FAMILIES[kind].config(reader).with_dtype(dtype)
    except SpecError as error:
        if str(file) in str(error):
            raise
        reader.fail(str(error))


def open_huggingface(path: str | os.PathLike[str], *, dtype: DType = "float32") -> ModelFiles:
    """The model in a folder, with parameters, computation and cache in `dtype`.

    `path` is the folder, or the one file in it that has the weights.

    Raises:
        SpecError: a file is missing or not sound, the architecture or a variant of it is not
            supported, or tensors do not fit the config.
    """
    path = standing(Path(path))
    file = (path.parent if path.is_file() else path) / CONFIG
    reader = Reader(file, read_json(file, "config"))
    sides = check_method(reader)
    family, config = family_of(file, reader.values, dtype)
    checkpoint = read_checkpoint(path)
    needed = family.num_tensors(config)
    if needed > len(checkpoint.files):  # also bounds what follows
        reader.fail(
            f"it announces a model of {needed} tensors or more, '{path}' has"
            f" {len(checkpoint.files)}"
        )
    shapes = flat_shapes(family.params(config))
    names = {of: family.names(config, of) for of in shapes}
    wanted = [w for of, shape in shapes.items() for w in wanted_tensors(of, shape, names[of])]
    target = np.dtype(jax.numpy.dtype(dtype))
    tensors = checkpoint if sides is None else ScaledCheckpoint(checkpoint, sides, target)
    held = tensors.held()
    check_fit(f"'{path}'", wanted, held, lambda name: family.may_have(config, name))
    leaves = tuple(
        leaf_of(
            of,
            shape,
            names[of],
            tensors.read,
            tensors.drop,
            dtype=target,
            num_bytes=sum(tensors.num_bytes(name) for name in names[of]),
        )
        for of, shape in shapes.items()
    )
    needed_names = {want.name for want in wanted}
    others = tuple(
        leaf_of(
            (name,),
            have.shape,
            [name],
            tensors.read,
            tensors.drop,
            dtype=target if have.numpy is None else have.numpy,
            num_bytes=tensors.num_bytes(name),
        )
        for name, have in held.items()
        if name not in needed_names
    )
    return ModelFiles(config=config, leaves=leaves, others=others)


def load_huggingface(
    path: str | os.PathLike[str],
    *,
    dtype: DType = "float32",
    verify: bool = True,
    progress: Progress | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The config and all parameters of the model in a folder, as arrays of the host.

    Where the files have them in `dtype`, arrays are views of the files and cannot be written. With
    `verify`, the folder is compared with its manifest, if it has one, before.
    """
    path = standing(Path(path))
    if verify:
        progress = verified([path if path.is_dir() else path.parent], progress)
    found = open_huggingface(path, dtype=dtype)
    return found.config, read_tree(found.leaves, progress)
