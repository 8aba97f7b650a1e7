"""The model, the whole state, and readiness."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ..events import Problem
from ..refs import HookPoint, Mode
from ..state import OpenCommand, OpenGeneration, Preset, State
from ..structs import filled
from .attachments import AttachmentFields, Monitored, attachment_fields, monitor_view
from .fields import Bytes, Position
from .saes import Sae, sae_view


class Model(Struct, frozen=True, kw_only=True):
    status: Literal["none", "loading", "loaded", "error"]
    model_id: str | None
    revision: str | None
    commit: str | None
    model_type: str | None
    dtype: str | None
    device: str | None
    quantization: str | None
    """Scheme of the weights, while it is not loaded the one that was asked for."""
    num_layers: int | None
    hidden_size: int | None
    context_length: int | None
    memory_bytes: Bytes | None
    error: Problem | None


class ServiceState(Struct, frozen=True, kw_only=True):
    """The state as it was at `position`."""

    position: Position
    model: Model | None
    saes: dict[str, Sae]
    attachments: tuple[AttachmentFields, ...]
    monitors: tuple[Monitored, ...]
    commands: tuple[OpenCommand, ...]
    generations: tuple[OpenGeneration, ...]
    presets: tuple[Preset, ...]


class Lost(Struct, frozen=True, kw_only=True):
    """The model (`sae_id` null) or an SAE that was there before the last start, and the reason why it is missing."""

    sae_id: str | None
    model: str | UnsetType = UNSET
    hook_point: HookPoint | UnsetType = UNSET
    error: Problem | None


class ComingBack(Struct, frozen=True, kw_only=True):
    """An SAE that was attached before the last start and is being attached again."""

    sae_id: str
    hook_point: HookPoint
    mode: Mode


def model_view(state: State) -> Model:
    model = state.model
    facts = model.facts if model else None
    return filled(
        Model,
        facts,
        model,
        status=model.status if model else "none",
        model_id=facts.model_id if facts else model.model if model else None,
        revision=model.revision if model else None,
    )


def state_view(state: State) -> ServiceState:
    """The whole state at its position, as `/api/state` and `log state --json` show it."""
    return ServiceState(
        position=state.position,
        model=model_view(state) if state.model is not None else None,
        saes={sae_id: sae_view(record, state) for sae_id, record in sorted(state.saes.items())},
        attachments=tuple(attachment_fields(a) for a in state.attached),
        monitors=tuple(monitor_view(a, a.monitoring) for a in state.attached if a.monitoring is not None),
        commands=tuple(state.commands.values()),
        generations=tuple(state.generations.values()),
        presets=tuple(preset for _, preset in sorted(state.presets.items())),
    )


def degraded_view(state: State) -> tuple[Lost, ...]:
    """The model (`sae_id` null) and SAEs that were required, or there before the last start, and were given up; with
    the reason."""
    models = [] if state.model is None or state.model.status != "error" else [state.model]
    lost = [Lost(sae_id=None, model=model.model, error=model.error) for model in models]
    return (*lost, *(Lost(sae_id=a.sae_id, hook_point=a.hook_point, error=a.error) for a in state.degraded))


def waiting_for(state: State) -> list[str]:
    """Why the service is not ready yet; empty once everything is loaded and attached, or given up."""
    reasons = []
    if not state.running:
        reasons.append("the log is being replayed")
    if state.model is not None and state.model.status == "loading":
        reasons.append(f"model {state.model.model} is being loaded")
    return [*reasons, *(f"SAE {each.sae_id} is being attached" for each in coming_back(state))]


def coming_back(state: State) -> list[ComingBack]:
    """The SAEs that were attached before the last start and are being attached again."""
    return [filled(ComingBack, a) for a in state.attachments if a.restored and a.status == "attaching"]
