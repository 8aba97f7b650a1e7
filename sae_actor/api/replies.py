"""Answers to text requests in OpenAI's shapes: envelope, choices, log probabilities, usage, and `sae`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..actor import Done, RunningText
from ..domain.refs import ModelFacts
from ..domain.wording import ranges_in_words
from ..ports import Finished, ScoredToken, Token, Tokenized
from .openai import fingerprint

Kind = Literal["completion", "chat"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One text of an answer: a generation of its own."""

    kind: Kind
    index: int
    text: RunningText
    prompt: Tokenized
    echo: str = ""
    scores: bool = False
    """Log probabilities were asked for."""

    def whole(self, done: Done) -> dict[str, Any]:
        """The choice at its end."""
        return self._choice(
            self.echo + done.finished.text, self.logprobs(self.text.made), done.finished.reason, chunk=False
        )

    def part(self, content: str, tokens: Sequence[Token] = (), *, first: bool = False) -> dict[str, Any]:
        """The choice in a chunk that brings `content` and these tokens."""
        return self._choice(content, self.logprobs(tokens) if tokens else None, None, chunk=True, first=first)

    def last(self, done: Done, *, first: bool = False) -> dict[str, Any]:
        """The choice in its last chunk."""
        return self._choice("", None, done.finished.reason, chunk=True, first=first)

    def _choice(
        self, content: str, logprobs: Any, finish_reason: str | None, *, chunk: bool, first: bool = False
    ) -> dict[str, Any]:
        if self.kind == "completion":
            said: dict[str, Any] = {"text": content}
        elif chunk:
            said = {"delta": {**({"role": "assistant"} if first else {}), **({"content": content} if content else {})}}
        else:
            said = {"message": {"role": "assistant", "content": content}}
        return {"index": self.index, **said, "logprobs": logprobs, "finish_reason": finish_reason}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """One entry per counted token, so also for the end token; None where none were asked for."""
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

    def extension(self, done: Done) -> dict[str, Any]:
        """`sae` in the answer: what was active, and the receipt of what was written."""
        started = self.text.started
        shown = ("sae_id", "weights_sha256", "hook_point", "mode", "steering")
        active = [msgspec.to_builtins(sae) for sae in started.intervention]
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
    """What it was told to pass through, where it was told anything."""
    return {} if sae["exclude"] is None else {"exclude": sae["exclude"]}


def warnings(finished: Finished) -> list[str]:
    """What is odd about how a text was made."""
    if not finished.edited_sinks:
        return []
    where = ranges_in_words(finished.edited_sinks)
    return [f'attention sinks were edited, at positions {where}: "exclude": [] leaves none of them out']


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
    def texts(self) -> tuple[RunningText, ...]:
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

    def whole(self, ends: Sequence[Done]) -> dict[str, Any]:
        """The answer that is not streamed."""
        pairs = list(zip(self.choices, ends, strict=True))
        return {
            **self.envelope(chunk=False),
            "choices": [{**choice.whole(done), **self._own(choice, done)} for choice, done in pairs],
            "usage": self.usage(ends),
            "sae": pairs[0][0].extension(pairs[0][1]),
        }

    def last(self, choice: Choice, done: Done, *, first: bool) -> dict[str, Any]:
        """A choice in its last chunk."""
        return {**choice.last(done, first=first), **self._own(choice, done)}

    def _own(self, choice: Choice, done: Done) -> dict[str, Any]:
        return {"sae": choice.extension(done)} if len(self.choices) > 1 else {}

    def usage(self, ends: Sequence[Done]) -> dict[str, int]:
        read = sum(len(choice.prompt.token_ids) for choice in self.choices)
        made = sum(len(done.finished.token_ids) for done in ends)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
