"""What the log stores of an event, and the typed payload in it.

The SSE data and the log row *are* the `Event`; its `data` holds the stored bytes of a payload, never a re-encoding.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import ClassVar

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from . import generations, life, model, presets, saes
from .payload import Payload
from .upcasting import upcast

PAYLOADS: dict[str, type[Payload]] = {
    cls.__name__: cls
    for cls in (
        life.ActorStarted, life.ActorStopped,
        model.ModelLoadRequested, model.ModelLoaded, model.ModelLoadFailed, model.ModelUnloaded,
        saes.DownloadRequested, saes.DownloadCompleted, saes.DownloadFailed, saes.DownloadCancelled,
        saes.AttachRequested, saes.SaeAttached, saes.AttachFailed, saes.DetachRequested, saes.SaeDetached,
        saes.DeleteRequested, saes.SaeDeleted, saes.DeleteFailed, saes.SteeringChanged, saes.MonitoringChanged,
        life.EffectInterrupted, saes.HookFaulted, life.GpuLost, life.CommandRejected,
        generations.GenerationStarted, generations.GenerationFinished, life.PayloadRedacted, life.LogTruncated,
        life.SettingsReloaded, presets.PresetSaved, presets.PresetDeleted, life.LogForked,
    )
}  # fmt: skip
"""Event type → payload struct. The order is fixed: a test pins it."""

_DECODERS = {name: msgspec.json.Decoder(cls) for name, cls in PAYLOADS.items()}

ERASED = b"null"
"""The `data` of an event whose payload was redacted."""


class Draft(Struct, frozen=True, kw_only=True, dict=True):
    """An event that is not in the log yet; at `position` if all before it are stored."""

    position: int
    event_id: str
    type: str
    schema: int
    time: str
    command_id: str | None
    principal: str
    data: msgspec.Raw
    made_of: ClassVar[Payload | None] = None
    """The payload, where `data` was made of it in this process: it is not decoded again."""

    def payload(self) -> Payload | None:
        """The typed payload, one of an earlier schema as today's; None for a type or schema that this version does
        not know, and if it was erased. Raises `MsgspecError`, `UnicodeDecodeError` for malformed bytes."""
        if self.made_of is not None:
            return self.made_of
        cls = PAYLOADS.get(self.type)
        if cls is None or self.schema > cls.schema or memoryview(self.data) == ERASED:
            return None
        if self.schema < cls.schema:
            return msgspec.convert(upcast(self.type, self.schema, cls.schema, msgspec.json.decode(self.data)), cls)
        return _DECODERS[self.type].decode(self.data)


class Event(Draft, frozen=True, kw_only=True):
    """One row of the log, one frame of the stream."""

    hash: str


def draft(payload: Payload, *, time: str, command_id: str | None, principal: str, position: int = 0) -> Draft:
    """Make the payload ready for the log; its JSON is made here, once, and hashed and sent as it is."""
    made = Draft(
        position=position,
        event_id=str(uuid.uuid4()),
        type=payload.type,
        schema=payload.schema,
        time=time,
        command_id=command_id,
        principal=principal,
        data=msgspec.Raw(msgspec.json.encode(payload)),
    )
    force_setattr(made, "made_of", payload)
    return made


def payload_of(event: Draft) -> Payload | None:
    """As `Draft.payload`; None for malformed bytes too."""
    try:
        return event.payload()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def stored(drafts: Sequence[Draft], events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The events that the log made of drafts; each knows its payload as the draft does."""
    for made, event in zip(drafts, events, strict=True):
        force_setattr(event, "made_of", made.made_of)
    return events
