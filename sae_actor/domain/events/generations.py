"""Generations: what one was made with, and how it ended."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..chats import MessageSpan, Reasoning, Tokenization
from ..refs import ActiveSae, FinishReason, StopWhen
from .payload import Payload, Problem
from .presets import PresetVersion
from .sampling import Sampling


class Receipt(Struct, frozen=True, kw_only=True):
    """Counts of what was run and what was written to."""

    tokens_prompt: int
    tokens_generated: int
    tokens_edited: int
    tokens_excluded: int
    mean_relative_norm: float
    """Mean of |difference| / |x| over the edited positions; 0 where none."""


class ScoreSummary(Struct, frozen=True, kw_only=True):
    """What came of a text that was scored. The counted tokens are those of its continuation; without one, all but the
    first."""

    counted: int
    sum_logprob: float
    """Of the counted tokens."""
    is_greedy: bool
    """No token was more probable than the counted one, at each of them."""
    kl_from_baseline: float | None = None
    """KL(baseline ‖ this) in nats, the mean over the counted tokens; None if it was not compared, or is infinite."""


class GenerationStarted(Payload, frozen=True, kw_only=True):
    generation_id: str
    kind: Literal["completion", "chat", "score"]
    """`score`: a given text, for which nothing is generated. Its continuation has `sampling.max_tokens` tokens, or one
    fewer with `runs_last`."""
    intervention: tuple[ActiveSae, ...]
    intervention_sha256: str
    sampling: Sampling
    tokens_prompt: int
    baseline: bool = False
    own_steering: bool = False
    """The request brought its own edits instead of the server's."""
    tag: str | None = None
    runs_last: bool = False
    """Of a text that is scored: the last token of its continuation was run too, for what would follow."""
    deterministic: bool = False
    """The same tokens were promised for the same request, whatever else runs."""
    watched: tuple[ActiveSae, ...] = ()
    """SAEs whose activations are read; that they are does not change the text."""
    stop_when: StopWhen | None = None
    turns: tuple[MessageSpan, ...] = ()
    """The chat's messages, if an edit needs them."""
    tokenization: Tokenization | None = None
    """What the request said of how its prompt becomes tokens; None: nothing."""
    reasoning: Reasoning | None = None
    """How reasoning is separated from content; None: all is content."""
    sink_window: int | None = None
    """A sink's norm is compared with the median of the prompt's first positions, this many; None: of the whole prompt,
    as in logs from before there was a window."""
    request_salt: str | None = None
    request_sha256: str | None = None
    """Of a request under an idempotency key: sha256 of salt ‖ canonical JSON of route and body, which distinguishes two
    requests under one key."""

    preset: PresetVersion | None = None
    """The preset that the intervention is; None: the request named none."""

    @property
    def saes(self) -> tuple[ActiveSae, ...]:
        """All that it needs on the device, each once or more."""
        stop = () if self.stop_when is None else (self.stop_when.sae,)
        return (*self.intervention, *self.watched, *stop)


class GenerationFinished(Payload, frozen=True, kw_only=True):
    generation_id: str
    started_position: int
    finish_reason: FinishReason
    intervention_sha256: str
    receipt: Receipt | None = None
    edited: tuple[tuple[int, int], ...] = ()
    """Ranges [from, to) of positions that were written to."""
    excluded: tuple[tuple[int, int], ...] = ()
    batch: tuple[int, int] | None = None
    """Fewest and most generations in a step of it, itself counted."""
    salt: str = ""
    prompt_sha256: str = ""
    output_sha256: str = ""
    """sha256 of salt ‖ token ids (little-endian u32 each). The output of a text that is scored is its continuation."""
    score: ScoreSummary | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    output_token_ids: tuple[int, ...] | None = None
    text: str | None = None
    """Only where `[audit] record_text` is on."""
    left_out: Problem | None = None
    """Why parts of what `record_text` records are missing. Its `fields` name them as `left_out`: the size of an event
    is limited."""
    error: Problem | None = None
