"""The rules of the model: loading, unloading, and the outcome of a load."""

from __future__ import annotations

from ... import errors
from .. import events as ev
from ..commands import LoadModel
from ..events import Problem
from ..refs import ModelFacts
from ..state import ModelState, State
from ..structs import filled
from . import attachments


def missing(wanted: LoadModel | None, state: State) -> LoadModel | None:
    """The command that loads the model of the settings; None if it need not be loaded. Raises
    `SAEInUseError`."""
    there = state.model
    if wanted is None or there is None:
        return wanted
    if not _is(there, wanted):
        if state.attachments:
            raise errors.SAEInUseError(
                f"the settings require {_in_words(wanted)}, the log has {_in_words(there)} with "
                f"{state.attachments[0].sae_id} attached; detach it first, or start without --model ([model] id)"
            )
        return wanted
    return wanted if there.status == "error" and all(a.status == "failed" for a in state.attachments) else None


def _is(there: ModelState, wanted: LoadModel) -> bool:
    """Whether the state has the model of the settings. Default revision, dtype, device and quantization match any
    value: a command's choice stays."""
    usual = LoadModel(model=there.model)
    return wanted.model == there.model and all(
        getattr(wanted, name) in (getattr(there, name), getattr(usual, name)) for name in usual.__struct_fields__
    )


def _in_words(model: ModelState | LoadModel) -> str:
    quantised = "" if model.quantization is None else f", quantization {model.quantization}"
    return f"{model.model} (revision {model.revision}, dtype {model.dtype}, device {model.device}{quantised})"


def load_model(command: LoadModel, state: State) -> list[ev.Payload]:
    model = state.model
    same = model is not None and all(
        getattr(model, name) == getattr(command, name) for name in command.__struct_fields__
    )
    requested = filled(
        ev.ModelLoadRequested,
        command,
        joined=model.request_position if model is not None and same and model.status == "loading" else None,
        reused=model is not None and same and model.status == "loaded",
    )
    if requested.joined is not None:
        return [requested]
    if requested.reused and model is not None and model.facts is not None:
        return [requested, ev.ModelLoaded(request_position=state.position + 1, model=model.facts, reused=True)]
    _nothing_attached(state, "replaced")
    return [requested, *_superseded(state, "another model was asked for")]


def unload_model(state: State) -> list[ev.Payload]:
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
    """The outcome of the superseded load; it follows the intent."""
    model = state.model
    if model is None or model.status != "loading":
        return []
    error = Problem(code="model_load_failed", detail=why)
    return [ev.ModelLoadFailed(request_position=model.request_position, error=error, restored=model.restored)]


def model_loaded(at: int, facts: ModelFacts, state: State) -> list[ev.Payload]:
    model = state.model
    if model is None or model.status != "loading" or model.request_position != at:
        return []
    return [ev.ModelLoaded(request_position=at, model=facts, restored=model.restored)]


def model_failed(at: int, error: Problem, state: State) -> list[ev.Payload]:
    """SAEs that wait for the model cannot be attached without it."""
    model = state.model
    if model is None or model.status != "loading" or model.request_position != at:
        return []
    without = Problem(code="model_not_loaded", detail="the model could not be loaded")
    return [
        ev.ModelLoadFailed(request_position=at, error=error, restored=model.restored),
        *(attachments.failure(a, without) for a in state.attachments if a.status == "attaching"),
    ]
