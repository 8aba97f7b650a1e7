"""The answer during generation: tokens to text, with its reasoning separated, cut at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...domain.chats import Reasoning
from ...domain.events import Sampling
from ...ports import Rest
from .detokenizer import IncrementalDetokenizer
from .reasoning import LOOKED_AT, Parser, RunKind, TextRun, parser_for, text_of
from .stop_strings import StopStrings


class Voice(Protocol):
    """What is asked of a model's tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def mark_ids(self) -> frozenset[int]: ...

    def decode(self, ids: list[int], *, special: bool = False) -> str: ...

    def written(self, token: int) -> str:
        """The token alone, special ones as they are written."""


class Part(NamedTuple):
    """What one token brings."""

    text: str
    reasoning: str
    content: str
    offset: int
    """Characters of the text that were complete before."""
    stopped: bool
    """A stop string was met."""


class Answer:
    """Belongs to the device thread, except its construction."""

    def __init__(self, voice: Voice, prompt: Sequence[int], sampling: Sampling, reasoning: Reasoning | None) -> None:
        self.reasoning_tokens = 0
        self._voice = voice
        self._reasoning = reasoning
        self._marks: frozenset[int] = frozenset() if reasoning is None else voice.mark_ids
        self._hidden: frozenset[int] = voice.special_ids if sampling.skip_special_tokens else frozenset()
        self._included = sampling.include_stop_str_in_output
        self._shows_special = not sampling.skip_special_tokens
        self._min_tokens = sampling.min_tokens
        self._decoder = IncrementalDetokenizer(self._decode, prompt)
        self._tail = tuple(prompt[-LOOKED_AT:])
        self._parser: Parser | None = None
        self._stops = StopStrings(
            sampling.stop, hidden=sampling.stop_in_hidden, included=sampling.include_stop_str_in_output
        )
        self._over = False
        self._made = 0
        self._complete = 0
        self._undecided = 0
        """Tokens that may still count as thought."""

    @property
    def thinking(self) -> bool:
        """What comes next is reasoning."""
        return self._parser_of_prompt().thinking

    def push(self, token: int, *, ends: bool = False, last: bool = False) -> Part:
        """ends: the token ends the generation; last: something else does. Text held back comes with the last."""
        parser = self._parser_of_prompt()
        thinking = parser.thinking
        runs = self._runs(token, parser, ends=ends)
        if ends or last:
            runs += [*parser.text(self._decoder.flush()), *parser.flush()]
        self._made += 1
        self._count(parser, thinking=thinking)
        offset = self._complete
        self._complete += sum(len(run.whole) for run in runs)
        if ends and not self._included:
            runs.append(TextRun(self._voice.written(token), RunKind.HIDDEN))
        shown, stopped = self._stops.push(runs, counts=self._made > self._min_tokens)
        if (ends or last) and not stopped:
            shown += self._stops.flush()
        self._over = stopped or ends or last
        return Part(*self._read(shown), offset, stopped)

    def rest(self) -> Rest:
        """The text still held back, if a generation is ended from outside."""
        if self._over or not self._made:
            return Rest()
        self._over = True
        parser = self._parser_of_prompt()
        shown, stopped = self._stops.push([*parser.text(self._decoder.flush()), *parser.flush()])
        return Rest(*self._read(shown if stopped else [*shown, *self._stops.flush()]))

    def _read(self, shown: list[TextRun]) -> tuple[str, str, str]:
        text = "".join(run.whole for run in shown)
        return (
            (text, "", "")
            if self._reasoning is None
            else (text, text_of(shown, RunKind.THOUGHT), text_of(shown, RunKind.SAID))
        )

    def _runs(self, token: int, parser: Parser, *, ends: bool) -> list[TextRun]:
        if ends and not self._included:
            return []
        if token in self._marks:
            # Bytes on both sides of a mark do not form a character.
            rest, self._decoder = self._decoder.flush(), IncrementalDetokenizer(self._decode, ())
            otherwise = RunKind.HIDDEN if token in self._hidden else None
            return [*parser.text(rest), *parser.mark(self._voice.written(token), otherwise)]
        runs = [*parser.text(self._decoder.push(token))]
        if token in self._hidden:
            runs += parser.mark(self._voice.written(token), RunKind.HIDDEN)
        return runs

    def _count(self, parser: Parser, *, thinking: bool) -> None:
        """thinking: as it was before the token."""
        if parser.undecided and not thinking:
            self._undecided += 1
        elif thinking or parser.thinking:
            self.reasoning_tokens += 1 + self._undecided
            self._undecided = 0
        else:
            self._undecided = 0

    def _parser_of_prompt(self) -> Parser:
        if self._parser is None:
            tail = () if self._reasoning is None else self._tail
            prompt = [(self._voice.written(token), token in self._marks) for token in tail]
            self._parser = parser_for(self._reasoning, prompt)
        return self._parser

    def _decode(self, ids: list[int]) -> str:
        if self._marks:
            ids = [each for each in ids if each not in self._marks]
        return self._voice.decode(ids, special=self._shows_special)
