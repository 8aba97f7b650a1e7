"""Thoughts text_of from what is said: the same however an answer comes in pieces, and nothing of a mark is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.engine.tokens.reasoning import Block, Channels, Parser, RunKind, TextRun, text_of

MARKS = re.compile(r"(<\|[a-z]+\|>)")
QWEN, R1 = "<|im_start|>assistant\n", "<|Assistant|><think>\n"
BLOCKS = [
    (QWEN, "<think>\nHm.\n\nYes.\n</think>\n\nHello", "Hm.\n\nYes.", "Hello"),
    (QWEN, "\n <think>Hm.</think>Hello", "Hm.", "Hello"),
    (R1, "Hm.\n</think>\n\n  Hello\n", "Hm.", "  Hello\n"),
    (R1, "\nHm <think> of </thin</think>x</think>", "Hm <think> of </thin", "x</think>"),
    (R1, "Hm.</th", "Hm.</th", ""),
    (R1, "\n\n</think>\n\nHello", "", "Hello"),
    (QWEN, "<think>\n\n</think>\n\nHello", "", "Hello"),
    (QWEN + "<think>\n\n</think>\n\n", "Hello <think>", "", "Hello <think>"),
    (QWEN, "Hello <think>no</think>", "", "Hello <think>no</think>"),
    (QWEN, "\n <thin air", "", "\n <thin air"),
    (QWEN, " <th", "", " <th"),
    (QWEN, "", "", ""),
]
START = "<|start|>assistant"
CHANNELS = [
    (START, "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant<|channel|>final<|message|>Hello "
     "there!", "The user greets.", "Hello there!"),
    (START, "<|channel|>analysis<|message|>One.<|end|><|channel|>analysis<|message|>Two.<|end|><|channel|>final"
     "<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B", "One.\nTwo.", "A\nB"),
    (START, "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>commentary "
     "to=functions.f <|constrain|>json<|message|>{}<|call|>", "{}", "I look it up."),
    (START, " to=functions.f<|channel|>commentary<|message|>{}<|call|>", "{}", ""),
    (START, "<|channel|>analysis", "", ""),
    (START, "Hello", "", "Hello"),
    (START, " to", "", ""),
    (START, "<|message|>Hello", "", "Hello"),
    (START + "<|channel|>final<|message|>", "Hello", "", "Hello"),
    (START + "<|channel|>analysis<|message|>Well, ", "so.<|end|>", "so.", ""),
    ("what <|end|>", "Hello<|channel|>final<|message|>there", "", "Hello\nthere"),
]  # fmt: skip


def block(prompt: str) -> Parser:
    return Block("<think>", "</think>", prompt)


def channels(prompt: str) -> Parser:
    parts = [(part, bool(MARKS.fullmatch(part))) for part in MARKS.split(prompt) if part]
    starts = [at for at, (part, _) in enumerate(parts) if part == "<|start|>"]
    return Channels(parts[starts[-1] :] if starts else ())


def read(parser: Parser, pieces: Sequence[str]) -> tuple[str, str, str]:
    """What is thought, what is said, and the whole."""
    runs: list[TextRun] = []
    for piece in pieces:
        is_mark = MARKS.fullmatch(piece) is not None
        runs += parser.mark(piece, RunKind.HIDDEN) if is_mark else parser.text(piece)
    runs += parser.flush()
    return text_of(runs, RunKind.THOUGHT), text_of(runs, RunKind.SAID), "".join(run.whole for run in runs)


def cut(text: str, *, marks: bool, every: int) -> list[str]:
    parts = MARKS.split(text) if marks else [text]
    return [
        piece
        for part in parts
        for piece in ([part] if MARKS.fullmatch(part) else [part[at : at + every] for at in range(0, len(part), every)])
        if piece
    ]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("made", "case"), [*((block, each) for each in BLOCKS), *((channels, each) for each in CHANNELS)]
)
def test_right_in_any_pieces(made: Callable[[str], Parser], case: tuple[str, str, str, str], every: int) -> None:
    prompt, answer, thought, said = case
    found = read(made(prompt), cut(answer, marks=made is channels, every=every))
    assert found == (thought, said, answer)


@given(st.lists(st.sampled_from(["<think>", "</think>", "</th", "ink>", "\n", " ", "a", "<", "b\n"]), max_size=10))
def test_nothing_is_lost_and_nothing_is_taken_back(pieces: list[str]) -> None:
    """In pieces as in one, and whatever is given out early is a beginning of what comes out at the end."""
    for prompt in (QWEN, R1):
        whole = read(block(prompt), ["".join(pieces)])
        assert read(block(prompt), pieces) == whole
        assert whole[2] == "".join(pieces)


def test_special_tokens_as_marks() -> None:
    parser = Block("[THINK]", "[/THINK]", "[/INST]")
    runs = [*parser.mark("[THINK]", RunKind.HIDDEN), *parser.text("Hm."), *parser.mark("[/THINK]", RunKind.HIDDEN)]
    runs += [*parser.text("Hi"), *parser.mark("[THINK]", RunKind.HIDDEN), *parser.mark("<x>", None), *parser.flush()]
    assert (text_of(runs, RunKind.THOUGHT), text_of(runs, RunKind.SAID)) == ("Hm.", "Hi<x>")
