"""`decide`, every rule of the service: a message and a state give the events that follow.

Pure: it raises an error of `errors` where the rules refuse, never waits and never touches the world.
The first event of an accepted command is its intent. An outcome names its request by position.
"""

from __future__ import annotations

from .. import errors
from . import admitting, attaching, storing
from . import events as ev
from .commands import (
    Attach,
    CancelDownload,
    Delete,
    Detach,
    Download,
    Import,
    LoadModel,
    Monitor,
    Steer,
    UnloadModel,
)
from .effects import Effect
from .events import Problem
from .messages import AdmitGeneration, Message, Start, Stop
from .pending import pending
from .restarting import wanted_after_start
from .state import MAX_ATTEMPTS, State


def decide(message: Message, state: State) -> list[ev.Payload]:
    """The payloads to be recorded, in order; empty for a report that comes too late."""
    match message:
        case Start():
            return _start(message, state)
        case Stop():
            return [ev.ActorStopped(reason=message.reason)]
        case LoadModel():
            return _load_model(message, state)
        case UnloadModel():
            return _unload_model(state)
        case ev.ModelLoaded():
            return _model_loaded(message, state)
        case ev.ModelLoadFailed():
            return _model_failed(message, state)
        case Download():
            return storing.download(message, state)
        case CancelDownload():
            return storing.cancel(message, state)
        case Import():
            return storing.import_(message, state)
        case ev.DownloadCompleted() | ev.DownloadFailed():
            return storing.downloaded(message, state)
        case Delete():
            return storing.delete(message, state)
        case ev.SaeDeleted() | ev.DeleteFailed():
            return storing.deleted(message, state)
        case Attach():
            return attaching.attach(message, state)
        case ev.SaeAttached():
            return attaching.attached(message, state)
        case ev.AttachFailed():
            return attaching.attach_failed(message, state)
        case Detach():
            return attaching.detach(message, state)
        case ev.SaeDetached():
            return attaching.detached(message, state)
        case ev.HookFaulted():
            return attaching.hook_faulted(message, state)
        case Steer():
            return attaching.steer(message, state)
        case Monitor():
            return attaching.monitor(message, state)
        case AdmitGeneration():
            return admitting.admit(message, state)
        case ev.GenerationFinished():
            return admitting.finished(message, state)
        case ev.GpuLost():
            return [message]


# — the service —


def _start(message: Start, state: State) -> list[ev.Payload]:
    """Take the log over: count what the last process died under, and give up what killed it three times."""
    started = ev.ActorStarted(
        version=message.version, max_attachments=message.max_attachments, drain_seconds=message.drain_seconds
    )
    cut_off: list[ev.Payload] = [
        ev.GenerationFinished(
            generation_id=g.generation_id,
            started_position=g.position,
            finish_reason="interrupted",
            intervention_sha256=g.intervention_sha256,
        )
        for g in state.generations.values()
    ]
    if not state.running:
        return [started, *cut_off]
    after = wanted_after_start(state, started)
    for effect in pending(state):
        attempt = _attempts(effect, state) + 1
        cut_off.append(
            ev.EffectInterrupted(
                effect=effect.name,
                request_position=effect.request_position,
                attempt=attempt,
                sae_id=getattr(effect, "sae_id", None),
            )
        )
        if attempt >= MAX_ATTEMPTS:
            cut_off += _given_up(effect, after)
    return [started, *cut_off]


def _attempts(effect: Effect, state: State) -> int:
    """Deaths of the process under this effect so far."""
    if effect.name == "load_model":
        return 0 if state.model is None else state.model.attempts
    if effect.name in ("attach", "detach"):
        positions = effect.request_position
        return next((a.attempts for a in state.attachments if positions in (a.request_position, a.detach_position)), 0)
    return next((r.attempts for r in state.saes.values() if r.request_position == effect.request_position), 0)


def _given_up(effect: Effect, state: State) -> list[ev.Payload]:
    """The outcome of an effect that ended the process three times."""
    error = Problem(code="internal", detail=f"the process ended {MAX_ATTEMPTS} times during this {effect.name}")
    at = effect.request_position
    match effect.name:
        case "load_model":
            return _model_failed(ev.ModelLoadFailed(request_position=at, error=error), state)
        case "download" | "import":
            return [ev.DownloadFailed(request_position=at, sae_id=effect.sae_id, error=error)]
        case "attach":
            return attaching.attach_failed(
                ev.AttachFailed(request_position=at, sae_id=effect.sae_id, error=error),
                state,
            )
        case "delete":
            return [ev.DeleteFailed(request_position=at, sae_id=effect.sae_id, error=error)]
        case "detach":
            # The device memory went with the process; there is nothing left to free.
            attachment = next(a for a in state.attachments if a.detach_position == at)
            return [
                ev.SaeDetached(
                    request_position=at,
                    attach_position=attachment.request_position,
                    sae_id=attachment.sae_id,
                    freed_bytes=0,
                )
            ]


# — the model —


def _load_model(command: LoadModel, state: State) -> list[ev.Payload]:
    model = state.model
    same = model is not None and (model.model, model.revision, model.dtype, model.device) == (
        command.model,
        command.revision,
        command.dtype,
        command.device,
    )
    requested = ev.ModelLoadRequested(
        model=command.model,
        revision=command.revision,
        dtype=command.dtype,
        device=command.device,
        joined=model.request_position if model is not None and same and model.status == "loading" else None,
        reused=model is not None and same and model.status == "loaded",
    )
    if requested.joined is not None:
        return [requested]
    if requested.reused and model is not None and model.facts is not None:
        return [requested, ev.ModelLoaded(request_position=state.position + 1, model=model.facts, reused=True)]
    _nothing_attached(state, "replaced")
    return [requested, *_superseded(state, "another model was asked for")]


def _unload_model(state: State) -> list[ev.Payload]:
    model = state.model
    if model is None:
        raise errors.ModelNotLoadedError("no model is loaded", status="none")
    _nothing_attached(state, "unloaded")
    return [
        ev.ModelUnloaded(model_id=model.facts.model_id if model.facts is not None else model.model),
        *_superseded(state, "the load was cancelled by UnloadModel"),
    ]


def _nothing_attached(state: State, what: str) -> None:
    in_use = next((a for a in state.attachments if a.status != "failed"), None)
    if in_use is not None:
        raise errors.SAEInUseError(
            f"the model cannot be {what} while {in_use.sae_id} is {in_use.status}", sae_id=in_use.sae_id
        )


def _superseded(state: State, why: str) -> list[ev.Payload]:
    """The outcome of the load that gives way; behind the intent, which comes first."""
    model = state.model
    if model is None or model.status != "loading":
        return []
    error = Problem(code="model_load_failed", detail=why)
    return [ev.ModelLoadFailed(request_position=model.request_position, error=error, restored=model.restored)]


def _model_loaded(report: ev.ModelLoaded, state: State) -> list[ev.Payload]:
    model = state.model
    if model is None or model.status != "loading" or model.request_position != report.request_position:
        return []
    return [ev.ModelLoaded(request_position=report.request_position, model=report.model, restored=model.restored)]


def _model_failed(report: ev.ModelLoadFailed, state: State) -> list[ev.Payload]:
    """Without its model nothing that waits for it can be attached."""
    model = state.model
    if model is None or model.status != "loading" or model.request_position != report.request_position:
        return []
    without = Problem(code="model_not_loaded", detail="the model could not be loaded")
    return [
        ev.ModelLoadFailed(request_position=report.request_position, error=report.error, restored=model.restored),
        *(attaching.failure(a, without) for a in state.attachments if a.status == "attaching"),
    ]
