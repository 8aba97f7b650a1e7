"""Turns of a chat, on templates of the shapes that models come with; texts steered by role equal those of a hook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.chats import MessageSpan
from sae_actor.domain.refs import Edit, Span
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.tokens.chat_spans import tells, turns_of
from sae_actor.engine.tokens.chat_templates import ChatTemplate
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
SPELLED = "{% for m in messages %}{% for each in m['content'].encode() %}{{ each }},{% endfor %}{% endfor %}"
MEASURED = "{% for m in messages %}{{ ('' ~ m['content']) | length }}:{{ m['content'] }}\n{% endfor %}"


def read(
    template: str, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
) -> list[tuple[str, str, list[str]]] | None:
    """The turns: role, text, and the pieces of what is said."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|end|>"], special_tokens=True)
    chats = ChatTemplate(tokenizer, tools)
    rendering = chats.rendered(messages, opened=True)
    encoded = tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)
    turns = turns_of(messages, rendering, encoded.offset_mapping, chats)
    if turns is None:
        return None
    ids, decode = encoded.input_ids, tokenizer.decode
    return [
        (turn.role, decode(ids[turn.first : turn.stop]), [decode(ids[first:stop]) for first, stop in turn.said])
        for turn in turns
    ]


def told(template: str, messages: list[dict[str, str]]) -> tuple[list[str], list[str]] | None:
    """The turns' texts, and what is said in each."""
    turns = read(template, messages)
    return None if turns is None else ([text for _, text, _ in turns], ["".join(each) for _, _, each in turns])


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


def test_what_is_said_may_be_changed() -> None:
    assert told(LAST_APART, said("a", "b")) == (["<user>A", "<assistant>b"], ["A", "b"])


def test_a_message_that_is_left_out_has_no_turn() -> None:
    chat = [{"role": "system", "content": "s"}, *said("a", "b")]
    assert told(SWALLOWED, chat) == (["<user>a", "<assistant>b"], ["a", "b"])


@pytest.mark.parametrize("template", [SPELLED, MEASURED])
def test_templates_that_do_not_tell(template: str) -> None:
    assert told(template, said("a", "b")) is None
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert not tells(ChatTemplate(tokenizer))


def test_a_long_chat_is_one_rendering_and_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    text = ChatTemplate.text

    def counting(self: ChatTemplate, messages: Sequence[Any], **more: Any) -> str:
        counted.append(len(messages))
        return text(self, messages, **more)

    monkeypatch.setattr(ChatTemplate, "text", counting)
    turns = told(OWN_SYSTEM, said(*["a"] * 301))
    assert turns is not None
    assert [len(each) for each in turns] == [301, 301]
    assert len([each for each in counted if each > 3]) <= 2


@pytest.mark.anyio
@pytest.mark.parametrize("exclude", [(), ("template",), ("special",)])
async def test_a_text_steered_by_role(tiny_llama: Path, tiny_sae: Path, exclude: Any) -> None:
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await engine.attach(attach(5), str(tiny_sae))
    chat = await engine.tokenize([{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}])
    # "<|system|>", 7 letters, newline; "<|user|>", 5 letters, newline; "<|assistant|>"
    assert chat.turns == (
        MessageSpan(role="system", first=0, stop=9, content=(1, 8)),
        MessageSpan(role="user", first=9, stop=16, content=(10, 15)),
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
