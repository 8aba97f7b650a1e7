"""Shapes of the answers to text requests: OpenAI's, and the extension `sae`."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from ...domain.events import Receipt
from ...domain.refs import Edit, Exclusion, FinishReason, HookPoint, Mode
from ...domain.views.fields import Digest, Position
from ...domain.weights import WeightsFile
from ...ports import FeatureActivation

Count = Annotated[int, Meta(ge=0)]


class AppliedSae(TypedDict):
    sae_id: str
    weights_sha256: str
    weights_files: list[WeightsFile]
    hook_point: HookPoint
    mode: Mode
    exclude: NotRequired[list[Exclusion]]
    steering: list[Edit]


class AppliedIntervention(TypedDict):
    """What was active, and the receipt of what was written."""

    generation_id: str
    position: Position
    interventions: list[AppliedSae]
    intervention_sha256: Digest
    receipt: Receipt
    warnings: list[str]
    seed: int
    features: NotRequired[list[list[FeatureActivation]]]
    features_by_sae: NotRequired[dict[str, list[list[FeatureActivation]]]]


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: Count


class Usage(TypedDict):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class ChatToken(TypedDict):
    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None


class ScoredChatToken(ChatToken):
    top_logprobs: list[ChatToken]


class ChatLogprobs(TypedDict):
    content: list[ScoredChatToken]
    refusal: None


class _Choice(TypedDict):
    index: Count
    sae: NotRequired[AppliedIntervention]


class CompletionChoice(_Choice):
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionPart(_Choice):
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class ChatAnswer(TypedDict):
    role: Literal["assistant"]
    content: str
    reasoning_content: NotRequired[str | None]


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]


class ChatChoice(_Choice):
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatPart(_Choice):
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class _Envelope(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str


class Completion(_Envelope):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage
    sae: AppliedIntervention


class ChatCompletion(_Envelope):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    sae: AppliedIntervention


class CompletionChunk(_Envelope):
    """One event of a streamed completion; the last one has `sae`."""

    object: Literal["text_completion"]
    choices: list[CompletionPart]
    usage: NotRequired[Usage]
    sae: NotRequired[AppliedIntervention]


class ChatCompletionChunk(_Envelope):
    """One event of a streamed chat; the last one has `sae`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]
    usage: NotRequired[Usage]
    sae: NotRequired[AppliedIntervention]


class Comparison(TypedDict):
    steered: Completion
    baseline: Completion


class ComparisonChunk(TypedDict, total=False):
    """One event of a streamed comparison: a chunk of one of the two."""

    steered: CompletionChunk
    baseline: CompletionChunk


class ChatComparison(TypedDict):
    steered: ChatCompletion
    baseline: ChatCompletion


class ChatComparisonChunk(TypedDict, total=False):
    """One event of a streamed comparison of chats: a chunk of one of the two."""

    steered: ChatCompletionChunk
    baseline: ChatCompletionChunk


class ListedModel(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["sae-actor"]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ListedModel]
