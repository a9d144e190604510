"""Language models out of files of every kind: opened, tokenized and run the same way."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import (
    BertConfig,
    ModelFiles,
    init_params,
    language,
    load_tokenizer,
    open_language,
)
from tests.models.gguf_files import STRING, field, file_bytes, llama_file, tokenizer_fields
from tests.models.language_folder import CONFIGS, encoder, write

tokenizers = pytest.importorskip("tokenizers")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module", name="twin")
def twin_fixture(tmp_path_factory):
    """The same vocabulary and rules in a GGUF file, which our own code decodes."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(file_bytes(tokenizer_fields(pre=field("tokenizer.ggml.pre", STRING, "gpt-2"))))
    return load_tokenizer(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_kind_is_opened_and_run_without_knowing_which_it_is(tmp_path, kind):
    model = open_language(write(tmp_path / kind, kind))
    assert model.config == CONFIGS[kind]
    assert model.recurrent == (model.max_context is None) == kind.startswith("mamba")
    params = model.load()
    jax.tree.map(np.testing.assert_array_equal, params, init_params(CONFIGS[kind]))
    tokens = np.array([model.tokenizer.encode(model.chat(HELLO))], np.int32)
    shapes = jax.eval_shape(model.apply, params, model.state(1, 32), tokens, np.int32(0))
    assert shapes[0].shape == (*tokens.shape, CONFIGS[kind].vocab_size)
    assert shapes[1] == model.state(1, 32)


def test_a_file_and_a_folder_of_one_model_are_the_same(folder, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_file())
    one, other = open_language(path), open_language(folder)
    assert one.config == dataclasses.replace(other.config, norm_eps=one.config.norm_eps)
    assert one.chat(HELLO) == other.chat(HELLO)
    jax.tree.map(np.testing.assert_array_equal, one.load(), other.load())
    assert one.tokenizer.encode("hello world") == other.tokenizer.encode("hello world")
    assert one.max_context == other.max_context == 32


@hypothesis.given(TEXT)
def test_texts_are_encoded_as_our_own_reader_does_and_come_back(tokenizer, twin, text):
    ids = tokenizer.encode(text)
    assert ids == twin.encode(text)
    assert tokenizer.decode(ids) == text


@hypothesis.given(st.lists(st.integers(0, 263), max_size=30))
def test_a_stream_gives_the_text_of_all_ids(tokenizer, twin, ids):
    stream, expected = tokenizer.stream(), twin.decode(ids)
    text = "".join(stream.push(token_id) for token_id in ids) + stream.flush()
    assert tokenizer.decode(ids) == expected
    assert text.rstrip("\ufffd") == expected.rstrip("\ufffd")


def test_a_character_is_held_back_until_it_is_whole(tokenizer):
    stream, ids = tokenizer.stream(), tokenizer.encode("é🎉!")
    assert [stream.push(token_id) for token_id in ids] == ["", "é", "", "", "", "🎉", "!"]
    assert stream.flush() == ""
    stream.push(ids[0])
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_a_tokenizer_of_whole_words_and_bytes_streams_as_well(tmp_path):
    pieces = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "h",
        "i",
        "hi",
        "▁hi",
    ]
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges = [("h", "i"), ("▁", "hi")]
    found = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, byte_fallback=True))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    path = write(tmp_path / "model", bos_token="<s>", eos_token="</s>")
    found.save(str(path / "tokenizer.json"))
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("hi hi é")
    assert len(ids) == 2 + 1 + 2
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in ids] == ["hi", " hi", " ", "", "é"]
    assert tokenizer.decode(ids) == "hi hi é"


def test_where_texts_begin_and_end_is_said_by_several_files(folder, tmp_path):
    found = load_tokenizer(folder)
    assert (found.bos_id, found.bos_token, found.adds_bos) == (0, "<|start|>", False)
    assert (found.eos_ids, found.eos_token) == ((1,), "<|end|>")
    path = write(tmp_path / "more")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [263, 1]}))
    adding = encoder()
    adding.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    adding.save(str(path / "tokenizer.json"))
    found = load_tokenizer(path)
    assert found.eos_ids == (263, 1)
    assert found.encode("he") == [0, *load_tokenizer(folder).encode("he")]
    assert found.encode("<|start|>he") == found.encode("he")


def test_padding_and_truncation_of_a_file_are_left_out(tmp_path):
    path = write(tmp_path / "cut")
    cutting = encoder()
    cutting.enable_truncation(2)
    cutting.enable_padding(length=8)
    cutting.save(str(path / "tokenizer.json"))
    assert len(load_tokenizer(path).encode("hello world")) == 6


def test_a_template_is_found_wherever_it_lies(tmp_path):
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    path = write(tmp_path / "model", chat_template=several)
    assert open_language(path).chat(HELLO) == "yes"
    (path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert open_language(path).chat(HELLO) == "<|start|>hello"


def test_a_hostile_template_is_stopped(tmp_path):
    bomb = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(SpecError, match=r"tokenizer_config.json' did not end within .* steps"):
        open_language(write(tmp_path / "model", chat_template=bomb)).chat(HELLO)
    (tmp_path / "model" / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(SpecError, match=r"chat_template.jinja' cannot be read"):
        open_language(tmp_path / "model")


def test_a_model_without_template_says_so_when_asked(tmp_path):
    model = open_language(write(tmp_path / "model", chat_template=None))
    with pytest.raises(SpecError, match=r"model' has no chat template; give the prompt as raw"):
        model.chat(HELLO)
    with pytest.raises(SpecError, match="its chat template is a int, not text"):
        open_language(write(tmp_path / "other", chat_template=3))


TOKENIZERS = {
    "no JSON": (b"{", "is no tokenizer that can be read"),
    "another object": (b'{"a": 1}', "is no tokenizer that can be read"),
    "no text": (b"\xff\xfe", "is no tokenizer that can be read"),
    "deep": (b"[" * 100000, "is no tokenizer that can be read"),
    "absent": (None, "cannot be read: No such file"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(tmp_path, name):
    content, words = TOKENIZERS[name]
    path = write(tmp_path / "model")
    (path / "tokenizer.json").unlink()
    if content is not None:
        (path / "tokenizer.json").write_bytes(content)
    with pytest.raises(SpecError, match=rf"tokenizer.json' {words}"):
        load_tokenizer(path)


def test_tokens_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(SpecError, match=r"no token '<eos>', which its folder names as eos_token"):
        load_tokenizer(write(tmp_path / "a", eos_token="<eos>"))
    with pytest.raises(SpecError, match=r"'bos_token' is 3; needed is a string"):
        load_tokenizer(write(tmp_path / "b", bos_token=3))
    path = write(tmp_path / "c", eos_token=None)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": 264}))
    with pytest.raises(SpecError, match=r"'eos_token_id' is 264, the vocabulary has 264 tokens"):
        load_tokenizer(path)


def test_a_vocabulary_that_the_model_does_not_have_is_refused(tmp_path):
    path = write(tmp_path / "model")
    larger = encoder()
    larger.add_tokens(["<more>"])
    larger.save(str(path / "tokenizer.json"))
    with pytest.raises(SpecError, match="has 265 tokens, and embeddings of 264 of them"):
        open_language(path)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(SpecError, match=r"lone surrogate .* at character 1"):
        tokenizer.encode("a\ud800")


def test_an_encoder_says_no_next_token(folder, monkeypatch):
    config = BertConfig(vocab_size=61, width=24, num_layers=2, num_heads=3, mlp_width=40)
    files = ModelFiles(config=config, leaves=())
    monkeypatch.setattr(language, "open_model", lambda path, dtype: files)
    with pytest.raises(SpecError, match="holds a Bert, which says no next token"):
        open_language(folder)
