"""What the port `Engine` promises of how prompts become tokens."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.domain.chats import Tokenization
from sae_actor.engine import TorchEngine
from sae_actor.errors import BadRequestError
from tests.engine.conftest import Given
from tests.engine.tiny import CHAT_TEMPLATE, CONTEXT, VOCABULARY

pytestmark = pytest.mark.anyio

NOTHING_ADDED = Tokenization(add_special_tokens=False)
BEGUN = Tokenization(prepend_bos=True)
NOT_BEGUN = Tokenization(prepend_bos=False)
AS_TEXT = Tokenization(parse_special=False)


async def test_a_prompt_that_spells_a_control_token_means_it(given: Given) -> None:
    read = await given.engine.tokenize(f"a{given.control}b")
    assert (len(read.token_ids), read.token_ids[1], read.special) == (3, 256, (False, True, False))
    text = await given.engine.tokenize(f"a{given.control}b", AS_TEXT)
    assert len(text.token_ids) == 2 + len(given.control)
    assert not any(text.special)
    assert "".join(text.tokens) == f"a{given.control}b"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
async def test_what_a_message_says_is_text(given: Given, role: str) -> None:
    content = f"hi{given.control}\n{given.control}you"
    chat = await given.engine.tokenize([{"role": role, "content": content}, {"role": "user", "content": "?"}])
    assert chat.turns is not None
    said = slice(*chat.turns[0].content)
    assert "".join(chat.tokens[said]) == content
    assert not any(chat.special[said])
    assert 256 not in chat.token_ids
    assert chat.token_ids[said] == (await given.engine.tokenize(content, AS_TEXT)).token_ids


async def test_a_beginning_is_put_where_it_is_asked_for(given: Given) -> None:
    plain = (await given.engine.tokenize("hi")).token_ids
    assert (await given.engine.tokenize("hi", BEGUN)).token_ids == (256, *plain)
    assert (await given.engine.tokenize(f"{given.control}hi", BEGUN)).token_ids == (256, *plain), "no second one"
    assert (await given.engine.tokenize(f"{given.control}hi", NOT_BEGUN)).token_ids == (256, *plain), "it was said"
    for how in (NOT_BEGUN, NOTHING_ADDED):
        assert (await given.engine.tokenize("hi", how)).token_ids == plain
    assert (await given.engine.tokenize("", BEGUN)).token_ids == (256,)
    for how in (NOT_BEGUN, NOTHING_ADDED, AS_TEXT):
        with pytest.raises(BadRequestError):
            await given.engine.tokenize("", how)


async def test_a_chat_that_is_begun_has_its_turns_behind_that(given: Given) -> None:
    messages = [{"role": "user", "content": "hi"}]
    plain, begun = await given.engine.tokenize(messages), await given.engine.tokenize(messages, BEGUN)
    assert begun.token_ids == (256, *plain.token_ids)
    assert plain.turns is not None
    assert begun.turns is not None
    assert [(turn.first, turn.stop, turn.content) for turn in begun.turns] == [
        (turn.first + 1, turn.stop + 1, (turn.content[0] + 1, turn.content[1] + 1)) for turn in plain.turns
    ]
    assert (await given.engine.tokenize(messages, NOT_BEGUN)) == plain


async def test_token_ids_are_taken_as_they_are(given: Given) -> None:
    for how in (NOTHING_ADDED, Tokenization(add_special_tokens=True), AS_TEXT):
        assert (await given.engine.tokenize([5, 256], how)).token_ids == (5, 256)
    for how in (BEGUN, NOT_BEGUN):
        with pytest.raises(BadRequestError) as refused:
            await given.engine.tokenize([5], how)
        assert refused.value.fields["param"] == "prepend_bos"


async def told(given: Given, messages: list[dict[str, str]], **how: Any) -> str:
    return "".join((await given.engine.tokenize(messages, Tokenization(**how))).tokens)


async def test_the_last_message_is_continued(given: Given) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, I"}]
    opened, closed = await told(given, messages), await told(given, messages, add_generation_prompt=False)
    assert opened.startswith(closed)
    assert len(opened) > len(closed)
    continued = await given.engine.tokenize(messages, Tokenization(continue_final_message=True))
    text = "".join(continued.tokens)
    assert text.endswith("Sure, I")
    assert closed.removeprefix(text) == "\n"
    assert continued.turns is not None
    assert [turn.role for turn in continued.turns] == ["user", "assistant"]
    last = continued.turns[-1]
    assert "".join(continued.tokens[slice(*last.content)]) == "Sure, I"
    assert (last.content[1], last.stop) == (len(continued.token_ids),) * 2


async def test_variables_of_the_template(given: Given) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    plain = await told(given, messages)
    assert await told(given, messages, chat_template_kwargs={"mood": "kind"}) == f"{plain}(kind)"
    assert await told(given, messages, chat_template_kwargs={"nobody_reads_it": 1}) == plain
    with pytest.raises(BadRequestError) as refused:
        await told(given, messages, reasoning_effort="low")
    assert refused.value.fields["param"] == "reasoning_effort"


# — to count, and back —


async def test_a_prompt_of_any_length_is_counted(given: Given) -> None:
    for text in ("", "hi", "x" * 5000):
        found = await given.engine.tokenize(text, any_length=True)
        assert len(found.token_ids) == len(text)
        assert await given.engine.detokenize(found.token_ids) == text
    with pytest.raises(BadRequestError):
        await given.engine.tokenize("x" * 5000)
    short = await given.engine.tokenize("hi", any_length=True)
    assert short == await given.engine.tokenize("hi")
    chat = [{"role": "user", "content": "y" * 3000}]
    assert len((await given.engine.tokenize(chat, any_length=True)).token_ids) > 3000


async def test_tokens_as_text(given: Given) -> None:
    ids = (await given.engine.tokenize(f"Hé{given.control}")).token_ids
    assert await given.engine.detokenize(ids) == f"Hé{given.control}"
    for wrong in (-1, 10**6):
        with pytest.raises(BadRequestError):
            await given.engine.detokenize([wrong])


async def test_what_is_known_of_the_tokenizer(given: Given) -> None:
    found = await given.engine.tokenizer_info()
    assert (found.bos_token, found.eos_token, found.pad_token) == (given.control, given.control, None)
    assert found.add_bos_token is False
    assert found.chat_template is not None
    assert found.model_max_length == (CONTEXT if isinstance(given.engine, TorchEngine) else 256)
    if isinstance(given.engine, TorchEngine):
        assert found.chat_template == CHAT_TEMPLATE
        assert found.additional_special_tokens == ("<|user|>", "<|assistant|>", "<|system|>")
        assert found.vocab_size == VOCABULARY
