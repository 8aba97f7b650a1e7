"""Admission of generations: the intervention of a request, frozen at its admission."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from ... import errors
from .. import events as ev
from ..chats import MessageSpan
from ..commands import RequestedIntervention, RequestedVariant
from ..events import PresetVersion
from ..messages import AdmitGeneration, OwnIntervention, RequestedStop
from ..refs import (
    SINK_WINDOW,
    ActiveSae,
    Edit,
    Exclusion,
    Intervention,
    Mode,
    ModelFacts,
    StopWhen,
    intervention_sha256,
)
from ..state import AttachmentState, State
from ..structs import filled
from . import presets
from .attachments import model_and_position
from .edits import checked, in_range, named_once, needs_encoder


def admit(request: AdmitGeneration, state: State) -> list[ev.Payload]:
    one_intervention_at_most(request)
    _model_is_there(state, request.model_position)
    as_expected(request, state)
    request, preset = _with_preset(request, state)
    _in_the_text(request)
    intervention = () if request.baseline else _intervention(request.steering, request.interventions, state)
    return [
        filled(
            ev.GenerationStarted,
            request,
            intervention=intervention,
            intervention_sha256=intervention_sha256(intervention),
            own_steering=request.steering is not None or request.interventions is not None,
            preset=preset,
            watched=_watched(state) if request.watch else (),
            turns=_turns(intervention, request.turns),
            stop_when=None if request.stop_when is None else _stop_when(request.stop_when, state),
            sink_window=SINK_WINDOW,
            request_salt=request.request_salt,
            request_sha256=request.request_sha256,
        )
    ]


R = TypeVar("R", AdmitGeneration, OwnIntervention)


def _with_preset(request: R, state: State) -> tuple[R, PresetVersion | None]:
    """The request with the interventions of its preset as its own, and the preset's version."""
    if request.preset is None:
        return request, None
    _whole(state)
    preset = presets.used(state, request.preset)
    return replace(request, interventions=presets.requested(preset)), filled(PresetVersion, preset)


def as_expected(request: AdmitGeneration | RequestedVariant, state: State) -> None:
    """`PreconditionFailedError` if the state has moved on, `SAEUnsupportedError` for `deterministic` where that cannot
    be had."""
    if request.expect_position is not None and not state.revision <= request.expect_position <= state.position:
        raise errors.PreconditionFailedError(
            f"expected position {request.expect_position}, the state is at {state.revision}",
            expected=request.expect_position,
            position=state.revision,
        )
    if request.deterministic:
        _deterministic(state)


def _in_the_text(request: AdmitGeneration) -> None:
    """Refuse an edit for a position that the generation cannot reach."""
    longest = request.tokens_prompt + max(request.sampling.max_tokens, 1) - 1
    own = [*(request.steering or ()), *(edit for each in request.interventions or () for edit in each.steering or ())]
    for edit in own:
        if (first := edit.named_position) >= longest:
            raise errors.BadRequestError(
                f"position {first} is past the text: {request.tokens_prompt} tokens of prompt and at most "
                f"{request.sampling.max_tokens} more, the last of which is not run",
                param="positions",
            )


def _turns(
    intervention: Intervention, turns: tuple[MessageSpan, ...] | None, exclude: Sequence[Exclusion] = ()
) -> tuple[MessageSpan, ...]:
    """The messages that the intervention, or a reading without `exclude`, needs; empty if neither needs any."""
    if "template" not in exclude and not any(sae.asks_for_turns for sae in intervention):
        return ()
    if turns is None:
        raise errors.PositionsUnknownError(
            "the chat template does not show where each message is: positions by role and exclude 'template' are "
            "not possible with this chat",
            param="messages",
        )
    if not turns and any(edit.asks_for_roles for sae in intervention for edit in sae.steering):
        raise errors.BadRequestError("positions by role require a chat; this prompt has no roles", param="positions")
    return turns


def _watched(state: State) -> Intervention:
    if not state.attached:
        raise errors.SAENotAttachedError("no SAE is attached, so no activations can be reported")
    read = _encoding(state)
    if not read:
        _encodes(state, state.attached[0].sae_id, "top_k_features")
    return tuple(a.active() for a in read)


def _encoding(state: State) -> tuple[AttachmentState, ...]:
    """The attached SAEs that have an encoder."""
    saes = ((a, state.saes[a.sae_id].sae) for a in state.attached)
    return tuple(a for a, sae in saes if sae is None or sae.encodes)


def _encodes(state: State, sae_id: str, what: str) -> None:
    """`SAEUnsupportedError` for `what`, asked of vectors."""
    if (sae := state.saes[sae_id].sae) is not None:
        needs_encoder(sae, sae_id, what)


def read_sae(state: State, sae_id: str | None, features: Sequence[int], what: str) -> ActiveSae:
    """As `attached_sae`, for `what` reads activations: None is the only one with an encoder."""
    if sae_id is None and len(encoding := _encoding(state)) == 1:
        sae_id = encoding[0].sae_id
    sae = attached_sae(state, sae_id, features)
    _encodes(state, sae.sae_id, what)
    return sae


def reading(
    state: State,
    sae_id: str | None,
    features: Sequence[int],
    own: OwnIntervention | None,
    turns: tuple[MessageSpan, ...] | None = (),
    *,
    exclude: Sequence[Exclusion] = (),
    model_position: int | None = None,
) -> tuple[Intervention, tuple[MessageSpan, ...], ActiveSae]:
    """The intervention under which a prompt is read (none, unless `own` gives one), the messages that this needs, and
    the SAE. `exclude`: positions that are not read. `model_position` as in `AdmitGeneration`.

    Raises the errors of `admit`, `SAEAmbiguousError` if several match, `FeatureOutOfRangeError`.
    """
    intervention, needed = reading_under(state, own, turns, exclude=exclude, model_position=model_position)
    return intervention, needed, read_sae(state, sae_id, features, "reading activations")


def reading_under(
    state: State,
    own: OwnIntervention | None,
    turns: tuple[MessageSpan, ...] | None = (),
    *,
    exclude: Sequence[Exclusion] = (),
    model_position: int | None = None,
) -> tuple[Intervention, tuple[MessageSpan, ...]]:
    """As `reading`, of the model alone."""
    _model_is_there(state, model_position)
    intervention = intervention_of(own or OwnIntervention(), state)
    return intervention, _turns(intervention, turns, exclude)


def intervention_of(own: OwnIntervention, state: State) -> Intervention:
    """Raises the errors of `admit`."""
    one_intervention_at_most(own)
    own, _ = _with_preset(own, state)
    nothing = own.baseline is not False and own.steering is None and own.interventions is None
    return () if nothing else _intervention(own.steering, own.interventions, state)


def _stop_when(requested: RequestedStop, state: State) -> StopWhen:
    sae = read_sae(state, requested.sae_id, (requested.feature,), "stop_when")
    return filled(StopWhen, requested, sae=sae, exclude=named_once(requested.exclude))


def attached_sae(state: State, sae_id: str | None, features: Sequence[int]) -> ActiveSae:
    """The attached SAE of that id (None: the only one), of which these features are read.

    `SAENotFoundError`, `SAENotAttachedError`, `SAEAmbiguousError`, `FeatureOutOfRangeError`.
    """
    if sae_id is None:
        if not state.attached:
            raise errors.SAENotAttachedError("no SAE is attached")
        if len(state.attached) > 1:
            raise errors.SAEAmbiguousError("several SAEs are attached; name one with sae_id")
        sae_id = state.attached[0].sae_id
    read = _active(state, sae_id, "steer", ())
    description = state.saes[sae_id].sae
    if description is not None:
        in_range(features, sae_id, description.d_sae)
    return read


def one_intervention_at_most(asked: AdmitGeneration | OwnIntervention) -> None:
    """`BadRequestError` if a request gives more than one intervention instead of the server's."""
    others = (asked.steering, asked.interventions, asked.preset)
    if (asked.baseline is True) + sum(each is not None for each in others) > 1:
        raise errors.BadRequestError(
            "give at most one of sae.baseline, sae.steering, sae.interventions, sae.preset", param="sae"
        )


def model_to_ask(state: State) -> tuple[ModelFacts, int]:
    """As `model_and_position`, but `NotReadyError` while a restart loads the model again."""
    model = state.model
    if model is not None and model.status == "loading" and model.restored:
        raise errors.NotReadyError(f"the model {model.model} is being loaded again", retry_after=2)
    return model_and_position(state)


def _model_is_there(state: State, model_position: int | None) -> None:
    """`model_position`: that of the model whose tokenizer read the prompt, if it was read already."""
    facts, position = model_to_ask(state)
    if model_position not in (None, position):
        raise errors.ModelNotLoadedError(
            f"the model was replaced by {facts.model_id} while the prompt was tokenized; send the request again",
            status="loaded",
        )


def _deterministic(state: State) -> None:
    facts = None if state.model is None else state.model.facts
    if facts is None or not facts.can_be_deterministic:
        raise errors.SAEUnsupportedError(
            "deterministic requires a model in float32 on the CPU, or deterministic kernels on its device",
            param="sae.deterministic",
        )


def _intervention(
    steering: tuple[Edit, ...] | None, interventions: tuple[RequestedIntervention, ...] | None, state: State
) -> Intervention:
    if steering != ():
        _whole(state)
    if interventions is not None:
        active = tuple(_active(state, own.sae_id, own.mode, own.steering, own.exclude) for own in interventions)
        if len({sae.sae_id for sae in active}) != len(active):
            raise errors.ConflictingEditsError(
                "sae.interventions names an SAE more than once; give all its edits in one entry"
            )
        points = [sae.written_at for sae in active if sae.mode == "reconstruct"]
        if len(set(points)) != len(points):
            raise errors.ConflictingEditsError("two SAEs reconstruct at one hook point")
        # In the order of attachment, so that the same intervention always has the same digest.
        return tuple(sorted(active, key=lambda sae: sae.attach_position))
    if steering:
        return _only_one(state, steering)
    if steering == ():
        return tuple(a.steered() for a in state.attached)
    return state.in_force


def _whole(state: State) -> None:
    """Refuse generations until the SAEs that a restart lost are back or a client has seen that they are not: an
    unsteered answer must not pass for a steered one."""
    missing = [a.sae_id for a in state.attachments if a.status == "failed" or (a.restored and a.status == "attaching")]
    if missing:
        raise errors.NotReadyError(
            "what was attached before the restart is not attached again; attach or detach it, or send sae.baseline",
            retry_after=2,
            degraded=missing,
        )


def meant(state: State, steering: tuple[Edit, ...]) -> str:
    """Which attached SAE edits in short form are for: the one they name, or the only one. `SAEAmbiguousError`,
    `SAENotAttachedError`."""
    named = {edit.sae_id for edit in steering if edit.sae_id is not None}
    if len(named) > 1 or (not named and len(state.attached) > 1):
        raise errors.SAEAmbiguousError("several SAEs are attached; use sae.interventions")
    if not state.attached:
        raise errors.SAENotAttachedError("no SAE is attached")
    return next(iter(named), state.attached[0].sae_id)


def _only_one(state: State, steering: tuple[Edit, ...]) -> Intervention:
    sae_id = meant(state, steering)
    there = state.attachment(sae_id)
    mode: Mode = "steer" if there is None else there.mode
    own = _active(state, sae_id, mode, steering, None if there is None else there.exclude)
    return tuple(own if a.sae_id == sae_id else a.steered() for a in state.attached)


def _active(
    state: State,
    sae_id: str,
    mode: Mode,
    steering: tuple[Edit, ...],
    exclude: tuple[Exclusion, ...] | None = None,
) -> ActiveSae:
    if sae_id not in state.saes:
        raise errors.SAENotFoundError(f"there is no SAE {sae_id}", sae_id=sae_id)
    attachment = state.attachment(sae_id)
    sae = state.saes[sae_id].sae
    if attachment is None or sae is None:
        raise errors.SAENotAttachedError(f"{sae_id} is not attached", sae_id=sae_id)
    if mode == "reconstruct":
        needs_encoder(sae, sae_id, "mode reconstruct", param="mode")
    return attachment.active(mode, checked(steering, sae_id, sae), exclude and named_once(exclude))


def finished(report: ev.GenerationFinished, state: State) -> list[ev.Payload]:
    return [report] if report.generation_id in state.generations else []
