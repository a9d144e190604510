"""Models of our own, readers of their files, and adapters for Flax modules of others.

Nothing in gimlax needs this package to run a model: it makes functions and pytrees, which is all
that `gimlax.trace` asks for.
"""

from gimlax.models.adapters import from_linen, from_nnx, from_stateful_nnx
from gimlax.models.bert import (
    BERT_BASE,
    BERT_LARGE,
    MINILM_L6,
    Bert,
    BertConfig,
    bert_apply,
    embed_apply,
)
from gimlax.models.chat import ChatTemplate, load_chat_template
from gimlax.models.clip import CLIP_G, CLIP_L, ClipConfig, clip_apply
from gimlax.models.converting import convert
from gimlax.models.decoder import (
    DecoderConfig,
    abstract_cache,
    abstract_params,
    decoder_apply,
    init_cache,
    init_params,
)
from gimlax.models.diffusers import (
    load_prompt_tokenizers,
    load_stable_diffusion,
    open_stable_diffusion,
)
from gimlax.models.flow_matching import FlowMatching
from gimlax.models.gguf import Gguf, TensorInfo, read_gguf
from gimlax.models.huggingface import load_huggingface, open_huggingface
from gimlax.models.language import LanguageModel, open_language
from gimlax.models.leaves import Leaf, ModelFiles, read_leaves, read_tree
from gimlax.models.llama import (
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA31_8B,
    LLAMA31_405B,
    LLAMA32_1B,
    LLAMA32_3B,
    SMOLLM2_135M,
    Llama,
    LlamaConfig,
    RopeScaling,
    llama_apply,
)
from gimlax.models.llama_gguf import iter_llama, llama_config, load_llama, open_gguf
from gimlax.models.mamba import (
    MAMBA_1_4B,
    MAMBA_2_8B,
    MAMBA_130M,
    MAMBA_370M,
    MAMBA_790M,
    MambaConfig,
)
from gimlax.models.mamba2 import (
    CODESTRAL_MAMBA_7B,
    MAMBA2_1_3B,
    MAMBA2_2_7B,
    MAMBA2_130M,
    MAMBA2_370M,
    MAMBA2_780M,
    Mamba2Config,
)
from gimlax.models.mixtral import MIXTRAL_8X7B, MIXTRAL_8X22B, Mixtral, MixtralConfig
from gimlax.models.mmdit import (
    SD3_MEDIUM,
    SD35_LARGE,
    SD35_MEDIUM,
    MMDiTConfig,
    mmdit_apply,
)
from gimlax.models.prompts import PromptTokenizer, load_prompt_tokenizer
from gimlax.models.sentences import SentenceEncoder, find_minilm, load_sentence_encoder
from gimlax.models.smollm2 import find_smollm2
from gimlax.models.stable_diffusion import (
    STABLE_DIFFUSION_3_MEDIUM,
    STABLE_DIFFUSION_35_LARGE,
    STABLE_DIFFUSION_35_MEDIUM,
    StableDiffusionConfig,
    abstract_diffusion_params,
    decode_apply,
    denoise_apply,
    encode_apply,
    init_diffusion_params,
)
from gimlax.models.state_space import (
    StateSpaceConfig,
    abstract_state,
    init_state,
    state_space_apply,
)
from gimlax.models.t5 import T5_XXL, T5Config, t5_apply
from gimlax.models.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from gimlax.models.tokenizer_json import FolderTokenizer
from gimlax.models.vae import SD3_VAE, VaeConfig, vae_apply
from gimlax.models.wordpiece import WordPiece, load_wordpiece

__all__ = [
    "BERT_BASE",
    "BERT_LARGE",
    "CLIP_G",
    "CLIP_L",
    "CODESTRAL_MAMBA_7B",
    "LLAMA3_8B",
    "LLAMA3_70B",
    "LLAMA31_8B",
    "LLAMA31_405B",
    "LLAMA32_1B",
    "LLAMA32_3B",
    "MAMBA2_1_3B",
    "MAMBA2_2_7B",
    "MAMBA2_130M",
    "MAMBA2_370M",
    "MAMBA2_780M",
    "MAMBA_1_4B",
    "MAMBA_2_8B",
    "MAMBA_130M",
    "MAMBA_370M",
    "MAMBA_790M",
    "MINILM_L6",
    "MIXTRAL_8X7B",
    "MIXTRAL_8X22B",
    "SD3_MEDIUM",
    "SD3_VAE",
    "SD35_LARGE",
    "SD35_MEDIUM",
    "SMOLLM2_135M",
    "STABLE_DIFFUSION_3_MEDIUM",
    "STABLE_DIFFUSION_35_LARGE",
    "STABLE_DIFFUSION_35_MEDIUM",
    "T5_XXL",
    "Bert",
    "BertConfig",
    "ChatTemplate",
    "ClipConfig",
    "DecoderConfig",
    "FlowMatching",
    "FolderTokenizer",
    "Gguf",
    "LanguageModel",
    "Leaf",
    "Llama",
    "LlamaConfig",
    "MMDiTConfig",
    "Mamba2Config",
    "MambaConfig",
    "Mixtral",
    "MixtralConfig",
    "ModelFiles",
    "PromptTokenizer",
    "RopeScaling",
    "SentenceEncoder",
    "StableDiffusionConfig",
    "StateSpaceConfig",
    "StreamDecoder",
    "T5Config",
    "TensorInfo",
    "Tokenizer",
    "VaeConfig",
    "WordPiece",
    "abstract_cache",
    "abstract_diffusion_params",
    "abstract_params",
    "abstract_state",
    "bert_apply",
    "clip_apply",
    "convert",
    "decode_apply",
    "decoder_apply",
    "denoise_apply",
    "embed_apply",
    "encode_apply",
    "find_minilm",
    "find_smollm2",
    "from_linen",
    "from_nnx",
    "from_stateful_nnx",
    "init_cache",
    "init_diffusion_params",
    "init_params",
    "init_state",
    "iter_llama",
    "llama_apply",
    "llama_config",
    "load_chat_template",
    "load_huggingface",
    "load_llama",
    "load_prompt_tokenizer",
    "load_prompt_tokenizers",
    "load_sentence_encoder",
    "load_stable_diffusion",
    "load_tokenizer",
    "load_wordpiece",
    "mmdit_apply",
    "open_gguf",
    "open_huggingface",
    "open_language",
    "open_stable_diffusion",
    "read_gguf",
    "read_leaves",
    "read_tree",
    "state_space_apply",
    "t5_apply",
    "vae_apply",
]
