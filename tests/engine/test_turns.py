"""Turns of a chat, on templates of the shapes that models come with; texts steered by role equal those of a hook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import Edit, Span, Turn
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.turns import MOST_MESSAGES, turns_of
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, finished, load, no_progress, request
from tests.engine.tiny import tiny_model, tiny_tokenizer

OWN_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<system>Be good</>{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMED = (
    "[bos]{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles alternate') }}{% endif %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
)
LAST_APART = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if loop.last else m['content'].upper() }}{% endfor %}"
)
SWALLOWED = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
)


def told(template: str, messages: list[dict[str, str]]) -> tuple[list[str], list[str]] | None:
    """The turns' texts, and what is said in each."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template

    def render(some: Sequence[dict[str, str]], opened: bool = False) -> str:
        text: str = tokenizer.apply_chat_template(list(some), tokenize=False, add_generation_prompt=opened)
        return text

    text = render(messages, True)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    turns = turns_of(messages, text, encoded.offset_mapping, render)
    if turns is None:
        return None
    decode = tokenizer.decode
    return (
        [decode(encoded.input_ids[turn.first : turn.stop]) for turn in turns],
        [decode(encoded.input_ids[slice(*turn.content)]) for turn in turns],
    )


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": each} for n, each in enumerate(contents)]


def test_a_system_message_of_the_templates_own_is_nobodys() -> None:
    assert told(OWN_SYSTEM, said("hé", "user")) == (["<user>hé</>", "<assistant>user</>"], ["hé", "user"])
    own = [{"role": "system", "content": "S"}, *said("a")]
    assert told(OWN_SYSTEM, own) == (["<system>S</>", "<user>a</>"], ["S", "a"])


def test_blanks_around_a_content_may_go() -> None:
    assert told(TRIMMED, said("  user ", "", "c")) == (
        ["<user>user\n", "<assistant>\n", "<user>c\n"],
        ["user", "", "c"],
    )


@pytest.mark.parametrize("template", [LAST_APART, SWALLOWED])
def test_templates_that_do_not_tell(template: str) -> None:
    assert told(template, [{"role": "system", "content": "s"}, *said("a", "b")]) is None


def test_very_long_chats_are_not_told() -> None:
    assert told(OWN_SYSTEM, said(*["a"] * (MOST_MESSAGES + 1))) is None


@pytest.mark.anyio
@pytest.mark.parametrize("exclude", [(), ("template",), ("special",)])
async def test_a_text_steered_by_role(tiny_llama: Path, tiny_sae: Path, exclude: Any) -> None:
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await engine.attach(attach(5), str(tiny_sae))
    chat = await engine.tokenize([{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}])
    # "<|system|>", 7 letters, newline; "<|user|>", 5 letters, newline; "<|assistant|>"
    assert chat.turns == (
        Turn(role="system", first=0, stop=9, content=(1, 8)),
        Turn(role="user", first=9, stop=16, content=(10, 15)),
    )
    edit = Edit(feature=3, strength=40.0, positions=Span(role="user"), exclude=exclude)
    end = await finished(engine, request(chat.token_ids, active(5, edit), turns=chat.turns, tokens=12))
    covered = {(): range(9, 16), ("template",): range(10, 15), ("special",): range(10, 16)}[exclude]
    assert end.edited == ((covered.start, covered.stop),)
    assert end.receipt.tokens_excluded == 7 - len(covered)
    row = load_sae(tiny_sae).W_dec[3]
    reference: Any = tiny_model("llama")

    def hook(_: Any, __: Any, out: Any) -> Any:
        x = out if isinstance(out, Tensor) else out[0]
        if x.shape[1] > 1:
            x = x.clone()
            x[:, covered] += 40.0 * row
        return x if isinstance(out, Tensor) else (x, *out[1:])

    reference.model.layers[1].register_forward_hook(hook)
    fed = torch.tensor([chat.token_ids])
    out = reference.generate(
        fed, attention_mask=torch.ones_like(fed), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert end.token_ids == tuple(out[0, len(chat.token_ids) :].tolist())
    await engine.close()
