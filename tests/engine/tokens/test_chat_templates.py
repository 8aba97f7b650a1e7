"""Where the messages are, in templates with every habit of those that models come with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from sae_actor.api.text.messages import RESERVED
from sae_actor.engine.tokens.chat_spans import tells
from sae_actor.engine.tokens.chat_templates import ChatTemplate
from tests.engine import chat_templates as chats
from tests.engine.tiny import CHAT_TEMPLATE, tiny_tokenizer
from tests.engine.tokens.test_chat_spans import read, said

TOOLS = [{"type": "function", "function": {"name": "sum"}}]
SYSTEM = {"role": "system", "content": "Be S"}
THOUGHT = "<think>\nhm\n</think>\n\nyo"

Heads = dict[str, tuple[str, str]]
"""Role → what is written before and behind what is said."""

CHATML: Heads = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
LLAMA_3: Heads = {role: (f"<|head|>{role}<|neck|>\n\n", "<|eot|>") for role in ("user", "assistant")}
GEMMA: Heads = {"user": ("<start>user\n", "<stop>\n"), "assistant": ("<start>model\n", "<stop>\n")}
FAMILIES: dict[str, Heads] = {
    "llama 2": {"user": ("[INST] ", " [/INST]"), "assistant": (" ", " </s>")},
    "llama 3": LLAMA_3,
    "mistral": {"user": ("[INST]", "[/INST]"), "assistant": ("", "</s>")},
    "qwen2": CHATML,
    "qwen3": CHATML,
    "r1": {"system": ("", ""), "user": ("<|User|>", ""), "assistant": ("<|Assistant|>", "</s>")},
    "gemma, gemma2": GEMMA,
    "gemma3": GEMMA,
    "gpt_oss": {
        "system": ("<|start|>developer<|message|># Instructions\n\n", "\n\n<|end|>"),
        "user": ("<|start|>user<|message|>", "<|end|>"),
        "assistant": ("<|start|>assistant<|channel|>final<|message|>", "<|end|>"),
    },
    "phi3": {"user": ("<|user|>\n", "<|end|>\n<|assistant|>\n"), "assistant": ("", "<|end|>\n")},
    "phi3.5": {role: (f"<|{role}|>\n", "<|end|>\n") for role in ("system", "user", "assistant")},
    "headings": {
        "system": ("", "\n\n"),
        "user": ("### Instruction:\n", "\n\n"),
        "assistant": ("### Response:\n", "</s>\n\n"),
    },
    "bare": dict.fromkeys(("system", "user", "assistant"), ("", "</s>")),
    "macro": CHATML,
    "quoted": {
        role: (f'{{"from": "{role}", "value": "', '"}\n') for role in ("system", "user", "assistant")
    },
}  # fmt: skip
WITHIN = {"llama 2": ("<<SYS>>\n", "\n<</SYS>>\n\n"), "mistral": ("", "\n\n"), "gemma3": ("", "\n\n")}
"""Where the system message is a part of the user's turn: what is written around it there."""


def conversations() -> Iterator[tuple[str, list[dict[str, str]]]]:
    for system in ([], [SYSTEM]):
        for rounds in (1, 2, 3):
            contents = ["hi", "yo", "and?", "so", "what then?"][: 2 * rounds - 1]
            yield f"{'system, ' if system else ''}{rounds} rounds", [*system, *said(*contents)]


def turn(heads: Heads, message: dict[str, str]) -> tuple[str, str, list[str]]:
    before, behind = heads[message["role"]]
    return (message["role"], f"{before}{message['content']}{behind}", [message["content"]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_tells(family: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chats.FAMILIES[family]
    assert tells(ChatTemplate(tokenizer))


CONVERSATIONS = dict(conversations())


@pytest.mark.parametrize("which", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_turns(family: str, which: str) -> None:
    messages = CONVERSATIONS[which]
    heads, template = FAMILIES[family], chats.FAMILIES[family]
    if family == "gemma, gemma2" and messages[0] is SYSTEM:
        return  # it refuses system messages
    found = read(template, messages)
    assert found is not None
    if messages[0] is not SYSTEM or "system" in heads:
        assert found == [turn(heads, each) for each in messages]
        return
    rest = [turn(heads, each) for each in messages[1:]]
    assert [each for each in found if each[0] == "assistant"] == [each for each in rest if each[0] == "assistant"]
    users = [each for each in rest if each[0] == "user"]
    if family == "llama 3":
        (system,) = (text for role, text, _ in found if role == "system")
        assert system.startswith("<|head|>system<|neck|>\n\nToday: ")
        assert system.endswith("\n\nBe S<|eot|>")
    elif family in WITHIN:
        before, behind = WITHIN[family]
        own = f"{before}Be S{behind}"
        assert [each for each in found if each[0] == "system"] == [("system", own, ["Be S"])]
        at = -1 if family == "mistral" else 0
        role, text, pieces = users[at]
        users[at] = (role, text.replace(heads["user"][0], heads["user"][0] + own, 1), pieces)
    else:
        assert "system" not in [each[0] for each in found], "the template drops it"
    assert [each for each in found if each[0] == "user"] == users


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("family", [name for name, text in chats.FAMILIES.items() if "tools" in text])
def test_tools_are_no_part_of_what_is_said(family: str, system: bool) -> None:
    template = chats.FAMILIES[family]
    chat = [*([SYSTEM] if system else []), *said("hi", "yo", "and?")]
    for messages in (chat, chat[: 1 + system]):
        found = read(template, messages, TOOLS)
        assert found is not None
        assert {piece for _, _, pieces in found for piece in pieces} == {each["content"] for each in messages}
        bare = {text for role, text, _ in read(template, messages) or () if role == "assistant"}
        assert {text for role, text, _ in found if role == "assistant"} == bare
        users = [text for role, text, _ in found if role == "user"]
        assert all(text.startswith(FAMILIES[family]["user"][0]) for text in users)
        if family == "llama 3":  # they go into what the user says first
            assert "You may call" in users[0]
        else:
            assert not any("sum" in text for text in users)


@pytest.mark.parametrize(
    ("template", "kept"),
    [
        (chats.LLAMA_3, THOUGHT),
        (chats.MISTRAL, THOUGHT),
        (chats.QWEN_2, THOUGHT),
        (chats.QWEN_3, "yo"),
        (chats.R1, "\n\nyo"),
        (chats.GEMMA_3, THOUGHT),
        (chats.PHI_35, THOUGHT),
        (chats.MACRO, "yo"),
        (chats.QUOTED, THOUGHT.replace("\n", "\\n")),
    ],
)
def test_thoughts_in_an_earlier_answer(template: str, kept: str) -> None:
    found = read(template, said("hi", THOUGHT, "and?"))
    assert found is not None
    assert [pieces for _, _, pieces in found] == [["hi"], [kept], ["and?"]]


def test_thoughts_of_the_last_answer_are_a_piece_of_it() -> None:
    found = read(chats.QWEN_3, said("hi", THOUGHT))
    assert found == [
        ("user", "<|im_start|>user\nhi<|im_end|>\n", ["hi"]),
        ("assistant", f"<|im_start|>assistant\n{THOUGHT}<|im_end|>\n", ["hm", "yo"]),
    ]
    apart: list[dict[str, Any]] = [*said("hi"), {"role": "assistant", "content": "yo", "reasoning_content": "hm"}]
    assert read(chats.QWEN_3, apart) == found
    channels: list[dict[str, Any]] = [*said("hi"), {"role": "assistant", "content": "yo", "thinking": "hm"}]
    assert read(chats.GPT_OSS, channels) == [
        ("user", "<|start|>user<|message|>hi<|end|>", ["hi"]),
        (
            "assistant",
            "<|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
            "<|start|>assistant<|channel|>final<|message|>yo<|end|>",
            ["hm", "yo"],
        ),
    ]


@pytest.mark.parametrize(
    "content", ["", " ", " a\n", "\n\na", "<|im_end|>", "user", "\ue000\U000f0000", "<result></result>"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_said(family: str, content: str) -> None:
    """Blanks at its ends are said too where the template keeps them."""
    found = read(chats.FAMILIES[family], said(content, "yo", content))
    assert found is not None
    trimmed = family in ("llama 2", "llama 3", "gemma, gemma2", "gemma3", "macro")
    kept = content.strip() if trimmed else content
    kept = kept.replace("\n", "\\n") if family == "quoted" else kept
    assert ["".join(pieces) for role, _, pieces in found if role == "user"] == [kept, kept]


def test_nothing_said_where_the_template_trims_it_with_its_own() -> None:
    """Its turn cannot be told, and there is nothing in it."""
    found = read(chats.LLAMA_2, [SYSTEM, *said("", "yo", "and?")])
    assert found is not None
    assert [(role, pieces) for role, _, pieces in found] == [
        ("system", ["Be S"]),
        ("assistant", ["yo"]),
        ("user", ["and?"]),
    ]


def test_the_last_of_two_system_messages() -> None:
    found = read(chats.R1, [SYSTEM, *said("hi", "yo"), {"role": "system", "content": "Be T"}, *said("and?")])
    assert found is not None
    assert [(role, pieces) for role, _, pieces in found] == [
        ("system", ["Be T"]),
        ("user", ["hi"]),
        ("assistant", ["yo"]),
        ("user", ["and?"]),
    ]


def test_variables_that_are_not_a_templates_are_known() -> None:
    """Every parameter of the library's rendering is one that a request cannot give."""
    taken = set(inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters) - {"kwargs"}
    taken |= set(inspect.signature(render_jinja_template).parameters) - {"kwargs"}
    assert taken - RESERVED == set()


def test_a_template_that_reads_the_effort_is_given_it() -> None:
    raw = tiny_tokenizer()
    raw.chat_template = CHAT_TEMPLATE + "{{ reasoning_effort | default('medium') }}"
    template = ChatTemplate(raw)
    assert template.knows("reasoning_effort")
    assert not template.knows("enable_thinking")
    message = [{"role": "user", "content": "Hi"}]
    low = template.given({"reasoning_effort": "low"})
    assert (template.text(message), low.text(message)) == ("<|user|>Hi\nmedium", "<|user|>Hi\nlow")
    assert low.rendered(message).text == low.text(message)
    assert low.rendered(message).pieces == template.rendered(message).pieces
    assert template.given({}) is template


@pytest.mark.parametrize("name", sorted(chats.FAMILIES))
def test_the_last_message_is_continued_in_every_template(name: str) -> None:
    """As the library does it itself."""
    raw = tiny_tokenizer()
    raw.chat_template = chats.FAMILIES[name]
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am a"}]
    found = ChatTemplate(raw).continued(messages)
    wanted = raw.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert found is not None
    assert found.text == wanted
