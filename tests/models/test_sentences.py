"""Sentence encoders out of folders: what a folder says is done, and what it gets wrong is said."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gimlax.errors import SpecError
from gimlax.models import load_sentence_encoder, load_wordpiece
from tests.models import bert_folder

pytest.importorskip("tokenizers")


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    return bert_folder.write(tmp_path / "encoder")


def test_a_folder_says_everything(folder):
    encoder = load_sentence_encoder(folder)
    assert encoder.config == bert_folder.CONFIG
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("mean", True, 12)
    rows = encoder.tokenizer.encode(["The cat sat!", "", "sats unknown"], max_tokens=12)
    words = {word: index for index, word in enumerate(bert_folder.WORDS)}
    expected = [
        ["[CLS]", "the", "cat", "sat", "!", "[SEP]"],
        ["[CLS]", "[SEP]"],
        ["[CLS]", "sat", "##s", "[UNK]", "[SEP]"],
    ]
    assert [row.tolist() for row in rows] == [[words[w] for w in row] for row in expected]
    tokens = np.stack([rows[0], rows[0]])
    found = encoder.apply(encoder.params, tokens, np.ones_like(tokens))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_without_modules_a_sentence_is_the_plain_mean(folder):
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    encoder = load_sentence_encoder(folder)
    assert (encoder.pooling, encoder.normalize, encoder.max_tokens) == ("mean", False, 16)


def test_modules_say_whether_sentences_are_scaled(folder):
    (folder / "modules.json").write_text(json.dumps(modules("Transformer", "Pooling")))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    encoder = load_sentence_encoder(folder)
    assert (encoder.pooling, encoder.normalize) == ("cls", False)


def test_longer_texts_lose_their_end(folder):
    (row,) = load_wordpiece(folder).encode(["the cat sat the cat"], max_tokens=4)
    words = [bert_folder.WORDS[i] for i in row]
    assert words == ["[CLS]", "the", "cat", "[SEP]"]
    with pytest.raises(SpecError, match=r"max_tokens is 2.* 3 or more"):
        load_wordpiece(folder).encode(["the"], max_tokens=2)


def test_both_files_of_a_tokenizer_give_the_same(folder):
    texts = ["The  cat's SATS", "[CLS] the [MASK] [PAD]", "cät\tsat\n", "猫cat"]
    first = load_wordpiece(folder)
    (folder / "tokenizer.json").write_text(first.encoder.to_str())
    whole = load_wordpiece(folder)
    assert (first.path.name, whole.path.name) == ("vocab.txt", "tokenizer.json")
    for one, other in zip(
        first.encode(texts, max_tokens=12), whole.encode(texts, max_tokens=12), strict=True
    ):
        assert one.tolist() == other.tolist()


def modules(*kinds):
    return [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"}
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", modules("Transformer", "Pooling", "Dense"), "Transformer, Pooling, Dense"),
        ("modules.json", [], "supported are Transformer, Pooling"),
        ("modules.json", {"a": 1}, "no list of modules"),
        (
            "modules.json",
            [*modules("Transformer"), {"type": "Pooling", "path": "../elsewhere"}],
            "outside of its folder",
        ),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by pooling_mode_max"),
        ("1_Pooling/config.json", {}, "pools by nothing"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "pools by mean, cls",
        ),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "'max_seq_length' is 'many'"),
        ("tokenizer.json", {"model": "what"}, "no tokenizer that can be read"),
        ("config.json", bert_folder.FIELDS | {"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
        ("config.json", bert_folder.FIELDS | {"vocab_size": 5}, "embed"),
    ],
)
def test_faults_of_a_folder_are_said(folder, name, content, said):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(SpecError, match=said):
        load_sentence_encoder(folder)


def test_a_vocabulary_that_is_larger_than_the_model_is_refused(folder):
    (folder / "vocab.txt").write_text("\n".join([*bert_folder.WORDS, "more", "words"]))
    with pytest.raises(SpecError, match=f"{len(bert_folder.WORDS) + 2} tokens.* of "):
        load_sentence_encoder(folder)
    (folder / "vocab.txt").write_text("the\ncat")
    with pytest.raises(SpecError, match=r"lacks the words \[UNK\], \[CLS\], \[SEP\]"):
        load_sentence_encoder(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(SpecError, match=r"neither 'tokenizer.json' nor 'vocab.txt'"):
        load_wordpiece(folder)


def test_another_kind_of_tokenizer_is_refused(folder):
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    (folder / "tokenizer.json").write_text(bpe.to_str())
    with pytest.raises(SpecError, match="kind 'BPE'; needed is 'WordPiece'"):
        load_wordpiece(folder)


def test_a_lone_surrogate_is_refused(folder):
    with pytest.raises(SpecError, match=r"text 1 has the lone surrogate .* character 4"):
        load_wordpiece(folder).encode(["the", "cat \ud800"], max_tokens=9)


def test_a_buffer_of_older_files_is_left_out_and_nothing_else(folder):
    tensors = bert_folder.tensors()
    buffer = {"embeddings.position_ids": np.arange(16)[None]}
    save_file(tensors | buffer, folder / "model.safetensors")
    assert load_sentence_encoder(folder).max_tokens == 12
    save_file(tensors | {"other": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(SpecError, match="other"):
        load_sentence_encoder(folder)
