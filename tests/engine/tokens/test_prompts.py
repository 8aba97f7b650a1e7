"""Prompts of the tiny llama, beyond what the contract suite asks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sae_actor.engine.model.loading import LoadedModel
from sae_actor.engine.tokens import prompts
from sae_actor.engine.tokens.prompts import tokenized
from sae_actor.errors import BadRequestError
from tests.engine.damage import loaded
from tests.engine.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LoadedModel:
    return loaded(tiny_llama)


def test_a_chat_is_what_the_template_writes(model: LoadedModel) -> None:
    chat = tokenized([{"role": "user", "content": "hi"}], model.tokenizer)
    assert "".join(chat.tokens) == "<|user|>hi\n<|assistant|>"
    assert list(chat.token_ids) == model.tokenizer.raw("<|user|>hi\n<|assistant|>").input_ids
    assert chat.tokens[0] == "<|user|>"


def test_ids_in_every_order_have_a_text(model: LoadedModel) -> None:
    half = tokenized("é", model.tokenizer).token_ids[:1]
    assert tokenized(half, model.tokenizer).tokens == ("\ufffd",)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("half \ud800 pair", "surrogate"),
        ([{"role": "user", "content": "half \udfff pair"}], "surrogate"),
        ([{"role": "wizard", "content": "x"}], "only user, assistant and system speak"),
        ([{"role": "user"}, 5], "text, messages or token ids"),
        ([True, False], "text, messages or token ids"),
        ([1.0], "text, messages or token ids"),
        ("x" * 129, "129 tokens, the model's context 128"),
    ],
)
def test_refusals(model: LoadedModel, prompt: Any, says: str) -> None:
    with pytest.raises(BadRequestError, match=says):
        tokenized(prompt, model.tokenizer)


def test_a_model_without_a_template_has_no_chats(tmp_path: Path) -> None:
    model = loaded(save_tiny_model(tmp_path, chat=False))
    assert not model.facts.has_chat_template
    with pytest.raises(BadRequestError, match="no chat template"):
        tokenized([{"role": "user", "content": "hi"}], model.tokenizer)


@pytest.mark.parametrize(
    "prompt",
    [
        "a " * 2_000_000,
        "x" * 4_000_000,
        "\U0001f9ff" * 1_000_000,
        " " * 10_000 + "a " * 2_000_000,
        [{"role": "user", "content": "hi " * 1300}] * 1000,
    ],
    ids=["words", "one word", "signs", "spaces first", "a chat"],
)
def test_far_too_long_a_prompt_is_refused_by_its_beginning(
    model: LoadedModel, prompt: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole one takes seconds; the refusal says how much of it was read."""
    with pytest.raises(BadRequestError, match="the model's context 128") as refused:
        tokenized(prompt, model.tokenizer)
    told = re.search(r"the first (\d+) characters", str(refused.value))
    assert told is not None
    assert int(told[1]) <= 32_768
    assert capfd.readouterr().err == "", "the tokenizer has warnings of its own"


def test_a_prompt_of_few_long_tokens_is_no_long_prompt(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CHARACTERS_A_TOKEN", 1)
    text = "<|end|>" * 100
    assert tokenized(text, model.tokenizer).token_ids == (256,) * 100
    with pytest.raises(BadRequestError, match="has 200 tokens"):
        tokenized(2 * text, model.tokenizer)
