"""Answers to text requests in OpenAI's shapes: envelope, choices, log probabilities, usage, and `sae`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, TypeAlias, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ...domain.structs import filled
from ...domain.words import ranges_in_words
from ...generations import Completed, RunningGeneration
from ...ports import Finished, PositionDetails, PromptToken, Rest, ScoredToken, Token, Tokenized, labelled
from .answers import (
    FINAL,
    AppliedIntervention,
    AppliedSae,
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatPart,
    ChatToken,
    ChunkIntervention,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionPart,
    CompletionTokensDetails,
    FinalReason,
    NamedLogprobs,
    Rows,
    ScoredChatToken,
    Usage,
)
from .measuring.detailed import positions_of

T = TypeVar("T", bound=ChatToken)
Kind = Literal["completion", "chat"]
Part: TypeAlias = CompletionPart | ChatPart
Chunk: TypeAlias = CompletionChunk | ChatCompletionChunk
MOST_RANGES = 16
"""Of positions that a warning names."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of an answer: a generation of its own."""

    kind: Kind
    index: int
    text: RunningGeneration
    prompt: Tokenized
    echo: str = ""
    scores: bool = False
    """Log probabilities were requested."""
    thoughts: bool = True
    """The answer includes the reasoning, if the model's chats mark it."""
    names: bool = False
    """Log probabilities of named tokens were requested."""
    details: bool = False
    """What was done at each position was requested."""
    labels: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """SAE → labels of features, for those of which activations are shown."""

    @property
    def is_long(self) -> bool:
        """More is told of each token than its text."""
        return self.scores or self.names or self.details or bool(self.text.started.watched)

    @property
    def apart(self) -> bool:
        return self.text.started.reasoning is not None

    def whole(self, done: Completed, sae: AppliedIntervention | UnsetType) -> CompletionChoice | ChatChoice:
        """The choice at its end."""
        made, reason = self.text.made, FINAL[done.finished.reason]
        if self.kind == "completion":
            return CompletionChoice(
                index=self.index,
                text=self.echo + done.finished.text,
                logprobs=self._completion_logprobs(made, done.finished.prompt),
                finish_reason=reason,
                sae=sae,
            )
        content, reasoning = done.finished.text, ""
        if self.apart:
            pieces = (*made, done.finished.rest)
            content, reasoning = ("".join(getattr(each, name) for each in pieces) for name in ("content", "reasoning"))
        shown = (reasoning or None) if self.apart and self.thoughts else UNSET
        message = ChatAnswer(role="assistant", content=content, reasoning_content=shown)
        logprobs = self._chat_logprobs(made)
        return ChatChoice(index=self.index, message=message, logprobs=logprobs, finish_reason=reason, sae=sae)

    def tells(self, token: Token) -> bool:
        """Whether the token has anything to stream."""
        return self.scores or self.details or any(self._split(token))

    @property
    def echoes_scores(self) -> bool:
        """The prompt is told with its log probabilities, once those are there."""
        return bool(self.echo) and self.scores

    def echoed(self, prompt: Sequence[PromptToken] = ()) -> Part:
        """The choice in the chunk that brings the prompt."""
        logprobs = self._completion_logprobs((), prompt) if self.scores else None
        return CompletionPart(index=self.index, text=self.echo, logprobs=logprobs, finish_reason=None)

    def part(self, token: Token, sae: ChunkIntervention | UnsetType, *, first: bool = False) -> Part:
        """The choice in the chunk that brings this token."""
        content, reasoning = self._split(token)
        return self._part(content, reasoning, (token,), sae=sae, first=first)

    def last(self, done: Completed, sae: ChunkIntervention | UnsetType, *, first: bool = False) -> Part:
        """The choice in its last chunk."""
        content, reasoning = self._split(done.finished.rest)
        return self._part(content, reasoning, None, FINAL[done.finished.reason], sae, first=first)

    def _split(self, token: Token | Rest) -> tuple[str, str]:
        """Its content, and its reasoning."""
        if not self.apart:
            return token.text, ""
        return token.content, token.reasoning if self.thoughts else ""

    def _part(
        self,
        content: str,
        reasoning: str,
        tokens: Sequence[Token] | None,
        finish_reason: FinalReason | None = None,
        sae: ChunkIntervention | UnsetType = UNSET,
        *,
        first: bool,
    ) -> Part:
        """tokens: those whose log probabilities it has, where they were asked for."""
        if self.kind == "completion":
            return CompletionPart(
                index=self.index,
                text=content,
                logprobs=self._completion_logprobs(tokens),
                finish_reason=finish_reason,
                sae=sae,
            )
        delta = ChatDelta(
            role="assistant" if first else UNSET, reasoning_content=reasoning or UNSET, content=content or UNSET
        )
        logprobs = self._chat_logprobs(tokens)
        return ChatPart(index=self.index, delta=delta, logprobs=logprobs, finish_reason=finish_reason, sae=sae)

    def _completion_logprobs(
        self, tokens: Sequence[Token] | None, prompt: Sequence[PromptToken] = ()
    ) -> CompletionLogprobs | None:
        """One entry per counted token, so also for the end token; None where none were asked for. prompt: what is
        echoed with them."""
        if tokens is None or not self.scores:
            return None
        scored = _scored(tokens)
        pieces: list[ScoredToken | PromptToken] = [*prompt, *(own for _, own in scored)]
        offsets = [0, *accumulate(map(len, self.prompt.tokens))]
        return CompletionLogprobs(
            tokens=tuple(map(_written, pieces)),
            token_logprobs=tuple(each.logprob for each in pieces),
            top_logprobs=(*(_top(each.top, each) for each in prompt), *(_top(t.top, own) for t, own in scored)),
            text_offset=(*offsets[: len(prompt)], *(len(self.echo) + t.offset for t, _ in scored)),
        )

    def _chat_logprobs(self, tokens: Sequence[Token] | None) -> ChatLogprobs | None:
        """As of a completion."""
        if tokens is None or not self.scores:
            return None
        content = (
            _chat(ScoredChatToken, own, top_logprobs=tuple(_chat(ChatToken, each) for each in token.top))
            for token, own in _scored(tokens)
        )
        return ChatLogprobs(content=tuple(content), refusal=None)

    def extension(self, done: Completed, *, streamed: bool = False) -> AppliedIntervention:
        """`sae` in the answer: what was active, and the receipt of what was written. streamed: chunks had the positions
        of the tokens."""
        rows, told = self._rows(done.finished), () if streamed else self.text.made
        one = len(rows) == 1
        return applied(
            self.text, done, features=next(iter(rows.values())) if one else UNSET,
            features_by_sae=UNSET if one else rows or UNSET, logprobs_of=self._named() if self.names else UNSET,
            positions=self._positions(*told, done.finished),
        )  # fmt: skip

    def at(self, token: Token) -> ChunkIntervention | UnsetType:
        """`sae` in the chunk that brings this token."""
        return ChunkIntervention(positions=self._positions(token)) if self.details else UNSET

    def _positions(self, *parts: Token | Finished) -> tuple[PositionDetails, ...] | UnsetType:
        return positions_of(parts, self.labels) if self.details else UNSET

    def _named(self) -> tuple[NamedLogprobs, ...]:
        columns = zip(*(token.named for token in self.text.made), strict=True)
        return tuple(
            NamedLogprobs(token=each[0].text, token_id=each[0].id, logprobs=tuple(one.logprob for one in each))
            for each in columns
        )

    def _rows(self, finished: Finished) -> dict[str, Rows]:
        """Of each SAE that is watched, the activations at each position that was run."""
        watched = self.text.started.watched
        read = [pieces for token in self.text.made for pieces in token.activations[: len(watched)]]
        read += finished.activations[: len(watched)]
        return {
            sae.sae_id: tuple(
                labelled(row, self.labels.get(sae.sae_id, {}))
                for each in read
                if each.sae_id == sae.sae_id
                for row in each.rows
            )
            for sae in watched
        }


def applied(text: RunningGeneration, done: Completed, **more: Any) -> AppliedIntervention:
    """What was active, and the receipt of what was written. `more`: other fields."""
    started = text.started
    return filled(
        AppliedIntervention,
        started,
        position=text.position,
        interventions=tuple(
            filled(AppliedSae, sae, weights_files=files, exclude=UNSET if sae.exclude is None else sae.exclude)
            for sae, files in zip(started.intervention, text.weights, strict=True)
        ),
        finish_reason=done.finished.reason,
        receipt=done.finished.receipt,
        batch=done.finished.batch,
        warnings=tuple(warnings(done.finished)),
        seed=started.sampling.seed,
        preset=UNSET if started.preset is None else started.preset,
        **more,
    )


def warnings(finished: Finished) -> list[str]:
    """Warnings about how a generation ran."""
    if not finished.edited_sinks:
        return []
    ranges = finished.edited_sinks
    count = sum(stop - first for first, stop in ranges)
    further = count - sum(stop - first for first, stop in ranges[:MOST_RANGES])
    where = ranges_in_words(ranges[:MOST_RANGES]) + (f" and {further} more" if further else "")
    places = "positions" if count > 1 else "position"
    return [f'attention sinks were edited, at {places} {where}: "exclude" does not name "sink"']


def _scored(tokens: Sequence[Token]) -> list[tuple[Token, ScoredToken]]:
    return [(token, token.scored) for token in tokens if token.scored is not None]


def _chat(type_: type[T], scored: ScoredToken, **more: Any) -> T:
    written = None if scored.bytes is None else tuple(scored.bytes)
    return type_(token=scored.text, logprob=scored.logprob, bytes=written, **more)


def _top(top: Sequence[ScoredToken], own: ScoredToken | PromptToken) -> dict[str, float] | None:
    """The most probable tokens and, as OpenAI has it, the chosen one always; None if nothing was there to choose."""
    if own.logprob is None:
        return None
    return {**{_written(each): each.logprob for each in top}, _written(own): own.logprob}


def _written(scored: ScoredToken | PromptToken) -> str:
    r"""The token's text; of a part of a character its bytes, `bytes:\xe2\x80`: texts are keys, and would be one."""
    if scored.bytes is None or scored.bytes == scored.text.encode():
        return scored.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in scored.bytes)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the chunks and the whole answer of one request share."""

    kind: Kind
    model: str
    """As clients name it."""
    system_fingerprint: str
    choices: tuple[Choice, ...]
    created: int
    n: int = 1
    """Choices for each prompt."""

    @property
    def texts(self) -> tuple[RunningGeneration, ...]:
        return tuple(choice.text for choice in self.choices)

    def whole(self, ends: Sequence[Completed]) -> Completion | ChatCompletion:
        """The answer that is not streamed."""
        pairs = list(zip(self.choices, ends, strict=True))
        type_: type[Completion | ChatCompletion] = ChatCompletion if self.kind == "chat" else Completion
        choices = [choice.whole(done, self.own(choice, done)) for choice, done in pairs]
        return type_(
            **self._common("chat.completion", choices),
            usage=self.usage(ends),
            sae=pairs[0][0].extension(pairs[0][1]),
        )

    def chunk(
        self, *parts: Part, usage: Usage | UnsetType = UNSET, sae: ChunkIntervention | UnsetType = UNSET
    ) -> Chunk:
        """One event of the answer that is streamed."""
        type_: type[Chunk] = ChatCompletionChunk if self.kind == "chat" else CompletionChunk
        return type_(**self._common("chat.completion.chunk", parts), usage=usage, sae=sae)

    def piece(self, choice: Choice, token: Token, usage: Usage | UnsetType, *, first: bool) -> Chunk:
        """The event that brings a token."""
        sae, several = choice.at(token), len(self.choices) > 1
        part = choice.part(token, sae if several else UNSET, first=first)
        return self.chunk(part, usage=usage, sae=UNSET if several else sae)

    def _common(self, chat: str, choices: Sequence[CompletionChoice | ChatChoice | Part]) -> dict[str, Any]:
        """What whole answers and chunks have in common; chat: the type of object that one of a chat is."""
        return {
            "id": self.choices[0].text.started.generation_id,
            "object": chat if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": tuple(choices),
        }

    def own(self, choice: Choice, done: Completed, *, streamed: bool = False) -> AppliedIntervention | UnsetType:
        """The extension of a choice, where each has one."""
        return choice.extension(done, streamed=streamed) if len(self.choices) > 1 else UNSET

    def usage_so_far(self, made: int) -> Usage:
        """After this many tokens of all choices."""
        read = sum(len(choice.prompt.token_ids) for choice in self.choices[:: self.n])
        return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)

    def usage(self, ends: Sequence[Completed]) -> Usage:
        made = sum(len(done.finished.token_ids) for done in ends)
        details: CompletionTokensDetails | UnsetType = UNSET
        if any(choice.apart for choice in self.choices):
            details = CompletionTokensDetails(reasoning_tokens=sum(done.finished.reasoning_tokens for done in ends))
        return replace(self.usage_so_far(made), completion_tokens_details=details)
