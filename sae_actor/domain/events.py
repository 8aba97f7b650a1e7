"""What happened: one payload struct per event type, and the envelope that the log stores.

The SSE data and the log row *are* the `Event`; its `data` holds the stored bytes of a payload, never a re-encoding.
Events are facts: new fields have defaults, a field that must change is a new schema, so that every log still folds.

An `Intent` is the first event of an accepted command, with the command's digest. `request_position` in an outcome is
the position of the intent that asked for it, the fencing token.
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from . import refs
from .refs import ActiveSae, Edit, FinishReason, HookPoint, Mode, ModelFacts, SaeDescription, SaeFile, StopWhen, Turn
from .upcasting import upcast

MAX_PAYLOAD_BYTES = 255 * 1024
"""Of one payload as JSON. A log takes 256 KiB for an event: payload, type, ids, time and principal."""


class Problem(Struct, frozen=True):
    """Why something failed, in the codes of the contract; never an exception's repr."""

    code: str
    detail: str
    fields: dict[str, Any] = {}


class Payload(Struct, frozen=True, kw_only=True):
    """The `data` of an event. The event's `type` is the class name."""

    schema: ClassVar[int] = 1  # raised with an entry in `upcasting`

    @property
    def type(self) -> str:
        return type(self).__name__


class Intent(Payload, frozen=True, kw_only=True):
    request_sha256: str = ""


# — the service itself —


class ActorStarted(Payload, frozen=True, kw_only=True):
    """The service took the log over; whatever lived in device memory is wanted but missing from here on."""

    version: str
    max_attachments: int = 1
    drain_seconds: float = 3.0


class ActorStopped(Payload, frozen=True, kw_only=True):
    """A clean stop: work that was under way was not to blame."""

    reason: str = "requested"


class EffectInterrupted(Payload, frozen=True, kw_only=True):
    """An effect was under way when the process ended; it is run again, or given up after three deaths."""

    effect: Literal["load_model", "download", "import", "attach", "detach", "delete"]
    request_position: int
    attempt: int
    sae_id: str | None = None


class CommandRejected(Payload, frozen=True, kw_only=True):
    """A command that was understood and refused; under a flood only some are written."""

    command: str
    error: Problem
    sae_id: str | None = None
    not_recorded: int = 0
    """Refusals since the last one on record that were not written."""


class GpuLost(Payload, frozen=True, kw_only=True):
    """The device cannot be used any more by this process, which ends after this event."""

    detail: str


# — the model —


class ModelLoadRequested(Intent, frozen=True, kw_only=True):
    model: str
    revision: str
    dtype: str
    device: str
    joined: int | None = None
    """Position of the running load of the same model that this one shares the outcome of."""
    reused: bool = False
    """The model is loaded already."""


class ModelLoaded(Payload, frozen=True, kw_only=True):
    request_position: int
    model: ModelFacts
    restored: bool = False
    reused: bool = False


class ModelLoadFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    error: Problem
    restored: bool = False


class ModelUnloaded(Intent, frozen=True, kw_only=True):
    model_id: str | None = None


# — SAEs on disk —


class DownloadRequested(Intent, frozen=True, kw_only=True):
    sae_id: str
    source: Literal["hub", "import"] = "hub"
    repository_id: str | None = None
    revision: str | None = None
    path: str | None = None
    """Path inside the repository; for an import the resolved folder."""
    force: bool = False
    joined: int | None = None
    reused: bool = False


class DownloadCompleted(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    source: Literal["hub", "import"] = "hub"
    commit: str | None = None
    files: tuple[SaeFile, ...]
    sae: SaeDescription
    weights_sha256: str
    """Digest over the files that hold weights: what an intervention names."""
    reused: bool = False


class DownloadFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem


class DownloadCancelled(Intent, frozen=True, kw_only=True):
    request_position: int
    sae_id: str


class DeleteRequested(Intent, frozen=True, kw_only=True):
    sae_id: str


class SaeDeleted(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    freed_bytes: int


class DeleteFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem


# — SAEs on the model —


class AttachRequested(Intent, frozen=True, kw_only=True):
    sae_id: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    mode: Mode = "steer"
    dtype: str = "float32"
    replaces: tuple[str, ...] = ()
    """SAEs that are detached in the same transaction in which this one is attached."""
    warnings: tuple[str, ...] = ()


class SaeAttached(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    mode: Mode = "steer"
    dtype: str = "float32"
    """Type in which the SAE computes."""
    weights_sha256: str = ""
    memory_bytes: int = 0
    """Estimate from the shapes, section 4 of the contract."""
    device_bytes: int = 0
    """What the device really took."""
    steering: tuple[Edit, ...] = ()
    enabled: bool = True
    monitoring: refs.Monitoring | None = None
    """What came along: of a moved or restored SAE."""
    restored: bool = False


class AttachFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem
    restored: bool = False


class DetachRequested(Intent, frozen=True, kw_only=True):
    sae_id: str


class SaeDetached(Payload, frozen=True, kw_only=True):
    request_position: int
    """The intent that took it out: a DetachRequested, or the AttachRequested that replaced it."""
    attach_position: int
    """The AttachRequested that had brought it."""
    sae_id: str
    freed_bytes: int
    reason: Literal["requested", "replaced", "fault"] = "requested"


class SteeringChanged(Intent, frozen=True, kw_only=True):
    sae_id: str
    features: tuple[Edit, ...]
    enabled: bool = True


class MonitoringChanged(Intent, frozen=True, kw_only=True):
    sae_id: str
    enabled: bool
    features: tuple[int, ...] | None = None
    top_k: int = 10


class HookFaulted(Payload, frozen=True, kw_only=True):
    """The SAE could not be computed on a live activation; it is detached, the requests under it fail."""

    sae_id: str
    request_position: int
    error: Problem


# — text —


class Sampling(Struct, frozen=True, kw_only=True):
    """Sampling settings in force, seed included."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


class Receipt(Struct, frozen=True, kw_only=True):
    """Counts of what was run and what was written to."""

    tokens_prompt: int
    tokens_generated: int
    tokens_edited: int
    tokens_excluded: int
    mean_relative_norm: float
    """Mean of |difference| / |x| over the edited positions; 0 where none."""


class GenerationStarted(Payload, frozen=True, kw_only=True):
    generation_id: str
    kind: Literal["completion", "chat"]
    intervention: tuple[ActiveSae, ...]
    intervention_sha256: str
    sampling: Sampling
    tokens_prompt: int
    baseline: bool = False
    own_steering: bool = False
    """The request brought its own edits in place of the server's."""
    tag: str | None = None
    deterministic: bool = False
    """The same tokens were promised for the same request, whatever else runs."""
    watched: tuple[ActiveSae, ...] = ()
    """SAEs whose activations are read; that they are does not change the text."""
    stop_when: StopWhen | None = None
    turns: tuple[Turn, ...] = ()
    """Of the chat, where an edit asks for them."""

    @property
    def saes(self) -> tuple[ActiveSae, ...]:
        """All that the text needs on the device, each once or more."""
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
    """Fewest and most texts in a step of it, itself counted."""
    salt: str = ""
    prompt_sha256: str = ""
    output_sha256: str = ""
    """sha256 of salt ‖ token ids (little-endian u32 each)."""
    prompt_token_ids: tuple[int, ...] | None = None
    output_token_ids: tuple[int, ...] | None = None
    text: str | None = None
    """Only where `[audit] record_text` is on."""
    error: Problem | None = None


class PayloadRedacted(Payload, frozen=True, kw_only=True):
    redacted_position: int
    why: str


class LogTruncated(Payload, frozen=True, kw_only=True):
    known_position: int
    known_hash: str
    why: str


PAYLOADS: dict[str, type[Payload]] = {
    cls.__name__: cls
    for cls in (
        ActorStarted, ActorStopped, ModelLoadRequested, ModelLoaded, ModelLoadFailed, ModelUnloaded,
        DownloadRequested, DownloadCompleted, DownloadFailed, DownloadCancelled,
        AttachRequested, SaeAttached, AttachFailed, DetachRequested, SaeDetached,
        DeleteRequested, SaeDeleted, DeleteFailed, SteeringChanged, MonitoringChanged,
        EffectInterrupted, HookFaulted, GpuLost, CommandRejected,
        GenerationStarted, GenerationFinished, PayloadRedacted, LogTruncated,
    )
}  # fmt: skip
"""Event type → payload struct; the order is that of the contract."""

_DECODERS = {name: msgspec.json.Decoder(cls) for name, cls in PAYLOADS.items()}

ERASED = b"null"
"""The `data` of an event whose payload was redacted."""


class Draft(Struct, frozen=True, kw_only=True):
    """An event that is not in the log yet: no position, no hash."""

    event_id: str
    type: str
    schema: int
    time: str
    command_id: str | None
    principal: str
    data: msgspec.Raw


class Event(Struct, frozen=True, kw_only=True):
    """One row of the log, one frame of the stream."""

    position: int
    event_id: str
    type: str
    schema: int
    time: str
    command_id: str | None
    principal: str
    data: msgspec.Raw
    hash: str

    def payload(self) -> Payload | None:
        """The typed payload, one of an earlier schema as today's; None for a type or schema that this version does
        not know, and where it was erased. Raises `MsgspecError`, `UnicodeDecodeError` for bytes that are no such."""
        cls = PAYLOADS.get(self.type)
        if cls is None or self.schema > cls.schema or memoryview(self.data) == ERASED:
            return None
        if self.schema < cls.schema:
            return msgspec.convert(upcast(self.type, self.schema, cls.schema, msgspec.json.decode(self.data)), cls)
        return _DECODERS[self.type].decode(self.data)


def draft(payload: Payload, *, time: str, command_id: str | None, principal: str) -> Draft:
    """Make the payload ready for the log; its JSON is made here, once, and hashed and sent as it is."""
    return Draft(
        event_id=str(uuid.uuid4()),
        type=payload.type,
        schema=payload.schema,
        time=time,
        command_id=command_id,
        principal=principal,
        data=msgspec.Raw(msgspec.json.encode(payload)),
    )
