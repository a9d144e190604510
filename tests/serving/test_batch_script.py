"""`scripts/batch_infer.py` answers the lines of a file, whatever happens to it meanwhile, and
`scripts/batch_apply.py` does any function's work so."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import open_language
from gimlax.serving import Request, TextModel, digests_of, generate
from tests.models import language_folder

pytest.importorskip("tokenizers")
pytest.importorskip("minijinja")
ROOT = Path(__file__).parents[2]
PROMPTS = ["hello", "he", None, "world", "hello world", "x" * 40, "o"]


def start(folder, script, *flags):
    return subprocess.Popen(
        [sys.executable, f"scripts/{script}.py", *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{folder}",
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, script, *flags):
    process = start(folder, script, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    folder = language_folder.write(tmp_path_factory.mktemp("model") / "llama")
    lines = [json.dumps({"prompt": p, "id": i}) for i, p in enumerate(PROMPTS)]
    lines = [line.encode() for line in lines]
    lines[2] = b'{"id": 2, "prompt": "he\xff"}'  # no UTF-8
    (folder / "in.jsonl").write_bytes(b"\n\n".join(lines) + b"\n")
    return folder


@pytest.fixture(scope="module", name="flags")
def flags_fixture(folder):
    job = [f"--model={folder}", f"--input={folder}/in.jsonl", "--batch=2", "--max_tokens=3"]
    return [*job, "--raw", "--stages=2", "--meshes=cpu,cpu"]


@pytest.fixture(scope="module", name="whole")
def whole_fixture(folder, flags):
    """The output of an undisturbed run."""
    output = folder / "whole.jsonl"
    code, _, err = run(folder, "batch_infer", *flags, f"--output={output}")
    assert code == 1, err
    return output


def test_answers_are_those_of_each_prompt_alone(folder, whole):
    language = open_language(folder)
    model = TextModel(
        apply=language.apply,
        params=language.load(),
        cache=language.state(1, 32),
        context=32,
        chunk=16,
    ).uncut()
    for index, (prompt, row) in enumerate(zip(PROMPTS, rows_of(whole), strict=True)):
        assert row["index"] == row["id"] == index
        if prompt in (None, PROMPTS[5]):
            assert "byte 23 is 0xff" in row["error"] or "40 tokens, but the context" in row["error"]
            continue
        ids = tuple(language.tokenizer.encode(prompt))
        answer = list(generate(model, Request(prompt=ids, max_tokens=3, stop=frozenset({1}))))
        shown = [token.id for token in answer if token.id != 1]
        assert row["text"] == language.tokenizer.decode(shown)
        assert (row["num_prompt_tokens"], row["num_new_tokens"]) == (len(ids), len(answer))


def test_a_run_that_was_ended_and_killed_goes_on_where_it_was(folder, flags, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    process = start(folder, "batch_infer", *flags, f"--output={output}")
    while "compilation ..." not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    held = whole.read_bytes()
    middle = held.index(b"\n", held.index(b'"index": 4')) - 9  # in the line of the fifth row
    (tmp_path / "out.jsonl.part").write_bytes(held[:middle])
    code, out, err = run(folder, "batch_infer", *flags, f"--output={output}")
    assert code == 1, err
    assert output.read_bytes() == held
    assert "7 rows in" in out and "2 of them errors" in out
    code, _, err = run(folder, "batch_infer", *flags, f"--output={output}", "--seed=1")
    assert code == 2 and "of another job: its seed is 0, not 1" in err
    assert "Traceback" not in err


def test_rows_of_two_models_or_of_two_plans_are_not_mixed(folder, flags, whole, tmp_path):
    other = language_folder.write(tmp_path / "llama")
    job = [flag.replace(f"--model={folder}", f"--model={other}") for flag in flags]
    job.append(f"--output={tmp_path}/out.jsonl")
    code, _, err = run(folder, "batch_infer", *job, "--max_errors=0")
    assert code == 3, err
    code, _, err = run(folder, "batch_infer", *job, "--stages=1", "--meshes=cpu")
    assert code == 2 and 'its stages is 2, not 1; its meshes is ["cpu", "cpu"], not' in err
    weights = other / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    code, _, err = run(folder, "batch_infer", *job)
    assert code == 2 and "of another job: its llama/model.safetensors is" in err


def test_files_of_a_model_are_known_by_their_bytes(tmp_path):
    folder = tmp_path / "model"
    for name in ("a.safetensors", "1_Pooling/config.json", "out.jsonl", "out.jsonl.part"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    found = digests_of(folder)
    assert list(found) == ["model/1_Pooling/config.json", "model/a.safetensors"]
    assert found["model/a.safetensors"] == hashlib.sha256(b"a.safetensors").hexdigest()
    assert digests_of(folder / "a.safetensors").keys() == {"a.safetensors"}
    for name in ("_METADATA", "d/0123", "w/0.0"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    assert digests_of(folder).keys() == found.keys() | {
        "model/_METADATA",
        "model/d/0123",
        "model/w/0.0",
    }
    with pytest.raises(SpecError, match="none' cannot be read"):
        digests_of(tmp_path / "none")


def test_openai_lines_through_a_recurrent_model_up_to_too_many_errors(tmp_path):
    folder = language_folder.write(tmp_path / "mamba2", "mamba2")
    hello = [{"role": "user", "content": "hello"}]
    bodies = [{"messages": hello, "max_tokens": 2}, {"messages": hello, "n": 2}, {}, {}]
    lines = [
        json.dumps({"custom_id": f"row {i}", "url": "/v1/chat/completions", "body": body})
        for i, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    flags = [f"--model={folder}", f"--input={tmp_path}/in.jsonl", "--batch=2", "--shard=0/1"]
    output = tmp_path / "out.jsonl"
    code, out, err = run(folder, "batch_infer", *flags, f"--output={output}", "--max_errors=1")
    assert code == 3, err
    assert "more than 1 errors" in out and not output.exists()
    found = rows_of(tmp_path / "out.jsonl.part")
    assert [row["custom_id"] for row in found] == ["row 0", "row 1", "row 2"]
    assert [row["response"]["status_code"] for row in found] == [200, 400, 400]
    body = found[0]["response"]["body"]
    assert body["usage"]["completion_tokens"] == 2
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["created"] == int((tmp_path / "out.jsonl.job").stat().st_mtime)


def test_no_row_sets_the_cache_of_all(folder, tmp_path):
    bodies = [{"prompt": "x" * 40}, {"prompt": "hello", "max_tokens": 10**6}]
    lines = [
        json.dumps({"custom_id": str(i), "url": "/v1/completions", "body": body})
        for i, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out.jsonl"
    job = [f"--model={folder}", f"--input={tmp_path}/in.jsonl", f"--output={output}"]
    code, _, err = run(folder, "batch_infer", *job)
    assert code == 1, err
    long, much = (row["response"]["body"]["error"]["message"] for row in rows_of(output))
    assert "40 tokens, but the context" in long
    assert "'max_tokens' is 1000000, far more than other rows want" in much
    assert "ask for 4096 or fewer, or give --context" in much


def test_a_folder_answers_a_prompt(tmp_path):
    folder = language_folder.write(tmp_path / "mamba", "mamba")
    code, out, err = run(
        folder, "generate", f"--model={folder}", "--prompt=hello", "--max_tokens=3", "--check"
    )
    assert code == 0, err
    assert "tokens against the uncut model: equal at all" in out


MODULE = """
import jax
from flax import nnx
from gimlax.models import from_nnx

class Scorer(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(4)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x

def make():
    return from_nnx(Scorer(nnx.Rngs(0)))
"""


def test_any_function_is_applied_to_rows_of_arrays(tmp_path, monkeypatch):
    (tmp_path / "scoring.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    apply, params = importlib.import_module("scoring").make()
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    rows[6, 0] = np.nan
    expected = np.asarray(jax.jit(apply)(params, rows))
    bad = ["[1, 2]", *map(json.dumps, rows.tolist())]
    (tmp_path / "in.jsonl").write_text("\n".join(bad[1:4] + bad[:1] + bad[4:]))
    flags = ["--fn=scoring:make", "--batch=3", "--stages=2", "--meshes=cpu,cpu"]
    output = tmp_path / "out.jsonl"
    job = [f"--input={tmp_path}/in.jsonl", f"--output={output}", *flags]
    code, _, err = run(tmp_path, "batch_apply", *job)
    assert code == 1, err
    found = rows_of(output)
    assert found.pop(3) == {"index": 3, "error": "its shape is {row: (2,)}, not {row: (3,)}"}
    assert found[6]["output"] == [None] * 3
    np.testing.assert_allclose([row["output"] for row in found[:6]], expected[:6], atol=2e-6)

    np.save(tmp_path / "in.npy", rows)
    job = [f"--input={tmp_path}/in.npy", f"--output={tmp_path}/out.npy", *flags]
    code, _, err = run(tmp_path, "batch_apply", *job)
    assert code == 0, err
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)
