"""Answers to text requests in OpenAI's shapes: envelope, choices, log probabilities, usage, and `sae`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ...domain.refs import ModelFacts
from ...domain.words import ranges_in_words
from ...generations import Completed, RunningGeneration
from ...ports import Finished, Rest, ScoredToken, Token, Tokenized
from .requests import fingerprint

Kind = Literal["completion", "chat"]
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

    @property
    def apart(self) -> bool:
        return self.text.started.reasoning is not None

    def whole(self, done: Completed) -> dict[str, Any]:
        """The choice at its end."""
        made, reason = self.text.made, done.finished.reason
        logprobs = self.logprobs(made)
        if self.kind == "completion":
            return self._choice({"text": self.echo + done.finished.text}, logprobs, reason)
        content, reasoning = done.finished.text, ""
        if self.apart:
            told = (*made, done.finished.rest)
            content, reasoning = ("".join(getattr(each, name) for each in told) for name in ("content", "reasoning"))
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.apart and self.thoughts:
            message["reasoning_content"] = reasoning or None
        return self._choice({"message": message}, logprobs, reason)

    def tells(self, token: Token) -> bool:
        """Whether the token has anything to stream."""
        return self.scores or any(self._told(token))

    def part(self, tokens: Sequence[Token] = (), *, text: str = "", first: bool = False) -> dict[str, Any]:
        """The choice in a chunk that brings `text` and these tokens."""
        told = [self._told(token) for token in tokens]
        content, reasoning = text + "".join(said for said, _ in told), "".join(thought for _, thought in told)
        return self._chunk(content, reasoning, self.logprobs(tokens) if tokens else None, None, first=first)

    def last(self, done: Completed, *, first: bool = False) -> dict[str, Any]:
        """The choice in its last chunk."""
        return self._chunk(*self._told(done.finished.rest), None, done.finished.reason, first=first)

    def _told(self, token: Token | Rest) -> tuple[str, str]:
        """Its content, and its reasoning."""
        if not self.apart:
            return token.text, ""
        return token.content, token.reasoning if self.thoughts else ""

    def _chunk(
        self, content: str, reasoning: str, logprobs: Any, finish_reason: str | None, *, first: bool
    ) -> dict[str, Any]:
        if self.kind == "completion":
            return self._choice({"text": content}, logprobs, finish_reason)
        delta = {"role": "assistant"} if first else {}
        if reasoning:
            delta["reasoning_content"] = reasoning
        if content:
            delta["content"] = content
        return self._choice({"delta": delta}, logprobs, finish_reason)

    def _choice(self, said: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": self.index, **said, "logprobs": logprobs, "finish_reason": finish_reason}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """One entry per counted token, so also for the end token; None if none were requested."""
        if not self.scores:
            return None
        scored = [(token, token.scored) for token in tokens if token.scored is not None]
        if self.kind == "chat":
            return {
                "content": [{**_chat(own), "top_logprobs": [_chat(each) for each in t.top]} for t, own in scored],
                "refusal": None,
            }
        return {
            "tokens": [_written(own) for _, own in scored],
            "token_logprobs": [own.logprob for _, own in scored],
            # The chosen one is always among them, as OpenAI's are.
            "top_logprobs": [{_written(each): each.logprob for each in (*t.top, own)} for t, own in scored],
            "text_offset": [len(self.echo) + t.offset for t, _ in scored],
        }

    def extension(self, done: Completed) -> dict[str, Any]:
        """`sae` in the answer: what was active, and the receipt of what was written."""
        started = self.text.started
        shown = ("sae_id", "weights_sha256", "weights_files", "hook_point", "mode", "steering")
        active = [
            {**msgspec.to_builtins(sae), "weights_files": msgspec.to_builtins(files)}
            for sae, files in zip(started.intervention, self.text.weights, strict=True)
        ]
        return {
            "generation_id": started.generation_id,
            "position": self.text.position,
            "interventions": [{name: sae[name] for name in shown} | _passed(sae) for sae in active],
            "intervention_sha256": started.intervention_sha256,
            "receipt": msgspec.to_builtins(done.finished.receipt),
            "warnings": warnings(done.finished),
            "seed": started.sampling.seed,
            **self._features(),
        }

    def _features(self) -> dict[str, Any]:
        """Activations at each position that was run: the prompt's, and all generated tokens' but the last one's."""
        watched = self.text.started.watched
        read = [told for token in self.text.made for told in token.activations]
        rows = {sae.sae_id: [row for each in read if each.sae_id == sae.sae_id for row in each.rows] for sae in watched}
        if len(rows) == 1:
            return {"features": msgspec.to_builtins(rows[watched[0].sae_id])}
        return {"features_by_sae": msgspec.to_builtins(rows)} if rows else {}


def _passed(sae: dict[str, Any]) -> dict[str, Any]:
    """The positions it leaves unchanged, if any were given."""
    return {} if sae["exclude"] is None else {"exclude": sae["exclude"]}


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


def _chat(scored: ScoredToken) -> dict[str, Any]:
    written = None if scored.bytes is None else list(scored.bytes)
    return {"token": scored.text, "logprob": scored.logprob, "bytes": written}


def _written(scored: ScoredToken) -> str:
    r"""The token's text; of a part of a character its bytes, `bytes:\xe2\x80`: texts are keys, and would be one."""
    if scored.bytes is None or scored.bytes == scored.text.encode():
        return scored.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in scored.bytes)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the chunks and the whole answer of one request share."""

    kind: Kind
    model: ModelFacts
    choices: tuple[Choice, ...]
    created: int

    @property
    def texts(self) -> tuple[RunningGeneration, ...]:
        return tuple(choice.text for choice in self.choices)

    def envelope(self, *, chunk: bool) -> dict[str, Any]:
        chat = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self.choices[0].text.started.generation_id,
            "object": chat if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model.model_id,
            "system_fingerprint": fingerprint(self.model),
        }

    def whole(self, ends: Sequence[Completed]) -> dict[str, Any]:
        """The answer that is not streamed."""
        pairs = list(zip(self.choices, ends, strict=True))
        return {
            **self.envelope(chunk=False),
            "choices": [{**choice.whole(done), **self._own(choice, done)} for choice, done in pairs],
            "usage": self.usage(ends),
            "sae": pairs[0][0].extension(pairs[0][1]),
        }

    def last(self, choice: Choice, done: Completed, *, first: bool) -> dict[str, Any]:
        """A choice in its last chunk."""
        return {**choice.last(done, first=first), **self._own(choice, done)}

    def _own(self, choice: Choice, done: Completed) -> dict[str, Any]:
        return {"sae": choice.extension(done)} if len(self.choices) > 1 else {}

    def usage(self, ends: Sequence[Completed]) -> dict[str, Any]:
        read = sum(len(choice.prompt.token_ids) for choice in self.choices)
        made = sum(len(done.finished.token_ids) for done in ends)
        told: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        if any(choice.apart for choice in self.choices):
            thought = sum(done.finished.reasoning_tokens for done in ends)
            told["completion_tokens_details"] = {"reasoning_tokens": thought}
        return told
