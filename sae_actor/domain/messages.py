"""The service's own messages: everything in the mailbox besides commands and reports."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from . import events as ev
from .chats import MessageSpan, Reasoning, Tokenization
from .commands import AnyCommand, Import, KeepVectors, LoadModel, PresetName, RequestedIntervention, SavePreset
from .refs import Edit, Edits, Feature, ReadingExclusions, SaeId, Strength
from .reports import Report

Interventions: TypeAlias = Annotated[tuple[RequestedIntervention, ...], Meta(max_length=64)]


class LogOrigin(Struct, frozen=True, kw_only=True):
    """How a log came to be in its folder, other than by a service."""

    reason: Literal["restored", "imported"]
    log_id: str
    head: ev.LogHead
    """Then: a redaction may have come before the first start."""


class TakenOver(Struct, frozen=True, kw_only=True):
    """The log that a service takes over, as it was found."""

    log_id: str
    head_hash: str
    log_file: ev.LogFile
    origin: LogOrigin | None = None
    branch_id: str
    """A fresh one, which the log gets if it is a fork."""


class Start(Struct, frozen=True, kw_only=True):
    """The service takes the log over."""

    version: str
    max_attachments: int = 1
    drain_seconds: float = 3.0
    model: LoadModel | None = None
    """The model of the settings, if any: it is loaded unless the log already requires it."""
    log: TakenOver | None = None
    """None: a log without files, which is nobody's copy."""


class Stop(Struct, frozen=True):
    """The service stops gracefully."""

    reason: str = "requested"


class OwnIntervention(Struct, frozen=True, forbid_unknown_fields=True):
    """`sae` of a request for activations: the intervention under which the prompt is run. Empty, or with `baseline`:
    none; with `"baseline": false`: the server's own."""

    interventions: Interventions | None = None
    steering: Edits | None = None
    baseline: bool | None = None
    preset: PresetName | None = None


class RequestedStop(Struct, frozen=True, forbid_unknown_fields=True):
    """`stop_when`: end the text once a feature is above `above` at a generated token."""

    feature: Feature
    above: Strength
    sae_id: SaeId | None = None
    """None: the only attached SAE."""
    exclude: ReadingExclusions = ("sink",)
    """Tokens at which the condition never holds."""


class AdmitGeneration(Struct, frozen=True, kw_only=True):
    """Admit a generation, and freeze the intervention in force for it."""

    generation_id: str
    kind: Literal["completion", "chat", "score"]
    tokens_prompt: int
    sampling: ev.Sampling
    baseline: bool = False
    steering: Edits | None = None
    interventions: Interventions | None = None
    preset: PresetName | None = None
    expect_position: int | None = None
    tag: str | None = None
    runs_last: bool = False
    """As in `GenerationStarted`."""
    deterministic: bool = False
    watch: bool = False
    """The answer reports activations of the attached SAEs."""
    stop_when: RequestedStop | None = None
    turns: tuple[MessageSpan, ...] | None = ()
    """As in `Tokenized`."""
    tokenization: Tokenization | None = None
    """How the prompt was tokenized, if the request says so."""
    reasoning: Reasoning | None = None
    """As in `Tokenized`."""
    request_salt: str | None = None
    request_sha256: str | None = None
    """Salt and digest of a request under an idempotency key, as in `GenerationStarted`."""
    model_position: int | None = None
    """`ModelState.request_position` of the model whose tokenizer read the prompt: only that model may run it. None: any
    model."""


class AdmitGenerations(Struct, frozen=True, kw_only=True):
    """Text requests that belong together: all are admitted under one state, or none."""

    requests: tuple[AdmitGeneration, ...]


class WeighedImport(Struct, frozen=True, kw_only=True):
    """An import with the digest of its weights."""

    command: Import
    digest: str
    """Of the weight files as they lie there; of a pickle that of its own bytes."""


class ResolvedPreset(Struct, frozen=True, kw_only=True):
    """A preset whose strengths are resolved to raw ones."""

    command: SavePreset
    strengths: tuple[tuple[Edit, ...], ...]
    """The edits of each of its interventions, with raw strengths."""
    weights: tuple[str, ...]
    """Digest of the weights that each of these was resolved for."""


Message: TypeAlias = (
    AnyCommand
    | KeepVectors
    | WeighedImport
    | ResolvedPreset
    | Start
    | Stop
    | AdmitGeneration
    | AdmitGenerations
    | Report
)
