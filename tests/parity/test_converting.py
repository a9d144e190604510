"""What is converted out of GGUF is read by transformers: the same logits, the same tokens."""

import importlib
import importlib.util

import numpy as np
import pytest

from gimlax import models
from tests.models.gguf_files import TINY, TINY_EXPERTS, llama_file

missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what torch and transformers warn of is theirs
]
ABSOLUTE = 1e-4
TOKENS = np.array([[5, 40, 41, 7, 100, 3, 3, 90]])


@pytest.fixture(params=[TINY, TINY_EXPERTS], ids=["llama", "mixtral"])
def converted(request, tmp_path):
    source = tmp_path / "model.gguf"
    source.write_bytes(llama_file(request.param))
    assert models.convert(source, tmp_path / "folder") == ()
    return source, tmp_path / "folder"


def test_logits_are_the_same(converted):
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    source, folder = converted
    config, params = models.load_llama(source)
    cache = models.init_cache(config, 1, 8)
    expected, _ = models.decoder_apply(config)(params, cache, TOKENS, np.int32(0))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(torch.tensor(TOKENS)).logits
    np.testing.assert_allclose(found.numpy(), expected, atol=ABSOLUTE, rtol=0)


def test_tokens_and_prompts_are_the_same(converted):
    transformers = importlib.import_module("transformers")
    source, folder = converted
    ours, theirs = models.load_tokenizer(source), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("hello world", " hell\n wo<|end|>", "<tool>é 12"):
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    messages = [{"role": "user", "content": "hello"}]
    expected = models.load_chat_template(source).render(messages)
    found = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found == expected
