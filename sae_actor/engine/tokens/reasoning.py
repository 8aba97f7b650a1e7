"""Reasoning and content of a chat's answer, separated by the marks of its template.

`Channels`: gpt-oss' harmony, messages of several channels in a row, `<|start|>assistant<|channel|>analysis
<|message|>…<|end|>`. `Block`: reasoning before the content, `<think>…</think>`, which the prompt may have opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from ...domain.chats import Reasoning

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_CHANNEL_MARKS = frozenset((START, CHANNEL, MESSAGE, "<|constrain|>", *_ENDS))
_BLOCKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"))
_RECIPIENT = " to="
"""Begins the addressee of a message that calls a tool."""
LOOKED_AT = 64
"""Tokens at the end of a prompt that show where the answer begins."""


class RunKind(Enum):
    """What a run of characters is to the reader."""

    SAID = "said"
    THOUGHT = "thought"
    MARK = "mark"
    """A whole mark between reasoning and content: part of the text, but of neither."""
    FORM = "form"
    """As a mark, but not a whole one: a channel's name, line ends around a block."""
    HIDDEN = "hidden"
    """A special token that is left out of the text."""
    JOINT = "joint"
    """Not made by the model: keeps two messages of one kind apart."""


class TextRun(NamedTuple):
    text: str
    kind: RunKind
    field: RunKind = RunKind.SAID
    """For a joint: which of the two it belongs to."""

    @property
    def whole(self) -> str:
        """Its part of the whole text."""
        return "" if self.kind in (RunKind.HIDDEN, RunKind.JOINT) else self.text


def text_of(runs: list[TextRun], kind: RunKind) -> str:
    """The content, or the reasoning, of the runs."""
    return "".join(run.text for run in runs if run.kind is kind or (run.kind is RunKind.JOINT and run.field is kind))


def reasoning_of(tokenizer: Any, model_type: str) -> Reasoning | None:
    """How the model's chats mark reasoning; None if the template has no marks for it."""
    template = str(tokenizer.chat_template or "")
    if not template:
        return None
    added = {about.content for about in tokenizer.added_tokens_decoder.values()}
    knows = CHANNEL in template or (START in template and MESSAGE in template) or model_type == "gpt_oss"
    if knows and {CHANNEL, MESSAGE} <= added:
        return Reasoning(format="channels")
    for begin, end in _BLOCKS:
        if end in template:
            return Reasoning(format="block", begin=begin, end=end)
    return None


def mark_ids(reasoning: Reasoning | None, tokenizer: Any) -> frozenset[int]:
    """Tokens that are marks. Those of a block that are not special tokens are text, and found there."""
    if reasoning is None:
        return frozenset()
    added = tokenizer.added_tokens_decoder.items()
    if reasoning.format == "channels":
        return frozenset(token for token, about in added if about.content in _CHANNEL_MARKS)
    block = (reasoning.begin, reasoning.end)
    return frozenset(token for token, about in added if about.special and about.content in block)


class Parser:
    """Separates the runs of an answer during generation; this one takes all for content."""

    @property
    def thinking(self) -> bool:
        """What comes next is thought."""
        return False

    @property
    def undecided(self) -> bool:
        """The newest text may still belong to either."""
        return False

    def text(self, piece: str) -> Iterator[TextRun]:
        """Text that became readable."""
        if piece:
            yield TextRun(piece, RunKind.SAID)

    def mark(self, written: str, otherwise: RunKind | None) -> Iterator[TextRun]:
        """A mark, or a special token. otherwise: its kind if no mark is expected; None: plain text."""
        yield TextRun(written, otherwise or RunKind.SAID)

    def flush(self) -> Iterator[TextRun]:
        """What was held back because a mark might have begun."""
        yield from ()


class Block(Parser):
    """Reasoning between two marks, before the content; line ends around the marks belong to them."""

    def __init__(self, begin: str, end: str, prompt: str) -> None:
        """prompt: how it ends, special tokens shown; it may have opened the block."""
        self._begin, self._end = begin, end
        self._state = "opened" if prompt.rstrip().endswith(begin) else "start"
        self._held = ""

    @property
    def thinking(self) -> bool:
        return self._state in ("opened", "within")

    @property
    def undecided(self) -> bool:
        return self._state == "start" and bool(self._held)

    def text(self, piece: str) -> Iterator[TextRun]:
        self._held += piece
        while self._held:
            before = self._state, self._held
            yield from self._step()
            if (self._state, self._held) == before:
                return

    def mark(self, written: str, otherwise: RunKind | None) -> Iterator[TextRun]:
        if self._state == "start" and written == self._begin:
            yield from self._give(len(self._held), RunKind.FORM)
            self._state = "opened"
        elif self.thinking and written == self._end:
            yield from self._thought(len(self._held))
            self._state = "behind"
        else:
            yield from self.flush()
            yield TextRun(written, otherwise or (RunKind.THOUGHT if self.thinking else RunKind.SAID))
            return
        yield TextRun(written, RunKind.MARK)

    def flush(self) -> Iterator[TextRun]:
        yield from self._give(len(self._held), RunKind.THOUGHT if self.thinking else RunKind.SAID)

    def _step(self) -> Iterator[TextRun]:
        match self._state:
            case "start":
                yield from self._before()
            case "opened":
                yield from self._line_ends("within")
            case "within":
                yield from self._within()
            case "behind":
                yield from self._line_ends("saying")
            case _:
                yield from self._give(len(self._held), RunKind.SAID)

    def _before(self) -> Iterator[TextRun]:
        found = self._held.lstrip()
        if found.startswith(self._begin):
            yield from self._give(len(self._held) - len(found), RunKind.FORM)
            yield from self._give(len(self._begin), RunKind.MARK)
            self._state = "opened"
        elif not self._begin.startswith(found):
            self._state = "saying"

    def _line_ends(self, then: str) -> Iterator[TextRun]:
        yield from self._give(len(self._held) - len(self._held.lstrip("\n")), RunKind.FORM)
        if self._held:
            self._state = then

    def _within(self) -> Iterator[TextRun]:
        text, end = self._held, self._end
        at = text.find(end)
        if at >= 0:
            yield from self._thought(at)
            yield from self._give(len(end), RunKind.MARK)
            self._state = "behind"
            return
        half = max(n for n in range(len(end)) if text.endswith(end[:n]))
        yield from self._give(len(text[: len(text) - half].rstrip("\n")), RunKind.THOUGHT)

    def _thought(self, upto: int) -> Iterator[TextRun]:
        """The end of the reasoning, and the line ends after it."""
        thought = len(self._held[:upto].rstrip("\n"))
        yield from self._give(thought, RunKind.THOUGHT)
        yield from self._give(upto - thought, RunKind.FORM)

    def _give(self, count: int, kind: RunKind) -> Iterator[TextRun]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield TextRun(text, kind)


class Channels(Parser):
    """Messages of several channels: `final`, and `commentary` for the reader, are content; `analysis` and messages to a
    tool are reasoning."""

    def __init__(self, prompt: Sequence[tuple[str, bool]]) -> None:
        """prompt: how it ends, pieces and whether each is a mark; it has begun the first message."""
        self._state = "between"
        self._header = ""
        self._kind = RunKind.SAID
        self._fresh = False
        """No text of the message yet."""
        self._had: set[RunKind] = set()
        """Of what there was a message before."""
        self._opened = False
        """Nothing of the answer yet, after the role that the prompt named."""
        self._held = ""
        for written, is_mark in prompt:
            for _ in self.mark(written, None) if is_mark else self.text(written):
                pass  # only the end of the prompt matters
        self._had.clear()
        self._opened = self._state == "role"

    @property
    def thinking(self) -> bool:
        return self._state == "message" and self._kind is RunKind.THOUGHT

    @property
    def undecided(self) -> bool:
        return self._state in ("role", "channel")

    def text(self, piece: str) -> Iterator[TextRun]:
        if not piece:
            return
        if self._opened:
            self._held += piece
            if _RECIPIENT.startswith(self._held):
                return
            piece, self._held, self._opened = self._held, "", False
            if not piece.startswith(_RECIPIENT):
                self._begin(RunKind.SAID)
        if self._state in ("role", "channel"):
            self._header += piece
            yield TextRun(piece, RunKind.FORM)
            return
        if self._state == "between":
            self._begin(RunKind.SAID)
        if self._fresh and self._kind in self._had:
            yield TextRun("\n", RunKind.JOINT, self._kind)
        self._fresh = False
        self._had.add(self._kind)
        yield TextRun(piece, self._kind)

    def mark(self, written: str, otherwise: RunKind | None) -> Iterator[TextRun]:
        if written not in _CHANNEL_MARKS:
            if otherwise is None:
                yield from self.text(written)
            else:
                yield TextRun(written, otherwise)
            return
        yield from self.flush()
        if written == START:
            self._state, self._header = "role", ""
        elif written == CHANNEL:
            self._state, self._header = "channel", self._header + CHANNEL if self._state == "role" else CHANNEL
        elif written == MESSAGE:
            if self._state != "message":
                self._begin(_kind_of(self._header))
        elif written in _ENDS:
            self._state, self._header = "between", ""
        yield TextRun(written, RunKind.MARK)

    def flush(self) -> Iterator[TextRun]:
        held, self._held, self._opened = self._held, "", False
        if held:
            self._header += held
            yield TextRun(held, RunKind.FORM)

    def _begin(self, kind: RunKind) -> None:
        self._state, self._kind, self._fresh, self._header = "message", kind, True, ""


def _kind_of(header: str) -> RunKind:
    """Of a message with this header, all from its role on."""
    role, _, channel = header.partition(CHANNEL)
    words = channel.split()
    to_a_tool = _RECIPIENT in f"{role} {channel}"
    return RunKind.THOUGHT if to_a_tool or words[:1] == ["analysis"] else RunKind.SAID


def parser_for(reasoning: Reasoning | None, prompt: Sequence[tuple[str, bool]]) -> Parser:
    """prompt: its last tokens as they are written, and whether each is a mark."""
    if reasoning is None:
        return Parser()
    if reasoning.format == "channels":
        starts = [at for at, (written, is_mark) in enumerate(prompt) if is_mark and written == START]
        return Channels(prompt[starts[-1] :] if starts else ())
    return Block(reasoning.begin, reasoning.end, "".join(written for written, _ in prompt))
