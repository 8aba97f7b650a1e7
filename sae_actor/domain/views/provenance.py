"""A state, and the events from which its parts come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .. import events as ev
from ..events import Event, payload_of
from ..evolve import evolve
from ..state import EMPTY, State

APART = frozenset({
    ev.GenerationStarted.type, ev.GenerationFinished.type, ev.CommandRejected.type, ev.MonitoringChanged.type,
    ev.RunRequested.type, ev.RunCompleted.type, ev.RunFailed.type, ev.RunCancelled.type, ev.RunDeleted.type,
    ev.LabelsImported.type, ev.LabelsDeleted.type, ev.SettingsReloaded.type,
    ev.PayloadRedacted.type, ev.LogTruncated.type, ev.LogForked.type, ev.ActorStopped.type, ev.GpuLost.type,
})  # fmt: skip
"""Types of events that no explanation rests on: a provenance without them explains the same."""
SET_ANEW = ev.SteeringChanged.type
"""Of events of this type about one SAE, with none between them but those `APART` and others of this type, the last one
alone counts."""


class Cited(Struct, frozen=True):
    """An event from which a part of the state comes."""

    position: int
    type: str
    time: str
    principal: str
    command_id: str | None
    hash: str


class Provenance(Struct, frozen=True, kw_only=True):
    """A state, and the events from which its parts come."""

    state: State = EMPTY
    model: tuple[Cited, ...] = ()
    """ModelLoadRequested, ModelLoaded, and the ModelLoaded of the last restart."""
    attached: dict[int, tuple[Cited, ...]] = {}
    """Position of the AttachRequested → that event, its SaeAttached, and the SaeAttached of the last restart."""
    steered: dict[str, Cited] = {}
    """SAE → the SteeringChanged in force, or the SaeAttached that took steering over from an earlier attachment."""
    presets: dict[str, Cited] = {}
    """Preset → the PresetSaved in force."""
    downloads: dict[tuple[str, str], tuple[Cited, ev.DownloadCompleted]] = {}
    """By SAE and digest of its weights: where they came from."""


def follow(known: Provenance, event: Event) -> Provenance:
    """The provenance after one more event; total, as `evolve` is."""
    state = evolve(known.state, event)
    payload = payload_of(event)
    after = replace(known, state=state)
    match payload:
        case ev.ModelLoadRequested() if state.model is not None and state.model.request_position == event.position:
            after = replace(after, model=(cited(event),))
        case ev.ModelLoaded() if state.model is not None and state.model.request_position == payload.request_position:
            after = replace(after, model=_with(known.model, event))
        case ev.AttachRequested():
            after = replace(after, attached={**known.attached, event.position: (cited(event),)})
        case ev.SaeAttached() if payload.request_position in known.attached:
            since = {**known.attached, payload.request_position: _with(known.attached[payload.request_position], event)}
            after = replace(after, attached=since)
            if (payload.steering or not payload.enabled) and payload.sae_id not in known.steered:
                after = replace(after, steered={**known.steered, payload.sae_id: cited(event)})
        case ev.SteeringChanged() if state.attachment(payload.sae_id) is not None:
            after = replace(after, steered={**known.steered, payload.sae_id: cited(event)})
        case ev.PresetSaved():
            after = replace(after, presets={**known.presets, payload.name: cited(event)})
        case ev.DownloadCompleted():
            key = (payload.sae_id, payload.weights_sha256)
            if not payload.reused or key not in known.downloads:
                after = replace(after, downloads={**known.downloads, key: (cited(event), payload)})
        case _:
            pass
    return _without_what_left(after) if state.attachments is not known.state.attachments else after


def cited(event: Event) -> Cited:
    return Cited(event.position, event.type, event.time, event.principal, event.command_id, event.hash)


def _with(since: tuple[Cited, ...], event: Event) -> tuple[Cited, ...]:
    """The request, its first outcome, and the last outcome that a restart brought."""
    return (*since[:2], cited(event))


def _without_what_left(known: Provenance) -> Provenance:
    here = {a.request_position for a in known.state.attachments}
    live = {a.sae_id for a in known.state.attachments if a.status != "detaching"}
    return replace(
        known,
        attached=_only(known.attached, here),
        steered=_only(known.steered, live),
    )


def _only(mapping: Mapping[Any, Any], keys: set[Any]) -> dict[Any, Any]:
    return {key: value for key, value in mapping.items() if key in keys}
