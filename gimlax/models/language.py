"""A language model in files, with all that it takes from text to text, whatever its files are.

A GGUF file or a folder of Hugging Face, attention over a cache or a recurrent state: who generates
needs to know neither. Opening reads sizes, headers and the vocabulary; weights stay in the files
until `load`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlax.errors import SpecError
from gimlax.models.chat import ChatTemplate, load_chat_template
from gimlax.models.decoder import (
    DecoderConfig,
    DType,
    Params,
    abstract_cache,
    abstract_params,
    decoder_apply,
)
from gimlax.models.gguf import read_gguf
from gimlax.models.leaves import Leaf, Progress, read_tree
from gimlax.models.llama_gguf import open_gguf
from gimlax.models.manifest import verified
from gimlax.models.opening import open_model
from gimlax.models.replacing import standing
from gimlax.models.state_space import StateSpaceConfig, abstract_state, state_space_apply
from gimlax.models.tokenizer import Tokenizer, load_tokenizer
from gimlax.models.tokenizer_json import FolderTokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageModel:
    """Sizes, vocabulary and the leaves of the parameters; `template` is None if there is none."""

    path: Path
    config: DecoderConfig | StateSpaceConfig
    leaves: tuple[Leaf, ...]
    tokenizer: Tokenizer | FolderTokenizer
    template: ChatTemplate | None

    @property
    def recurrent(self) -> bool:
        """Whether it carries a state that no token may enter twice, and that has no length."""
        return isinstance(self.config, StateSpaceConfig)

    @property
    def max_context(self) -> int | None:
        """Positions of the longest text, None for any number."""
        return None if isinstance(self.config, StateSpaceConfig) else self.config.max_context

    @property
    def apply(self) -> Callable[..., Any]:
        """(params, state, tokens, position, last=None) -> (logits, state)."""
        if isinstance(self.config, StateSpaceConfig):
            return state_space_apply(self.config)
        return decoder_apply(self.config)

    @property
    def params(self) -> Params:
        """Shapes of the parameters."""
        return abstract_params(self.config)

    def state(self, batch: int, context: int) -> Any:
        """Shapes of the state of `batch` texts of up to `context` tokens."""
        if isinstance(self.config, StateSpaceConfig):
            return abstract_state(self.config, batch)
        return abstract_cache(self.config, batch, context)

    def load(self, progress: Progress | None = None, *, verify: bool = True) -> Params:
        """The parameters, as arrays of the host; `verify` compares files with their manifest."""
        if verify:
            folder = self.path if self.path.is_dir() else self.path.parent
            progress = verified([folder], progress)
        return read_tree(self.leaves, progress)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for messages, by the template that the model brings along."""
        if self.template is None:
            raise SpecError(f"'{self.path}' has no chat template; give the prompt as raw text")
        return self.template.render(messages)


def open_language(path: str | os.PathLike[str], *, dtype: DType = "float32") -> LanguageModel:
    """The language model in a GGUF file, in a folder of Hugging Face, or in the checkpoint of Orbax
    that `convert` makes of one.

    Raises:
        SpecError: a file is missing or not sound, or what is in it is not supported.
    """
    path = standing(Path(path))
    folder = path.is_dir()
    source = path if folder else read_gguf(path)
    files = open_model(path, dtype=dtype) if folder else open_gguf(source, dtype=dtype)
    if not isinstance(files.config, DecoderConfig | StateSpaceConfig):
        raise SpecError(
            f"'{path}' holds a {type(files.config).__name__.removesuffix('Config')}, which says "
            "no next token; give a language model"
        )
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > files.config.vocab_size:
        raise SpecError(
            f"'{path}' has {tokenizer.vocab_size} tokens, and embeddings of "
            f"{files.config.vocab_size} of them"
        )
    return LanguageModel(
        path=path,
        config=files.config,
        leaves=files.leaves,
        tokenizer=tokenizer,
        template=load_chat_template(source, needed=False),
    )
