"""What the log says of one generation: the answer of `/api/generations` and of `log explain`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..chats import Reasoning, Tokenization
from ..events import PresetVersion, Problem, Receipt, Sampling, ScoreSummary
from ..refs import Exclusion, FinishReason, HookPoint, Mode, SaeFile
from ..weights import WeightsFiles
from .fields import Count, Position, Ranges
from .provenance import Cited

SteeringFrom: TypeAlias = Literal["request", "preset", "server"]
"""Who set the edits."""
GenerationState: TypeAlias = Literal["running", "finished", "failed", "cancelled", "interrupted"]


class ExplainedEdit(Struct, frozen=True, kw_only=True):
    """An edit as it was recorded, and in words."""

    feature: int
    strength: float
    method: str
    positions: Any
    exclude: tuple[str, ...]
    unit: str
    sae_id: str | None
    when: Any
    words: str


class ExplainedSae(Struct, frozen=True, kw_only=True):
    """One SAE of the intervention, where it came from, and since which events it was as it was."""

    sae_id: str
    repository_id: str | None
    revision: str | None
    path: str | None
    commit: str | None
    files: tuple[SaeFile, ...]
    format: str | None
    architecture: str | None
    weights_sha256: str
    weights_files: WeightsFiles
    hook_point: HookPoint
    hook_point_out: HookPoint | None
    mode: Mode
    exclude: tuple[Exclusion, ...] | None
    passes: tuple[Exclusion, ...] | None
    dtype: str | None
    steering: tuple[ExplainedEdit, ...]
    steering_from: SteeringFrom
    steering_enabled: bool | None
    since: tuple[Cited, ...]


class ExplainedModel(Struct, frozen=True, kw_only=True):
    model_id: str
    revision: str
    commit: str | None
    dtype: str
    device: str
    quantization: str | None
    """The scheme of its weights; null: plain numbers of `dtype`."""
    files: Any
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    environment: Annotated[dict[str, Any], Meta(description="versions, device and settings, as `ModelLoaded` has them")]
    environment_sha256: str
    since: tuple[Cited, ...]


class Agreement(Struct, frozen=True, kw_only=True):
    """Whether the recorded intervention is the one that the log itself comes to."""

    recomputed: str
    agrees: bool
    state_agrees: bool | None


class StopCondition(Struct, frozen=True, kw_only=True):
    sae_id: str
    feature: int
    above: float
    exclude: tuple[Exclusion, ...]


class ExplainedGeneration(Struct, frozen=True, kw_only=True):
    """What was active for one answer."""

    generation_id: str | None
    kind: Literal["completion", "chat", "score"] | None
    tag: str | None
    principal: str
    position: Position
    started: Cited
    finished: Annotated[Cited | None, Meta(description="the event that put its end on record, whatever end that was")]
    state: Annotated[
        GenerationState,
        Meta(
            description="running: no end is on record yet; finished: it came to an end (`finish_reason` says to which, "
            "`intervention_removed` among them); failed: `error` says why; cancelled: nobody read it any more; "
            "interrupted: the service ended before it did"
        ),
    ]
    erased: bool
    readable: bool
    model: ExplainedModel | None
    baseline: bool | None
    own_steering: bool | None
    preset: PresetVersion | None
    """The preset that the request named; null: none."""
    attached: tuple[str, ...]
    intervention: tuple[ExplainedSae, ...]
    intervention_sha256: str
    digest: Agreement
    watched: tuple[str, ...]
    stop_when: StopCondition | None
    runs_last: bool | None
    deterministic: bool | None
    sink_window: int | None
    sampling: Sampling | None
    tokenization: Tokenization | None
    reasoning: Reasoning | None
    tokens_prompt: Count | None
    tokens_generated: Count | None
    finish_reason: FinishReason | None
    error: Problem | None
    receipt: Receipt | None
    edited: Ranges
    excluded: Ranges
    batch: tuple[int, int] | None
    salt: str | None
    prompt_sha256: str | None
    output_sha256: str | None
    score: ScoreSummary | None
    prompt_token_ids: tuple[int, ...] | None
    output_token_ids: tuple[int, ...] | None
    text: str | None
    left_out: Problem | None


class ExplainedGenerations(Struct, frozen=True, kw_only=True):
    generations: tuple[ExplainedGeneration, ...]
