"""Commands on their way to the actor: submitted with the request's headers, answered with their outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from ..actor import Accepted
from ..domain.commands import Command, Download, Import, is_public_name
from ..domain.events import Event, Payload
from ..domain.structs import filled
from ..domain.views.fields import Position
from ..domain.views.outcomes import AcceptedCommand, Outcome
from ..domain.weights import sae_id_of
from ..errors import BadRequestError, SAEAmbiguousError
from .answers import answer, state_of
from .context import context, principal
from .problems import ProblemDetails, problem_view, recorded_error
from .requests import MAX_WAIT, expected_revision, idempotency_key, wait_seconds
from .types import Answer, AnyRequest

REFUSALS = (
    "sae_not_found", "sae_incompatible", "sae_already_attached", "sae_not_attached", "sae_in_use",
    "sae_not_downloading", "feature_out_of_range", "conflicting_edits", "layer_out_of_range", "sae_invalid",
    "sae_unsupported", "model_not_loaded", "positions_unknown", "preset_not_found", "run_not_found",
    "run_not_running", "model_not_found",
)  # fmt: skip
"""What the rules may refuse a command with."""
_SAE = sae_id_of("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.6.hook_resid_pre", "main")
_EDIT = {"feature": 584, "strength": 8.0, "positions": "generated", "exclude": ["sink"]}
EXAMPLES: dict[str, dict[str, Any]] = {
    "LoadModel": {"type": "LoadModel", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "UnloadModel": {"type": "UnloadModel"},
    "Download": {
        "type": "Download",
        "repository_id": "jbloom/GPT2-Small-SAEs-Reformatted",
        "path": "blocks.6.hook_resid_pre",
    },
    "CancelDownload": {"type": "CancelDownload", "sae_id": _SAE},
    "Import": {"type": "Import", "path": "/data/saes/layer15"},
    "Attach": {"type": "Attach", "sae_id": _SAE, "layer": 6, "replace": True},
    "Detach": {"type": "Detach", "sae_id": _SAE},
    "Delete": {"type": "Delete", "sae_id": _SAE},
    "Steer": {"type": "Steer", "sae_id": _SAE, "features": [_EDIT]},
    "Monitor": {"type": "Monitor", "sae_id": _SAE, "enabled": True, "features": [584], "top_k": 5},
    "SavePreset": {
        "type": "SavePreset",
        "name": "calm",
        "description": "less of it",
        "interventions": [{"sae_id": _SAE, "steering": [_EDIT]}],
    },
    "DeletePreset": {"type": "DeletePreset", "name": "calm"},
    "Run": {
        "type": "Run",
        "kind": "evaluate",
        "spec": {"sae_id": _SAE, "texts": {"texts": ["I love this book"]}},
    },
    "CancelRun": {"type": "CancelRun", "run_id": "run-0123456789ab"},
    "DeleteRun": {"type": "DeleteRun", "run_id": "run-0123456789ab"},
}
"""A body for each command."""


class CommandOutcome(Struct, frozen=True, kw_only=True):
    """What became of a command, and the events it led to."""

    command_id: str
    status: Literal["accepted", "completed", "failed"]
    position: Position
    events: tuple[Event, ...]
    error: ProblemDetails | None
    sae_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET


async def submit(request: AnyRequest, command: Command) -> Accepted:
    """Hand a command to the actor, under the request's headers."""
    key, revision = idempotency_key(request), expected_revision(request)
    if isinstance(command, Import):
        path = await context(request).hub.resolve_import(command.path, command.layer)
        command = Import(path=path, layer=command.layer)
    accepted = await context(request).actor.submit(
        command, principal=principal(request), key=key, expected_revision=revision
    )
    request.scope["command_id"] = accepted.command_id  # type: ignore[typeddict-unknown-key]  # for the access log
    return accepted


async def placed(request: AnyRequest, command: Download) -> Download:
    """The command with the repository and path that a name from elsewhere stands for.

    `BadRequestError` for a name of several, `SAEAmbiguousError` for a name with a path; what `Hub.named` raises.
    """
    if command.named_as is not None:
        raise BadRequestError("named_as is what the service makes of a name: leave it out", param="named_as")
    name = command.repository_id
    if not is_public_name(name):
        return command
    if command.path is not None:
        raise SAEAmbiguousError(f"{name} says where in a repository it is: leave path out", param="path")
    found = await context(request).hub.named(name)
    if len(found) > 1:
        several = f"{name} stands for {len(found)} SAEs: name one, such as {found[0].named_as}"
        raise BadRequestError(several, param="repository_id")
    where = {"repository_id": found[0].repository_id, "path": found[0].path, "named_as": found[0].named_as}
    return structs.replace(command, **where)


def accepted_answer(
    request: AnyRequest, accepted: Accepted, sae_id: str | UnsetType = UNSET, *, run_id: str | UnsetType = UNSET
) -> Answer:
    """202: on record, not done yet."""
    view = AcceptedCommand(
        command_id=accepted.command_id, position=accepted.position, status="accepted", sae_id=sae_id, run_id=run_id
    )
    location = {"location": f"/api/commands/{accepted.command_id}"}
    return answered(request, view, upto=accepted.revision, status=202, headers=location)


def answered(request: AnyRequest, view: Struct, *, upto: int, **more: Any) -> Answer:
    """The outcome of a command, with the head of the log in a header, so that clients can witness it.

    upto: position of the last event shown. Later changes are others': with an ETag of their state the client's next
    `If-Match` would pass over a change that was never shown.
    """
    response = answer(request, view, **more)
    response.headers["etag"] = f'"{min(state_of(request).revision, upto)}"'
    head = context(request).log.head
    response.headers["log-head"] = f"{head.position}:{head.hash}"
    return response


def outcome_view(
    outcome: Outcome, sae_id: str | UnsetType = UNSET, *, run_id: str | UnsetType = UNSET
) -> CommandOutcome:
    error = problem_view(recorded_error(outcome.error)) if outcome.error is not None else None
    return filled(CommandOutcome, outcome, error=error, sae_id=sae_id, run_id=run_id)


async def accept(request: AnyRequest, command: Command, sae_id: str | UnsetType = UNSET) -> Answer:
    """Accept a command; with `Prefer: wait`, answer with its outcome if that comes in time."""
    seconds = wait_seconds(request)
    return await awaited(request, await submit(request, command), seconds, sae_id)


async def awaited(
    request: AnyRequest,
    accepted: Accepted,
    seconds: int | None,
    sae_id: str | UnsetType = UNSET,
    *,
    run_id: str | UnsetType = UNSET,
) -> Answer:
    """The answer to an accepted command; waits for its outcome for so long."""
    if seconds is None:
        return accepted_answer(request, accepted, sae_id, run_id=run_id)
    outcome = await context(request).actor.outcome(accepted.command_id, seconds, accepted)
    if outcome.status == "accepted":
        response = accepted_answer(request, accepted, sae_id, run_id=run_id)
    else:
        response = answered(request, outcome_view(outcome, sae_id, run_id=run_id), upto=outcome.events[-1].position)
    response.headers["preference-applied"] = f"wait={seconds}"
    return response


C = TypeVar("C", bound=Command)
P = TypeVar("P", bound=Payload)
V = TypeVar("V", bound=Struct)


async def finish(request: AnyRequest, command: Command, view: type[V], *shown: type[Payload], **own: Any) -> Answer:
    """Submit a command and wait for its end: a view of its events of these types, or 202 if it takes too long."""
    accepted = await submit(request, command)
    outcome = await context(request).actor.outcome(accepted.command_id, MAX_WAIT, accepted)
    if outcome.error is not None:
        raise recorded_error(outcome.error)
    if outcome.status == "accepted":
        return accepted_answer(request, accepted, request.path_params["sae_id"])
    found = [last(outcome.events, type_) for type_ in shown]
    sources = (source for pair in found for source in pair)
    return answered(request, filled(view, *sources, **own), upto=found[0][1].position)


def last(events: Sequence[Event], type_: type[P]) -> tuple[P, Event]:
    """The last event of a type."""
    payloads = ((event.payload(), event) for event in reversed(events))
    return next((payload, event) for payload, event in payloads if isinstance(payload, type_))


def command_for(request: AnyRequest, type_: type[C], **fields: Any) -> C:
    """A command about the SAE in the path, its bounds checked as if it had come as JSON."""
    try:
        return msgspec.convert({"type": type_.__name__, "sae_id": request.path_params["sae_id"], **fields}, type_)
    except msgspec.ValidationError as error:
        raise BadRequestError(str(error)[:500]) from None
