"""`evolve`, the one way the state changes.

Total: it never raises and knows no clock, no randomness and no I/O. An event that does not fit
(a late report of a cancelled attempt, a payload that was erased) moves the position and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from msgspec.structs import replace

from . import events as ev
from .events import Draft, Event, payload_of
from .folds.attachments import attachments_after
from .folds.labels import labels_after
from .folds.restart import in_a_row, interrupted, wanted_after_start
from .folds.runs import runs_after
from .state import EMPTY, AttachmentState, ModelState, OpenCommand, OpenGeneration, Preset, SaeRecord, State
from .structs import filled

T = TypeVar("T")

COMMAND_OF_INTENT: dict[type[ev.Payload], str] = {
    ev.ModelLoadRequested: "LoadModel",
    ev.DownloadRequested: "Download",
    ev.AttachRequested: "Attach",
    ev.DetachRequested: "Detach",
    ev.DeleteRequested: "Delete",
    ev.RunRequested: "Run",
}
"""Intent → the name of its command, for commands that stay open until an outcome names the intent's position."""


_OUTCOMES = (
    ev.ModelLoaded | ev.ModelLoadFailed
    | ev.DownloadCompleted | ev.DownloadFailed | ev.DownloadCancelled
    | ev.SaeAttached | ev.AttachFailed
    | ev.SaeDeleted | ev.DeleteFailed
    | ev.RunCompleted | ev.RunFailed | ev.RunCancelled
)  # fmt: skip


def fold(events: Iterable[Event], state: State = EMPTY) -> State:
    """The state after all events."""
    for event in events:
        state = evolve(state, event)
    return state


def evolve(state: State, event: Draft) -> State:
    """The state after one event; total."""
    payload = payload_of(event)
    if payload is None:
        return replace(state, position=event.position)
    after = _update_commands(_apply(state, event, payload), event, payload)
    # The revision is what If-Match compares: generations, which come and go with every request, leave it alone.
    changes_revision = (
        after.model is not state.model
        or after.attachments != state.attachments
        or after.saes is not state.saes
        or after.presets is not state.presets
        or isinstance(payload, ev.MonitoringChanged)
    )
    return replace(after, position=event.position, revision=event.position if changes_revision else state.revision)


def _apply(state: State, event: Draft, payload: ev.Payload) -> State:
    match payload:
        case ev.ActorStarted():
            return wanted_after_start(state, payload)
        case ev.LogForked():
            return replace(state, branch_id=payload.branch_id, forked_at=event.position)
        case ev.ActorStopped():
            return replace(state, running=False)
        case ev.GpuLost():
            # The process ends without a stop: the next start counts this as a crash.
            return replace(state, running=True)
        case ev.EffectInterrupted() if payload.effect == "run":
            return replace(state, runs=runs_after(state.runs, event, payload))
        case ev.EffectInterrupted():
            return interrupted(state, payload)
        case ev.RunRequested() | ev.RunCompleted() | ev.RunFailed() | ev.RunCancelled() | ev.RunDeleted():
            return replace(state, runs=runs_after(state.runs, event, payload))
        case ev.ModelLoadRequested() | ev.ModelLoaded() | ev.ModelLoadFailed() | ev.ModelUnloaded():
            return replace(state, model=_model(state.model, event.position, payload))
        case (
            ev.DownloadRequested()
            | ev.DownloadCompleted()
            | ev.DownloadFailed()
            | ev.DownloadCancelled()
            | ev.DeleteRequested()
            | ev.DeleteFailed()
        ):
            return _with_record(state, payload.sae_id, _record(state.saes.get(payload.sae_id), event, payload))
        case ev.SaeDeleted():
            left = tuple(a for a in state.attachments if a.sae_id != payload.sae_id or a.status != "failed")
            labels = labels_after(state.labels, event, payload)
            return _with_record(replace(state, attachments=left, labels=labels), payload.sae_id, None)
        case ev.AttachRequested():
            added = filled(
                AttachmentState,
                payload,
                status="attaching",
                request_position=event.position,
                model_position=0 if state.model is None else state.model.request_position,
                position=event.position,
            )
            return replace(state, attachments=(*state.attachments, added))
        case (
            ev.SaeAttached()
            | ev.AttachFailed()
            | ev.DetachRequested()
            | ev.SaeDetached()
            | ev.SteeringChanged()
            | ev.MonitoringChanged()
        ):
            return replace(state, attachments=attachments_after(state.attachments, event, payload))
        case ev.PresetSaved():
            saved = filled(Preset, payload, position=event.position, saved_at=event.time)
            return replace(state, presets={**state.presets, payload.name: saved})
        case ev.PresetDeleted():
            return replace(state, presets=_without(state.presets, payload.name))
        case ev.LabelsImported() | ev.LabelsDeleted():
            return replace(state, labels=labels_after(state.labels, event, payload))
        case ev.GenerationStarted():
            opened = OpenGeneration(
                generation_id=payload.generation_id,
                position=event.position,
                intervention_sha256=payload.intervention_sha256,
                sae_ids=tuple(dict.fromkeys(sae.sae_id for sae in payload.saes)),
                command_id=event.command_id,
                principal=event.principal,
            )
            return replace(state, generations={**state.generations, payload.generation_id: opened})
        case ev.GenerationFinished():
            return replace(state, generations=_without(state.generations, payload.generation_id))
        case _:
            return state


def _model(model: ModelState | None, position: int, payload: ev.Payload) -> ModelState | None:
    match payload:
        case ev.ModelLoadRequested():
            if payload.joined is not None or payload.reused:
                return model
            return filled(ModelState, payload, status="loading", request_position=position)
        case ev.ModelLoaded() if model is not None and payload.request_position == model.request_position:
            return replace(model, status="loaded", facts=payload.model, error=None, attempts=0)
        case ev.ModelLoadFailed() if model is not None and payload.request_position == model.request_position:
            return replace(
                model,
                status="error",
                facts=None,
                error=payload.error,
                restored=payload.restored,
                attempts=in_a_row(model.attempts),
            )
        case ev.ModelUnloaded():
            return None
        case _:
            return model


def _record(record: SaeRecord | None, event: Draft, payload: ev.Payload) -> SaeRecord | None:
    match payload:
        case ev.DownloadRequested():
            if record is not None and (payload.joined is not None or payload.reused):
                return record
            now: dict[str, Any] = {"status": "downloading", "request_position": event.position}
            if record is None:
                return filled(SaeRecord, payload, **now, created_at=event.time)
            moves = record.source == "import" and payload.path != record.path
            coming = payload.path if moves else None
            return replace(record, **now, force=payload.force, attempts=0, error=None, coming_path=coming)
        case _ if record is None or _is_stale(payload, record):
            return record
        case ev.DownloadCompleted():
            path = record.coming_path or record.path
            kept = {"request_position": record.request_position, "source": record.source, "path": path}
            known = filled(SaeRecord, payload, record, **kept, coming_path=None)
            return replace(known, status="cached", error=None, attempts=0)
        case ev.DownloadFailed():
            return replace(
                record, status="error" if record.sae is None else "cached", error=payload.error, coming_path=None
            )
        case ev.DownloadCancelled():
            return None if record.sae is None else replace(record, status="cached", coming_path=None)
        case ev.DeleteRequested():
            return replace(record, status="deleting", request_position=event.position, attempts=0, error=None)
        case ev.DeleteFailed():
            return replace(record, status="error" if record.sae is None else "cached", error=payload.error)
        case _:
            return record


def _is_stale(payload: ev.Payload, record: SaeRecord) -> bool:
    """Whether it answers an earlier request about the SAE than the last: such a report is ignored."""
    return getattr(payload, "request_position", record.request_position) != record.request_position


def _update_commands(state: State, event: Draft, payload: ev.Payload) -> State:
    """Open the command that an intent begins; close those that an outcome ends."""
    kind = COMMAND_OF_INTENT.get(type(payload))
    if kind is not None and event.command_id is not None:
        if isinstance(payload, ev.DownloadRequested) and payload.source != "hub":
            kind = "Import" if payload.source == "import" else "KeepVectors"
        opened = OpenCommand(
            command_id=event.command_id,
            type=kind,
            position=event.position,
            request_position=getattr(payload, "joined", None) or event.position,
            principal=event.principal,
        )
        return replace(state, commands={**state.commands, event.command_id: opened})
    if closes(payload):
        ended = payload.request_position  # type: ignore[attr-defined]  # closes() names payloads that have it
        left = {k: c for k, c in state.commands.items() if c.request_position != ended}
        return replace(state, commands=left) if len(left) != len(state.commands) else state
    return state


def closes(payload: ev.Payload) -> bool:
    """Whether the payload is the outcome of the request it names."""
    if isinstance(payload, ev.SaeDetached):
        return payload.reason != "replaced"
    return isinstance(payload, _OUTCOMES)


def _with_record(state: State, sae_id: str, record: SaeRecord | None) -> State:
    if record is None:
        return replace(state, saes=_without(state.saes, sae_id)) if sae_id in state.saes else state
    if record is state.saes.get(sae_id):
        return state
    return replace(state, saes={**state.saes, sae_id: record})


def _without(mapping: dict[str, T], key: str) -> dict[str, T]:
    left = mapping.copy()  # much faster than a comprehension: thousands of texts may run
    left.pop(key, None)
    return left
