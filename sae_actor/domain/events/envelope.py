"""What the log stores of an event, and the typed payload in it.

The SSE data and the log row *are* the `Event`; its `data` holds the stored bytes of a payload, never a re-encoding.
"""

from __future__ import annotations

import uuid

import msgspec
from msgspec import Struct

from . import generations, life, model, saes
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
    )
}  # fmt: skip
"""Event type → payload struct. The order is fixed: a test pins it."""

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
        not know, and if it was erased. Raises `MsgspecError`, `UnicodeDecodeError` for malformed bytes."""
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
