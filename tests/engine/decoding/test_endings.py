"""How texts of real tokenizers end, and what of them is shown: the model is made to say what a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_actor.domain.chats import Reasoning
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import BadRequestError
from sae_actor.ports import Finished, Token
from tests.engine.asking import finished, load, no_progress, read, request
from tests.engine.decoding.test_generation import IDS
from tests.engine.thinking import (
    HARMONY,
    HARMONY_TEMPLATE,
    PLAIN,
    PLAIN_TEMPLATE,
    QWEN,
    QWEN_TEMPLATE,
    R1,
    R1_TEMPLATE,
    save,
)
from tests.engine.tiny import END

pytestmark = pytest.mark.anyio

CHAT: Any = [{"role": "user", "content": "What does <think> mean?"}]
CHANNELS = Reasoning(format="channels")
BLOCK = Reasoning(format="block", begin="<think>", end="</think>")

Speak = Callable[..., AbstractAsyncContextManager["Speaker"]]


class Speaker:
    """An engine whose model says one text after the other, whatever it is asked."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        assert engine._model is not None
        self.model = engine._model
        self._script: list[int] = []
        self._said = 0
        self.model.network.get_output_embeddings().register_forward_hook(self._say)

    def _say(self, _: object, __: object, out: torch.Tensor) -> torch.Tensor:
        wanted = self._script[self._said] if self._said < len(self._script) else END
        self._said += 1
        return torch.zeros_like(out).index_fill(-1, torch.tensor([wanted]), 50.0)

    def ids(self, text: str) -> tuple[int, ...]:
        found: list[int] = self.model.tokenizer.raw(text, add_special_tokens=False).input_ids
        return tuple(found)

    async def says(self, text: str, **asked: Any) -> tuple[list[Token], Finished]:
        """A chat's answer, and behind it the end token again and again."""
        prompt = await self.engine.tokenize(CHAT)
        reasoning = asked.pop("reasoning", prompt.reasoning)
        self._script, self._said = list(self.ids(text)), 0
        return await read(
            self.engine.generate(request(prompt.token_ids, **{"tokens": 200, "reasoning": reasoning, **asked}))
        )


@pytest.fixture
def speak(tmp_path: Path) -> Speak:
    @asynccontextmanager
    async def spoken(*how: Any, **config: Any) -> AsyncIterator[Speaker]:
        engine = TorchEngine(EngineSettings(threads=1))
        folder = save(tmp_path / "model", *how, max_position_embeddings=1024, **config)
        await engine.load_model(load(str(folder)), no_progress)
        yield Speaker(engine)
        await engine.close()

    return spoken


def parts(tokens: list[Token]) -> tuple[str, str]:
    return "".join(token.reasoning for token in tokens), "".join(token.content for token in tokens)


# — what ends a text —


async def test_a_special_token_as_a_stop_string(speak: Speak) -> None:
    """The model's end token is another one: without the stop string it goes on with turns of its own."""
    invented = "Hello!!<|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>\n<|im_start|>assistant\nFine."
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        _, bare = await speaker.says(invented)
        assert (bare.reason, bare.text) == ("stop", "Hello!!\nuser\nAnd you?\nassistant\nFine.")
        for stop, text, count in (
            ("<|im_end|>", "Hello!!", 8),
            ("!<|im_end|>\n", "Hello!", 9),
            ("\n<|im_start|>user", "Hello!!", 14),
            ("!!\nuser", "Hello", 14),
        ):
            tokens, end = await speaker.says(invented, stop=(stop,))
            assert (end.reason, end.text, len(end.token_ids)) == ("stop", text, count), stop
            assert "".join(token.text for token in tokens) == text
        for none in ("im_end", "<|im_", "|>\n"):
            assert (await speaker.says(invented, stop=(none,)))[1].text == bare.text
        _, before = await speaker.says(invented, stop=("<|im_end|>",), stop_in_hidden=False)
        assert before.token_ids == bare.token_ids, "as logs of before have it"
        _, end = await speaker.says("Hi<|im_end|>", stop=("Hi<|endoftext|>", "i<|im_end|><|endoftext|>"))
        assert (end.reason, end.text) == ("stop", "H")


async def test_special_tokens_in_the_text(speak: Speak) -> None:
    said = "Hé<|im_end|>\n<|im_start|>ü"
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        tokens, end = await speaker.says(said, skip_special_tokens=False, logprobs=0)
        assert end.text == "".join(token.text for token in tokens) == said
        assert [token.text for token in tokens] == ["H", "", "é", "<|im_end|>", "\n", "<|im_start|>", "", "ü", ""]
        _, end = await speaker.says(said, skip_special_tokens=False, stop=("end|>\n",))
        assert end.text == "Hé<|im_"
        _, end = await speaker.says(said, skip_special_tokens=False, include_stop_str_in_output=True)
        assert end.text == said + "<|endoftext|>"
        for stop, text in (("<|im_end|>", "Hé<|im_end|>"), ("é", "Hé")):
            assert (await speaker.says(said, stop=(stop,), include_stop_str_in_output=True))[1].text == text
        assert (await speaker.says(said, include_stop_str_in_output=True))[1].text == "Hé\nü"


async def test_stop_tokens(speak: Speak) -> None:
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        special, letter = speaker.ids("<|im_end|>")[0], speaker.ids("o")[0]
        for ids, text, count in (((special,), "Hello you", 10), ((special, letter), "Hell", 5)):
            tokens, end = await speaker.says("Hello you<|im_end|>\nand", stop_token_ids=ids)
            assert (end.reason, end.text, len(end.token_ids)) == ("stop", text, count)
            assert end.token_ids[-1] == tokens[-1].id == ids[-1]
        _, end = await speaker.says("Hello", stop_token_ids=(letter,), include_stop_str_in_output=True)
        assert end.text == "Hello"
        for wrong in (-1, 259):
            with pytest.raises(BadRequestError) as caught:
                await speaker.says("Hello", stop_token_ids=(wrong,))
            assert caught.value.fields["param"] == "stop_token_ids"
        with pytest.raises(BadRequestError):
            await speaker.says("Hello", stop_token_ids=tuple(range(259)), min_tokens=1)


async def test_end_tokens_that_are_ignored(speak: Speak) -> None:
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        _, end = await speaker.says("Hi<|endoftext|> you", tokens=9, ignore_eos=True)
        assert (end.reason, end.text, end.token_ids.count(END)) == ("length", "Hi you", 3)
        _, end = await speaker.says("Hi<|endoftext|> you", tokens=7, ignore_eos=True, skip_special_tokens=False)
        assert (end.reason, end.text) == ("length", "Hi<|endoftext|> you")
        _, end = await speaker.says("Hi<|endoftext|> you", ignore_eos=True, stop=("<|endoftext|>",))
        assert (end.reason, end.text) == ("stop", "Hi")
        _, end = await speaker.says("Hi<|endoftext|> you", ignore_eos=True, stop_token_ids=(END,))
        assert (end.reason, end.text) == ("stop", "Hi")


async def test_no_end_before_so_many_tokens(speak: Speak) -> None:
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        assert speaker.model.facts.end_ids == (END,)
        assert speaker.model.facts.vocabulary == 259
        for temperature in (0.0, 1.0):
            _, end = await speaker.says("Hi", min_tokens=6, temperature=temperature)
            assert (end.reason, len(end.token_ids)) == ("stop", 7)
            assert END not in end.token_ids[:6]
        # The best of the others, as if the end token were not there: id 0 of equals.
        _, end = await speaker.says("Hi", min_tokens=4)
        assert end.token_ids == (*speaker.ids("Hi"), 0, 0, END)
        _, end = await speaker.says("Hi", min_tokens=4, ignore_eos=True, tokens=6)
        assert end.token_ids == (*speaker.ids("Hi"), 0, 0, END, END)
        letter = speaker.ids("o")[0]
        _, end = await speaker.says("Hello, so", min_tokens=5, stop_token_ids=(letter,))
        assert (end.token_ids[4], end.token_ids[-1], len(end.token_ids)) == (0, letter, 9)
        for stop, text in ((("ll",), "Hello, he"), (("o, ",), "Hell")):
            _, end = await speaker.says("Hello, hello", min_tokens=5, stop=stop)
            assert (end.reason, end.text) == ("stop", text)
        tokens, _ = await speaker.says("Hi", min_tokens=4, logprobs=1)
        assert tokens[2].top[0].id == END, "log probabilities are those of the model"
        assert tokens[2].scored is not None
        assert tokens[2].scored.logprob < -10


async def test_min_tokens_beside_other_texts_holds_for_its_own(engine: TorchEngine) -> None:
    assert engine._model is not None
    whole = await finished(engine, request(IDS, tokens=20))
    last = whole.token_ids[3]
    engine._model.tokenizer.end_ids = frozenset({last})
    streams = [engine.generate(request(IDS, tokens=20, min_tokens=n)) for n in (0, 12)]
    (_, first), (_, second) = [await read(stream) for stream in streams]
    assert first.token_ids == whole.token_ids[: whole.token_ids.index(last) + 1]
    assert last not in second.token_ids[:12]


# — thoughts —

HELLO = (
    "<|channel|>analysis<|message|>The user gréets.<|end|><|start|>assistant<|channel|>final<|message|>Hello there!"
    "<|return|>"
)


async def test_channels(speak: Speak) -> None:
    async with speak(HARMONY, HARMONY_TEMPLATE, model_type="gpt_oss") as speaker:
        assert (await speaker.engine.tokenize(CHAT)).reasoning == CHANNELS
        assert (await speaker.engine.tokenize("Hello")).reasoning is None
        tokens, end = await speaker.says(HELLO, logprobs=0)
        assert parts(tokens) == ("The user gréets.", "Hello there!")
        assert end.text == "".join(token.text for token in tokens) == HELLO.removesuffix("<|return|>")
        assert (end.reason, end.token_ids) == ("stop", speaker.ids(HELLO))
        assert [token.scored.text for token in tokens if token.scored][:3] == ["<|channel|>", "a", "n"]
        assert end.reasoning_tokens == len(speaker.ids(HELLO.partition("<|start|>")[0]))
        assert parts((await speaker.says(HELLO, skip_special_tokens=False))[0]) == parts(tokens)
        tokens, _ = await speaker.says(HELLO, reasoning=None)
        assert "".join(token.text for token in tokens) == "analysisThe user gréets.assistantfinalHello there!"
        assert parts(tokens) == ("", "")


@pytest.mark.parametrize(
    ("stop", "thought", "said"),
    [
        ("there", "The user gréets.", "Hello "),
        ("gr", "The user ", ""),
        ("<|end|>", "The user gréets.", ""),
        (".<|end|>", "The user gréets", ""),
        ("<|channel|>final", "The user gréets.", ""),
        ("final", "The user gréets.", "Hello there!"),
        ("end", "The user gréets.", "Hello there!"),
        (".Hello", "The user gréets.", "Hello there!"),
    ],
)
async def test_stop_strings_in_channels(speak: Speak, stop: str, thought: str, said: str) -> None:
    async with speak(HARMONY, HARMONY_TEMPLATE, model_type="gpt_oss") as speaker:
        tokens, end = await speaker.says(HELLO, stop=(stop,))
        assert (parts(tokens), end.reason) == ((thought, said), "stop")
        assert "".join(token.text for token in tokens) == end.text


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["bytes", "tokens"])
async def test_blocks(speak: Speak, added: tuple[str, ...]) -> None:
    async with speak(QWEN, QWEN_TEMPLATE, added) as speaker:
        assert (await speaker.engine.tokenize(CHAT)).reasoning == BLOCK
        said = "<think>\nHm.\n</think>\n\nHello."
        tokens, end = await speaker.says(said)
        assert (parts(tokens), end.text) == (("Hm.", "Hello."), said)
        before = speaker.ids(said.partition("\n\n")[0])
        assert end.reasoning_tokens == len(before)
        tokens, _ = await speaker.says("Hello </think>.")
        assert parts(tokens) == ("", "Hello </think>.")
        tokens, end = await speaker.says(said, stop=("</think>",))
        assert (parts(tokens), end.reason) == (("Hm.", ""), "stop")
        tokens, end = await speaker.says(said, stop=("\n\n",))
        assert parts(tokens) == ("Hm.", "Hello."), "line ends between the two belong to the mark"
        tokens, end = await speaker.says(said, tokens=len(before) - 1)
        assert parts(tokens)[0].startswith("Hm.")
        assert (parts(tokens)[1], end.reason) == ("", "length")


async def test_a_block_that_the_prompt_opened(speak: Speak) -> None:
    async with speak(R1, R1_TEMPLATE) as speaker:
        tokens, end = await speaker.says("Hm.\n</think>\n\nHello.", logprobs=0)
        assert (parts(tokens), end.text) == (("Hm.", "Hello."), "Hm.\n</think>\n\nHello.")
        sent = ["".join(token.reasoning for token in tokens[: n + 1]) for n in range(len(tokens))]
        assert all("Hm.".startswith(each) for each in sent), "no mark is begun"
        assert "".join(token.scored.text for token in tokens if token.scored) == end.text + "<|stop|>"


async def test_a_template_without_thoughts(speak: Speak) -> None:
    async with speak(PLAIN, PLAIN_TEMPLATE) as speaker:
        assert (await speaker.engine.tokenize(CHAT)).reasoning is None
        _, end = await speaker.says("<think>Hm.</think>Hello.")
        assert end.text == "<think>Hm.</think>Hello."
