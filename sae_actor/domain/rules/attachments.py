"""The rules of attach, detach, steer and monitor."""

from __future__ import annotations

from ... import errors
from .. import events as ev
from ..commands import Attach, Detach, Monitor, Steer
from ..effects import AttachEffect
from ..events import Problem
from ..folds.attachments import leaves
from ..placement import agree, reread, target
from ..refs import HookPoint, ModelFacts, SaeDescription
from ..reports import AttachedSae, SaeFailed
from ..state import AttachmentState, SaeRecord, State
from ..structs import filled
from ..weights import names
from .edits import checked, in_range, named_once, needs_encoder


def known(state: State, sae_id: str) -> SaeRecord:
    record = state.saes.get(sae_id)
    if record is None:
        raise errors.SAENotFoundError(f"there is no SAE {sae_id}", sae_id=sae_id)
    return record


def loaded_model(state: State) -> ModelFacts:
    return model_and_position(state)[0]


def model_and_position(state: State) -> tuple[ModelFacts, int]:
    """The loaded model, and which load of it: the position of its request. `ModelNotLoadedError`."""
    model = state.model
    if model is None:
        raise errors.ModelNotLoadedError("no model is loaded", status="none")
    if model.status == "loading":
        raise errors.ModelNotLoadedError(f"the model {model.model} is being loaded", status=model.status)
    if model.facts is None or model.status != "loaded":
        why = "" if model.error is None else f": {model.model} failed to load ({model.error.detail})"
        raise errors.ModelNotLoadedError(f"no model is loaded{why}", status=model.status)
    return model.facts, model.request_position


def described(record: SaeRecord) -> SaeDescription:
    """The description from the files; refuses an SAE whose files are not complete on disk."""
    if record.status == "downloading":
        raise errors.SAEInUseError(f"{record.sae_id} is being downloaded", sae_id=record.sae_id)
    if record.status == "deleting":
        raise errors.SAEInUseError(f"{record.sae_id} is being deleted", sae_id=record.sae_id)
    if record.sae is None:
        raise _unusable(record)
    return reread(record.sae)


def _unusable(record: SaeRecord) -> errors.SAEError:
    """Why the files of this SAE cannot be used: a fault in them, or a failed download."""
    sae_id, why = record.sae_id, record.error
    if why is not None and why.code in ("sae_invalid", "sae_unsupported"):
        return errors.from_code(why.code, f"{sae_id}: {why.detail}", **{**why.fields, "sae_id": sae_id})
    reason = "" if why is None else f" ({why.detail})"
    return errors.SAEInvalidError(
        f"the files of {sae_id} are not complete{reason}; download it again", sae_id=sae_id, check="complete"
    )


def attach(command: Attach, state: State) -> list[ev.Payload]:
    agree(command.layer, command.hook_point)
    record = known(state, command.sae_id)
    sae = described(record)
    if command.mode == "reconstruct":
        needs_encoder(sae, command.sae_id, "mode reconstruct", param="mode")
    place = target(sae, loaded_model(state), command.layer, command.hook_point)
    replaces = _replaced(command, state, place.hook_point)
    others = [a for a in state.attachments if a.status in ("attached", "attaching") and a.sae_id not in replaces]
    if command.mode == "reconstruct" and any(
        a.mode == "reconstruct" and a.written_at == place.written_at for a in others
    ):
        raise errors.SAEAlreadyAttachedError(f"another SAE reconstructs at {place.written_at}")
    _check_message_positions(state, "template" in (command.exclude or ()), "exclude")
    exclude = command.exclude and named_once(command.exclude)
    return [filled(ev.AttachRequested, place, command, replaces=replaces, exclude=exclude)]


def _replaced(command: Attach, state: State, point: HookPoint) -> tuple[str, ...]:
    """The attached SAEs that are replaced. Refuses if there is no free place and `replace` is not set."""
    holding = [a for a in state.attachments if a.status != "failed"]
    same = next((a for a in holding if a.sae_id == command.sae_id), None)
    if same is None and len(holding) < state.max_attachments:
        return ()
    in_the_way = same or _in_the_way(holding, point)
    if not command.replace:
        raise errors.SAEAlreadyAttachedError(
            f"{in_the_way.sae_id} is {in_the_way.status} already; send replace to move it"
            if same is not None
            else f"{in_the_way.sae_id} is {in_the_way.status}, and [gpu] max_attachments is {state.max_attachments}: "
            "detach it, or send replace",
            sae_id=in_the_way.sae_id,
            max_attachments=state.max_attachments,
        )
    if in_the_way.status != "attached":
        why = f"{in_the_way.sae_id} cannot be replaced while it is {in_the_way.status}"
        raise errors.SAEInUseError(why, sae_id=in_the_way.sae_id)
    if any(in_the_way.sae_id in a.replaces for a in holding):
        raise errors.SAEInUseError(f"{in_the_way.sae_id} is already being replaced", sae_id=in_the_way.sae_id)
    return (in_the_way.sae_id,)


def _in_the_way(holding: list[AttachmentState], point: HookPoint) -> AttachmentState:
    """The SAE at the same hook point, else the one attached first."""
    return next((a for a in holding if a.hook_point == point), holding[0])


def attached(effect: AttachEffect, made: AttachedSae, state: State) -> list[ev.Payload]:
    """The engine has the SAE: those that it replaces are detached in the same transaction."""
    mine = _attaching(state, effect.request_position)
    if mine is None:
        return []
    known = mine.weights_sha256 if mine.restored else effect.weights_sha256
    if known != effect.weights_sha256 and not names(known, effect.weights_files):
        # Fetched again by force while it was attached: a restart attaches the old files again, or reports that it
        # cannot.
        changed = Problem(code="sae_invalid", detail="its files were replaced since it was attached; attach it again")
        return [failure(mine, changed)]
    gone = [a for a in state.attachments if a.status == "attached" and a.sae_id in mine.replaces]
    # A moved SAE keeps its steering and monitoring, even if a restart in between could not attach it at its old place
    # again.
    old = (a for a in state.attachments if a.sae_id == mine.sae_id and a.status in ("attached", "failed"))
    moved = next(old, mine) if mine.sae_id in mine.replaces else mine
    detached = [
        ev.SaeDetached(
            request_position=mine.request_position,
            attach_position=a.request_position,
            sae_id=a.sae_id,
            freed_bytes=0,
            held_bytes=a.device_bytes,
            reason="replaced",
        )
        for a in gone
    ]
    come = filled(
        ev.SaeAttached,
        made,
        mine,
        weights_sha256=known,
        weights_files=effect.weights_files,
        steering=moved.steering,
        enabled=moved.enabled,
        monitoring=moved.monitoring,
    )
    return [*detached, come]


def attach_failed(at: int, error: Problem, state: State) -> list[ev.Payload]:
    mine = _attaching(state, at)
    return [] if mine is None else [failure(mine, error)]


def failure(attachment: AttachmentState, error: Problem) -> ev.AttachFailed:
    return filled(ev.AttachFailed, attachment, error=error)


def _attaching(state: State, request_position: int) -> AttachmentState | None:
    return next(
        (a for a in state.attachments if a.request_position == request_position and a.status == "attaching"), None
    )


def detach(command: Detach, state: State) -> list[ev.Payload]:
    known(state, command.sae_id)
    leaving = leaves(state.attachments, command.sae_id)
    if leaving is None:
        raise errors.SAENotAttachedError(f"{command.sae_id} is not attached", sae_id=command.sae_id)
    first = state.position + 1
    requested: list[ev.Payload] = [ev.DetachRequested(sae_id=command.sae_id)]
    cancelled = Problem(code="sae_not_attached", detail="detached while it was being attached")
    requested += (
        ev.AttachFailed(request_position=a.request_position, sae_id=command.sae_id, error=cancelled)
        for a in state.attachments
        if a.sae_id == command.sae_id and a.status == "attaching" and state.command_at(a.request_position) is not None
    )
    if leaving.status == "failed":
        requested.append(
            ev.SaeDetached(
                request_position=first,
                attach_position=leaving.request_position,
                sae_id=command.sae_id,
                freed_bytes=0,
            )
        )
    return requested


def detached(at: int, freed: int, state: State) -> list[ev.Payload]:
    return [
        ev.SaeDetached(request_position=at, attach_position=a.request_position, sae_id=a.sae_id, freed_bytes=freed)
        for a in state.attachments
        if a.detach_position == at
    ]


def hook_faulted(report: SaeFailed, state: State) -> list[ev.Payload]:
    """Detach an SAE that cannot be computed, and record why."""
    at = report.attach_position
    mine = next((a for a in state.attached if a.request_position == at), None)
    if mine is None:
        return []
    gone = ev.SaeDetached(
        request_position=at,
        attach_position=at,
        sae_id=mine.sae_id,
        freed_bytes=0,
        held_bytes=mine.device_bytes,
        reason="fault",
    )
    return [ev.HookFaulted(sae_id=mine.sae_id, request_position=at, error=report.error), gone]


def _attached(state: State, sae_id: str) -> SaeDescription:
    """What the files of an attached SAE say."""
    record = known(state, sae_id)
    if state.attachment(sae_id) is None or record.sae is None:
        raise errors.SAENotAttachedError(f"{sae_id} is not attached", sae_id=sae_id)
    return record.sae


def steer(command: Steer, state: State) -> list[ev.Payload]:
    features = checked(command.features, command.sae_id, _attached(state, command.sae_id))
    _check_message_positions(state, any(edit.asks_for_turns for edit in features), "positions")
    return [filled(ev.SteeringChanged, command, features=features)]


def _check_message_positions(state: State, needed: bool, param: str) -> None:
    """Refuse early if the positions of messages are `needed` and the model does not show them: otherwise every later
    chat would be refused."""
    facts = None if state.model is None else state.model.facts
    if needed and facts is not None and facts.has_chat_template and not facts.tells_messages:
        raise errors.PositionsUnknownError(
            "the model's chat template or tokenizer does not show where each message is: positions by role and "
            "exclude 'template' are not possible",
            param=param,
        )


def monitor(command: Monitor, state: State) -> list[ev.Payload]:
    """Set monitoring. It ends with the attachment; a move and a restart keep it."""
    features = None if command.features is None else tuple(dict.fromkeys(command.features))
    sae = _attached(state, command.sae_id)
    needs_encoder(sae, command.sae_id, "Monitor")
    in_range(features or (), command.sae_id, sae.d_sae)
    return [filled(ev.MonitoringChanged, command, features=features, exclude=named_once(command.exclude))]
