"""Answers to text requests: OpenAI's, and the extension `sae`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from ...domain.events import PresetVersion, Receipt
from ...domain.refs import Edit, Exclusion, FinishReason, HookPoint, Mode
from ...domain.views.fields import Count, Digest, Position
from ...domain.weights import WeightsFiles
from ...ports import FeatureActivation, PositionDetails

FinalReason: TypeAlias = Literal["stop", "length", "content_filter", "tool_calls"]
"""OpenAI's finish reasons; its clients know no other."""
FINAL: dict[FinishReason, FinalReason] = {
    "stop": "stop",
    "length": "length",
    "feature": "stop",
    "intervention_removed": "length",
    "cancelled": "length",
}
"""The nearest one for each of ours. A text that ends for another reason is answered with an error."""

Rows: TypeAlias = tuple[tuple[FeatureActivation, ...], ...]


class AppliedSae(Struct, frozen=True, kw_only=True):
    sae_id: str
    weights_sha256: str
    weights_files: WeightsFiles
    hook_point: HookPoint
    mode: Mode
    steering: tuple[Edit, ...]
    exclude: tuple[Exclusion, ...] | UnsetType = UNSET
    """What it was told to pass through, where it was told anything."""


class NamedLogprobs(Struct, frozen=True, kw_only=True):
    """A token of `sae.logprobs_of`."""

    token: str
    token_id: Count
    logprobs: tuple[float, ...]
    """At each generated token, of this one in its place: of the logits under the intervention, in float32, before
    penalties, temperature and the like."""


class ChunkIntervention(Struct, frozen=True, kw_only=True):
    """`sae` of a chunk: with `sae.details`, each has the `positions` that were run for its tokens, the first those of
    the prompt. The last one has everything else."""

    generation_id: str | UnsetType = UNSET
    position: Position | UnsetType = UNSET
    interventions: tuple[AppliedSae, ...] | UnsetType = UNSET
    intervention_sha256: Digest | UnsetType = UNSET
    finish_reason: FinishReason | UnsetType = UNSET
    receipt: Receipt | UnsetType = UNSET
    batch: tuple[Count, Count] | UnsetType | None = UNSET
    warnings: tuple[str, ...] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    preset: PresetVersion | UnsetType = UNSET
    """The preset that the interventions are, and which version of it."""
    features: Rows | UnsetType = UNSET
    """At each position that was run: the prompt's, and all generated tokens' but the last one's."""
    features_by_sae: dict[str, Rows] | UnsetType = UNSET
    """The same, where several SAEs are watched."""
    logprobs_of: tuple[NamedLogprobs, ...] | UnsetType = UNSET
    """Of the tokens that `sae.logprobs_of` names, in its order; empty if no token was generated."""
    positions: tuple[PositionDetails, ...] | UnsetType = UNSET
    """With `sae.details`: what was done at each position that was run; never on record."""


class AppliedIntervention(ChunkIntervention, frozen=True, kw_only=True):
    """What was active, and the receipt of what was written."""

    generation_id: str
    position: Position
    interventions: tuple[AppliedSae, ...]
    intervention_sha256: Digest
    finish_reason: FinishReason
    """Why the text ended; OpenAI's nearest word for it is the choice's `finish_reason`."""
    receipt: Receipt
    batch: tuple[Count, Count] | None
    """Fewest and most generations in a step of it, itself counted."""
    warnings: tuple[str, ...]
    seed: int


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: Count


class Usage(Struct, frozen=True, kw_only=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class CompletionLogprobs(Struct, frozen=True, kw_only=True):
    """With `echo` the prompt's tokens come first. The first of them has no log probability."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]
    text_offset: tuple[Count, ...]


class ChatToken(Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[Annotated[int, Meta(ge=0, le=255)], ...] | None


class ScoredChatToken(ChatToken, frozen=True, kw_only=True):
    top_logprobs: tuple[ChatToken, ...]


class ChatLogprobs(Struct, frozen=True, kw_only=True):
    content: tuple[ScoredChatToken, ...]
    refusal: str | None


class CompletionPart(Struct, frozen=True, kw_only=True):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinalReason | None
    sae: ChunkIntervention | UnsetType = UNSET


class CompletionChoice(CompletionPart, frozen=True, kw_only=True):
    finish_reason: FinalReason
    sae: AppliedIntervention | UnsetType = UNSET


class ChatAnswer(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"]
    content: str
    reasoning_content: str | UnsetType | None = UNSET


class ChatDelta(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: Count
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinalReason
    sae: AppliedIntervention | UnsetType = UNSET


class ChatPart(Struct, frozen=True, kw_only=True):
    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinalReason | None
    sae: ChunkIntervention | UnsetType = UNSET


class _Envelope(Struct, frozen=True, kw_only=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class Completion(_Envelope, frozen=True, kw_only=True):
    object: Literal["text_completion"]
    choices: tuple[CompletionChoice, ...]
    usage: Usage
    sae: AppliedIntervention


class ChatCompletion(_Envelope, frozen=True, kw_only=True):
    object: Literal["chat.completion"]
    choices: tuple[ChatChoice, ...]
    usage: Usage
    sae: AppliedIntervention


class CompletionChunk(_Envelope, frozen=True, kw_only=True):
    """One event of a streamed completion; the last one has the whole of `sae`."""

    object: Literal["text_completion"]
    choices: tuple[CompletionPart, ...]
    usage: Usage | UnsetType = UNSET
    sae: ChunkIntervention | UnsetType = UNSET


class ChatCompletionChunk(_Envelope, frozen=True, kw_only=True):
    """One event of a streamed chat; the last one has the whole of `sae`."""

    object: Literal["chat.completion.chunk"]
    choices: tuple[ChatPart, ...]
    usage: Usage | UnsetType = UNSET
    sae: ChunkIntervention | UnsetType = UNSET


class Comparison(Struct, frozen=True, kw_only=True):
    steered: Completion
    baseline: Completion


class ComparisonChunk(Struct, frozen=True, kw_only=True):
    """One event of a streamed comparison: a chunk of one of the two."""

    steered: CompletionChunk | UnsetType = UNSET
    baseline: CompletionChunk | UnsetType = UNSET


class ChatComparison(Struct, frozen=True, kw_only=True):
    steered: ChatCompletion
    baseline: ChatCompletion


class ChatComparisonChunk(Struct, frozen=True, kw_only=True):
    """One event of a streamed comparison of chats: a chunk of one of the two."""

    steered: ChatCompletionChunk | UnsetType = UNSET
    baseline: ChatCompletionChunk | UnsetType = UNSET


class ListedPreset(Struct, frozen=True, kw_only=True):
    """Whether a preset can be used now."""

    usable: bool
    missing: tuple[str, ...]
    """Its SAEs that are not attached."""
    incompatible: tuple[str, ...]
    """Its SAEs that are attached with other weights than it was saved for."""


class ListedModel(Struct, frozen=True, kw_only=True):
    id: str
    """The public name; of a preset with `@` and the preset's."""
    object: Literal["model"]
    created: int
    owned_by: Literal["sae-actor"]
    root: str
    """What its tokenizer is loaded by, as clients of vLLM read it: the repository; of a model in a folder of the
    service's machine the public name."""
    max_model_len: Count
    """Tokens of its context."""
    description: str | UnsetType | None = UNSET
    """Of a preset."""
    sae: ListedPreset | UnsetType = UNSET
    """Of a preset."""


class ModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"]
    data: tuple[ListedModel, ...]
