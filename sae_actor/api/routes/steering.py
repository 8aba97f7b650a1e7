"""`/api/saes/{sae_id}/steering`: the edits in force."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from ...domain.commands import Steer
from ...domain.events import SteeringChanged
from ...domain.refs import Edits
from ...domain.rules import attachments
from ...domain.views.attachments import AttachedSteering, steering_view
from ...errors import SAENotAttachedError
from ..answers import answer, state_of
from ..operations import operation
from ..requests import body_of
from ..submission import EXAMPLES, REFUSALS, command_for, finish
from ..types import Answer, AnyRequest


class SteeringBody(Struct, frozen=True, forbid_unknown_fields=True):
    features: Edits
    enabled: bool = True


@operation("GET", "/api/saes/{sae_id}/steering", "The edits in force", returns=AttachedSteering,
           errors=("sae_not_found", "sae_not_attached"), users=True, tag="steering")  # fmt: skip
async def get_steering(request: AnyRequest) -> Answer:
    sae_id = request.path_params["sae_id"]
    state = state_of(request)
    attachments.known(state, sae_id)
    attachment = state.attachment(sae_id)
    if attachment is None:
        raise SAENotAttachedError(f"{sae_id} is not attached", sae_id=sae_id)
    return answer(request, steering_view(attachment))


@operation("PUT", "/api/saes/{sae_id}/steering", "Replace the edits", body=SteeringBody, returns=AttachedSteering,
           examples={"one": {"features": [EXAMPLES["Steer"]["features"][0]]}, "cleared": {"features": []}},
           errors=REFUSALS, command=True, tag="steering")  # fmt: skip
async def put_steering(request: AnyRequest) -> Answer:
    body: SteeringBody = await body_of(request, SteeringBody)
    return await _steer(request, msgspec.to_builtins(body))


@operation("DELETE", "/api/saes/{sae_id}/steering", "Clear the edits", returns=AttachedSteering, errors=REFUSALS,
           command=True, tag="steering")  # fmt: skip
async def delete_steering(request: AnyRequest) -> Answer:
    return await _steer(request, {"features": []})


async def _steer(request: AnyRequest, fields: dict[str, Any]) -> Answer:
    return await finish(request, command_for(request, Steer, **fields), AttachedSteering, SteeringChanged)
