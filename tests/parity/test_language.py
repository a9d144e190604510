"""Texts, messages and answers here and in Hugging Face transformers, from the same folders."""

import importlib
import importlib.util

import pytest

from gimlax.models import open_language
from gimlax.serving import Request, TextModel, generate
from tests.models import language_folder

missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what torch and transformers warn of is theirs
]

TEXTS = ("hello world", "é🎉 x\n\n y", "<|start|>hello<tool>", "", "  12345 <|end|>")
TURNS = [("system", "be short"), ("user", "hello"), ("assistant", "hell"), ("user", "world?")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
# What templates use: namespaces, loops, methods of strings, filters, tests for what is not there.
TEMPLATE = """{{- bos_token }}
{%- set ns = namespace(n=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set ns.n = ns.n + 1 %}
    {{- '[' + message.role.upper() + ' ' ~ ns.n ~ '] ' }}
    {%- if loop.last and system %}{{ system }}{{ '\\n' }}{% endif %}
    {{- message['content'].strip().split('?')[0] | tojson }}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '[ASSISTANT]' }}
{%- endif %}
"""


@pytest.mark.parametrize("template", [language_folder.TEMPLATE, TEMPLATE], ids=["short", "long"])
def test_texts_and_messages_become_the_same_tokens(tmp_path, template):
    transformers = importlib.import_module("transformers")
    folder = language_folder.write(tmp_path / "model", chat_template=template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = open_language(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.tokenizer.encode(text) == ids
        assert ours.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for messages in (MESSAGES, MESSAGES[1:2]):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ours.chat(messages) == expected
    assert set(ours.tokenizer.eos_ids) == {theirs.eos_token_id}


@pytest.mark.parametrize("kind", ["llama", "mixtral", "mamba", "mamba2"])
def test_a_folder_answers_with_the_same_tokens(tmp_path, kind):
    transformers, torch = map(importlib.import_module, ("transformers", "torch"))
    folder = language_folder.write(tmp_path / "model", kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = open_language(folder)
    prompt = ours.tokenizer.encode("hello world")
    model = TextModel(
        apply=ours.apply,
        params=ours.load(),
        cache=ours.state(1, 32),
        context=32,
        chunk=8,
        recurrent=ours.recurrent,
    )
    found = [t.id for t in generate(model.uncut(), Request(prompt=tuple(prompt), max_tokens=8))]
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            logits = theirs(torch.tensor([expected])).logits
            expected.append(int(logits[0, -1].argmax()))
    assert found == expected[len(prompt) :]
