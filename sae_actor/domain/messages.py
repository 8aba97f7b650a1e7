"""The service's own messages: everything in the mailbox besides commands and reports."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from . import events as ev
from .chats import MessageSpan, Reasoning, Tokenization
from .commands import AnyCommand, LoadModel
from .refs import Edits, Exclusions, Feature, Mode, ReadingExclusions, SaeId, Strength, check_passed
from .reports import Report


class Start(Struct, frozen=True, kw_only=True):
    """The service took the log over."""

    version: str
    max_attachments: int = 1
    drain_seconds: float = 3.0
    model: LoadModel | None = None
    """What the settings name, if anything: to be asked for unless the log has it."""


class Stop(Struct, frozen=True):
    """The service stops gracefully."""

    reason: str = "requested"


class RequestedIntervention(Struct, frozen=True, forbid_unknown_fields=True):
    """One SAE of a request's own intervention, which replaces the server's."""

    sae_id: SaeId
    mode: Mode = "steer"
    steering: Edits = ()
    exclude: Exclusions | None = None
    """As of `Attach`."""

    def __post_init__(self) -> None:
        check_passed(self.exclude, self.mode)


class OwnIntervention(Struct, frozen=True, forbid_unknown_fields=True):
    """`sae` where activations are read: under what the prompt is run. Nothing said, or `baseline`: under nothing;
    `"baseline": false`: under the server's own."""

    interventions: Annotated[tuple[RequestedIntervention, ...], Meta(max_length=64)] | None = None
    steering: Edits | None = None
    baseline: bool | None = None


class RequestedStop(Struct, frozen=True, forbid_unknown_fields=True):
    """`stop_when`: end the text once a feature is above `above` at a generated token."""

    feature: Feature
    above: Strength
    sae_id: SaeId | None = None
    """None: of the only attached SAE."""
    exclude: ReadingExclusions = ("sink",)
    """Tokens at which it never holds."""


class AdmitGeneration(Struct, frozen=True, kw_only=True):
    """A generation that is ready to run: freeze the intervention of this moment for it."""

    generation_id: str
    kind: Literal["completion", "chat"]
    tokens_prompt: int
    sampling: ev.Sampling
    baseline: bool = False
    steering: Edits | None = None
    interventions: Annotated[tuple[RequestedIntervention, ...], Meta(max_length=64)] | None = None
    expect_position: int | None = None
    tag: str | None = None
    deterministic: bool = False
    watch: bool = False
    """The answer reports activations of the attached SAEs."""
    stop_when: RequestedStop | None = None
    turns: tuple[MessageSpan, ...] | None = ()
    """As `Tokenized` has them."""
    tokenization: Tokenization | None = None
    """How the prompt was tokenized, if the request says so."""
    reasoning: Reasoning | None = None
    """As `Tokenized` has it."""
    request_salt: str | None = None
    request_sha256: str | None = None
    """Of a request under an idempotency key; as `GenerationStarted` has them."""
    model_position: int | None = None
    """`ModelState.request_position` of the model whose tokenizer read the prompt: no other may run it. None: any."""


class AdmitGenerations(Struct, frozen=True, kw_only=True):
    """Text requests that belong together: all are admitted under one state, or none."""

    requests: tuple[AdmitGeneration, ...]


Message: TypeAlias = AnyCommand | Start | Stop | AdmitGeneration | AdmitGenerations | Report
