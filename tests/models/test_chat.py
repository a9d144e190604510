"""Chat templates: one that works, and each way in which one may not."""

import pytest

from gimlax.errors import SpecError
from gimlax.models import ChatTemplate, load_chat_template
from tests.models.gguf_files import file_bytes, tokenizer_fields

HELLO = [{"role": "user", "content": "hello"}]


def template(source):
    return ChatTemplate(source=source, origin="'a test'", bos_token="<s>")


@pytest.fixture(name="load")
def load_fixture(tmp_path):
    def load(**changes):
        path = tmp_path / "model.gguf"
        path.write_bytes(file_bytes(tokenizer_fields(**changes)))
        return load_chat_template(path)

    return load


def test_the_template_of_a_file_is_rendered(load):
    chat = load()
    turn = "<|start|>user\nhello<|end|>\n"
    assert chat.render(HELLO) == turn + "<|start|>assistant\n"
    assert chat.render(HELLO * 2, add_generation_prompt=False) == turn * 2
    assert (chat.bos_token, chat.eos_token) == ("<|start|>", "<|end|>")


def test_a_file_without_template_is_named(load):
    with pytest.raises(SpecError, match=r"model.gguf' has no chat template"):
        load(template=None)


def test_blocks_take_no_lines_of_their_own():
    source = (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if true %}\nx\n{% endif %}\n{% endfor %}"
    )
    assert template(source).render(HELLO) == "<s>\nx\n"


def test_the_methods_of_python_strings_work():
    assert template("{{ messages[0].content.strip('h').upper() }}").render(HELLO) == "ELLO"


BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "text": "{{ 'x' * 1000000000 }}",
    "doubling": "{% set ns = namespace(x='xx') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_grows_without_end_is_stopped(bomb):
    with pytest.raises(SpecError, match=r"'a test' did not end within .* steps"):
        template(BOMBS[bomb]).render(HELLO)


def test_a_template_that_calls_itself_is_stopped():
    source = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"
    with pytest.raises(SpecError, match=r"'a test'.*recursion limit"):
        template(source).render(HELLO)


def test_long_messages_and_many_are_no_bomb(load):
    text = "word " * 200_000
    assert text in load().render([{"role": "user", "content": text}])
    assert load().render(HELLO * 20_000).count("hello") == 20_000


def test_faults_of_a_template_are_named():
    with pytest.raises(SpecError, match=r"'a test'.*syntax error.*chat_template:1"):
        template("{% for %}").render(HELLO)
    with pytest.raises(SpecError, match=r"'a test'.*unknown function"):
        template("{{ nothing() }}").render(HELLO)


def test_a_template_may_turn_messages_down():
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SpecError, match=r"turns these messages down: roles must alternate"):
        template(source).render(HELLO)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ([*HELLO, {"role": "user"}], "message 1: 'content' is None"),
        ([{"role": 3, "content": "x"}], "message 0: 'role' is 3"),
    ],
)
def test_messages_of_another_form_are_refused(messages, words):
    with pytest.raises(SpecError, match=words):
        template("x").render(messages)
