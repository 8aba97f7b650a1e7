"""What ends a text over `/v1`, what of it is shown, and thoughts apart from what is said; streamed and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest

import sae_actor.engine.tokens.answers  # noqa: F401 - the fake engine imports it, and torch, where a client would wait
from sae_actor.cli.render.explanation import explanation
from sae_actor.domain.chats import Reasoning
from tests.fakes.engine import FakeEngine

from .conftest import Running, serving
from .text.test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio

PATHS = ("/v1/completions", "/v1/chat/completions")
MARKS = ("<|im_end|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
INVENTED = "Hello!!<|im_end|>\n<|start|>user: and?"
ANALYSIS = "<|channel|>analysis<|message|>The user greets."
HARMONY = f"{ANALYSIS}<|end|><|start|>assistant<|channel|>final<|message|>Hello there!"
BLOCK = "<think>\nThe user greets.\n</think>\n\nHello there!"


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with serving(engine=FakeEngine(specials=MARKS), record_text=True) as running:
        await running.ready()
        yield running


def says(service: Running, text: str, reasoning: Reasoning | None = None) -> None:
    service.engine.script, service.engine.reasoning = service.engine.ids(text), reasoning


def asked(path: str, **fields: Any) -> dict[str, Any]:
    return {**(ASK if path == PATHS[0] else CHAT), "max_tokens": 200, **fields}


async def both(service: Running, path: str, **fields: Any) -> dict[str, Any]:
    """The choice unstreamed, with `count` of its tokens; streamed it is the same."""
    body = asked(path, **fields)
    answer = (await service.client.post(path, json=body)).json()
    assert "choices" in answer, answer
    found = await chunks(service, path, {**body, "stream_options": {"include_usage": True}})
    assert found[-1]["usage"] == answer["usage"]
    parts = [each["choices"][0] for each in found if each["choices"]]
    assert parts[-1]["finish_reason"] == answer["choices"][0]["finish_reason"]
    choice: dict[str, Any] = answer["choices"][0]
    if path == PATHS[0]:
        assert "".join(each["text"] for each in parts) == choice["text"]
    else:
        for name in ("content", "reasoning_content"):
            streamed = "".join(each["delta"].get(name, "") for each in parts)
            assert streamed == (choice["message"].get(name) or ""), name
    if choice["logprobs"] is not None and path == PATHS[1]:
        told = [entry for each in parts if each["logprobs"] for entry in each["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]
    return {**choice, "count": answer["usage"]["completion_tokens"], "usage": answer["usage"]}


def text(choice: dict[str, Any]) -> str:
    found: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return found


@pytest.mark.parametrize("path", PATHS)
async def test_stop_strings_of_special_tokens(service: Running, path: str) -> None:
    says(service, INVENTED)
    bare = await both(service, path)
    assert text(bare) == "Hello!!\nuser: and?"
    for stop, wanted, count in (
        ("<|im_end|>", "Hello!!", 8),
        ("!<|im_end|>\n", "Hello!", 9),
        ("\nuser", "Hello!!", 14),
    ):
        choice = await both(service, path, stop=["never", stop])
        assert (text(choice), choice["finish_reason"], choice["count"]) == (wanted, "stop", count), stop
    shown = await both(service, path, stop="<|im_end|>", include_stop_str_in_output=True)
    assert text(shown) == "Hello!!<|im_end|>"
    assert text(await both(service, path, skip_special_tokens=False)) == INVENTED


@pytest.mark.parametrize("path", PATHS)
async def test_stop_tokens_and_end_tokens(service: Running, path: str) -> None:
    says(service, INVENTED)
    stopped = await both(service, path, stop_token_ids=[257, 257, ord("u")])
    assert (text(stopped), stopped["finish_reason"], stopped["count"]) == ("Hello!!", "stop", 8)
    says(service, "Hi<end> you")
    assert (await both(service, path))["count"] == 3
    ignored = await both(service, path, ignore_eos=True, max_tokens=9)
    assert (text(ignored), ignored["finish_reason"], ignored["count"]) == ("Hi you", "length", 9)
    later = await both(service, path, min_tokens=5)
    assert (text(later)[:2], text(later)[3:], later["count"]) == ("Hi", " you", 8)


async def test_they_are_on_record_and_explained(service: Running) -> None:
    says(service, INVENTED)
    fields = {
        "stop": "zzz", "stop_token_ids": [257, 5, 257], "ignore_eos": True, "min_tokens": 3,
        "skip_special_tokens": False, "include_stop_str_in_output": True,
    }  # fmt: skip
    made = (await service.client.post(PATHS[0], json=asked(PATHS[0], **fields))).json()
    started, finished = (await service.events())[-2:]
    recorded = started["data"]["sampling"]
    assert {name: recorded[name] for name in fields} == {**fields, "stop": ["zzz"], "stop_token_ids": [257, 5]}
    assert recorded["stop_in_hidden"] is True
    assert finished["data"]["text"] == made["choices"][0]["text"] == "Hello!!<|im_end|>"
    view = (await service.client.get(f"/api/generations/{made['id']}")).json()
    assert view["sampling"] == recorded
    words = explanation({**view, "log": {"ok": True, "events": 1, "head": {"position": 1, "hash": ""}}})
    for each in ("stop at token 257, 5", "end tokens were ignored", "at least 3 tokens", "stop string is part",
                 "special tokens are part of the text"):  # fmt: skip
        assert each in words
    await service.client.post(PATHS[0], json=ASK)
    neutral = (await service.events())[-2]["data"]["sampling"]
    assert (neutral["stop_token_ids"], neutral["ignore_eos"], neutral["min_tokens"]) == ([], False, 0)
    assert (neutral["skip_special_tokens"], neutral["include_stop_str_in_output"]) == (True, False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [263]}, "stop_token_ids"), ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": 5}, "stop_token_ids"), ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"min_tokens": 201}, "min_tokens"), ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": list(range(263))}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"), ({"skip_special_tokens": "no"}, "skip_special_tokens"),
    ],
)  # fmt: skip
async def test_refused_by_name(service: Running, path: str, fields: dict[str, Any], param: str) -> None:
    before = len(await service.events())
    answer = await service.client.post(path, json=asked(path, **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert len(await service.events()) == before


@pytest.mark.parametrize("path", PATHS)
async def test_neutral_values(service: Running, path: str) -> None:
    says(service, "Hello")
    neutral = {"stop_token_ids": [], "ignore_eos": False, "min_tokens": 0, "skip_special_tokens": True,
               "include_stop_str_in_output": False}  # fmt: skip
    assert text(await both(service, path, **neutral)) == "Hello"
    assert text(await both(service, path, **dict.fromkeys(neutral))) == "Hello"
    if path == PATHS[1]:
        assert text(await both(service, path, include_reasoning=True)) == "Hello"


# — thoughts —

FORMS = [
    pytest.param(Reasoning(format="channels"), HARMONY, id="channels"),
    pytest.param(Reasoning(format="block", begin="<think>", end="</think>"), BLOCK, id="block"),
]


@pytest.mark.parametrize(("form", "said"), FORMS)
async def test_thoughts_of_a_chat(service: Running, form: Reasoning, said: str) -> None:
    says(service, said, form)
    choice = await both(service, PATHS[1], logprobs=True)
    assert choice["message"] == {
        "role": "assistant", "content": "Hello there!", "reasoning_content": "The user greets.",
    }  # fmt: skip
    told = "".join(each["token"] for each in choice["logprobs"]["content"])
    assert told == said + "<end>", "of all tokens, in order"
    finished = (await service.events())[-1]["data"]
    assert finished["text"] == said, "the record keeps the whole text"
    assert service.engine.voice.decode(finished["output_token_ids"], special=True) == said + "<end>"
    thought = len(service.engine.ids(said.partition("<|start|>")[0].partition("\n\n")[0]))
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert choice["count"] == len(service.engine.ids(said)) + 1
    started = (await service.events())[-2]["data"]
    assert started["reasoning"]["format"] == form.format
    view = (await service.client.get(f"/api/generations/{started['generation_id']}")).json()
    assert view["reasoning"] == started["reasoning"]


@pytest.mark.parametrize(("form", "said"), FORMS)
async def test_thoughts_that_are_left_out(service: Running, form: Reasoning, said: str) -> None:
    says(service, said, form)
    choice = await both(service, PATHS[1], include_reasoning=False)
    assert choice["message"] == {"role": "assistant", "content": "Hello there!"}
    assert (await service.events())[-1]["data"]["text"] == said
    found = await chunks(service, PATHS[1], asked(PATHS[1], include_reasoning=False))
    assert "greets" not in str(found)


@pytest.mark.parametrize(("form", "said"), FORMS)
async def test_a_completion_has_no_thoughts(service: Running, form: Reasoning, said: str) -> None:
    says(service, said, form)
    choice = await both(service, PATHS[0], skip_special_tokens=False)
    assert (choice["text"], "completion_tokens_details" in choice["usage"]) == (said, False)
    refused = await service.client.post(PATHS[0], json=asked(PATHS[0], include_reasoning=False))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include_reasoning")


async def test_deltas_bring_nothing_of_a_mark_and_nothing_late(service: Running) -> None:
    """Every delta but those within a mark, a header or line ends around them has the token's own letter."""
    says(service, "<think>a</b></think>\n\nx<", Reasoning(format="block", begin="<think>", end="</think>"))
    found = await chunks(service, PATHS[1], asked(PATHS[1]))
    deltas = [{k: v for k, v in each["choices"][0]["delta"].items() if k != "role"} for each in found]
    assert [each for each in deltas if each] == [
        {"reasoning_content": "a"}, {"reasoning_content": "</b"}, {"reasoning_content": ">"},
        {"content": "x"}, {"content": "<"},
    ]  # fmt: skip
    assert found[0]["choices"][0]["delta"] == {"role": "assistant"}


@pytest.mark.parametrize(
    ("stop", "thought", "said"),
    [("there", "The user greets.", "Hello "), ("user", "The ", ""), ("<|end|>", "The user greets.", ""),
     ("final", "The user greets.", "Hello there!")],
)  # fmt: skip
async def test_stop_strings_and_thoughts(service: Running, stop: str, thought: str, said: str) -> None:
    says(service, HARMONY, Reasoning(format="channels"))
    choice = await both(service, PATHS[1], stop=stop, logprobs=True)
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == (thought, said)
    assert choice["finish_reason"] == "stop"
    assert choice["count"] == len(choice["logprobs"]["content"])


async def test_a_chat_that_ends_in_its_thoughts(service: Running) -> None:
    says(service, HARMONY, Reasoning(format="channels"))
    count = len(service.engine.ids(ANALYSIS)) - 3
    choice = await both(service, PATHS[1], max_tokens=count)
    assert choice["message"] == {"role": "assistant", "content": "", "reasoning_content": "The user gree"}
    assert choice["finish_reason"] == "length"
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] == count
    says(service, "Hello", Reasoning(format="channels"))
    assert (await both(service, PATHS[1]))["message"]["reasoning_content"] is None


class After(asyncio.Event):
    """A gate that lets so many tokens pass; set once it is shut."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._left = tokens

    async def wait(self) -> Literal[True]:
        self._left -= 1
        if self._left < 0:
            self.set()
            await asyncio.Event().wait()
        return True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "said", "stop", "told"),
    [
        (PATHS[0], "Hello, not ye", "not yet", ("Hello, not ye", "")),
        (PATHS[1], "<think>Hm.</thi", "never", ("", "Hm.</thi")),
        (PATHS[1], "<think>Hm.</think>Hello, not ye", "not yet", ("Hello, not ye", "Hm.")),
    ],
)
async def test_what_is_held_back_is_told_when_the_text_is_ended_from_outside(
    service: Running, path: str, said: str, stop: str, told: tuple[str, str], *, stream: bool
) -> None:
    """It might have become a stop string, or a mark: it did not."""
    says(service, said + "x" * 100, Reasoning(format="block", begin="<think>", end="</think>"))
    gate = service.engine.text_gate = After(len(said))
    body = asked(path, stop=stop, sae={"steering": [{"feature": 1, "strength": 3}]})
    if stream:
        sent: asyncio.Task[Any] = asyncio.create_task(chunks(service, path, body))
    else:
        sent = asyncio.create_task(service.client.post(path, json=body))
    while not (gate.is_set() or sent.done()):
        await asyncio.sleep(0.01)
    await service.command("Detach", sae_id=service.sae_ids[0])
    answers = await sent if stream else [(await sent).json()]
    choices = [each["choices"][0] for each in answers]
    parts = [each.get("delta") or each.get("message") or {"content": each.get("text")} for each in choices]
    found = tuple("".join(each.get(name) or "" for each in parts) for name in ("content", "reasoning_content"))
    assert found == told
    assert (choices[-1]["finish_reason"], answers[-1]["sae"]["finish_reason"]) == ("length", "intervention_removed")
    record = next(each["data"] for each in await service.events() if each["type"] == "GenerationFinished")
    assert record["text"] == said
