"""What can be read of the service itself: model, capabilities, health."""

from __future__ import annotations

from ...domain.views.resources import coming_back, degraded_view, model_view, running_view, waiting_for
from ...errors import NotReadyError
from ..answers import answer, state_of
from ..context import context
from ..openapi.responses import Capabilities, Health, Model, Ready
from ..operations import operation
from ..types import Answer, AnyRequest


@operation("GET", "/api/model", "The model", returns=Model, tag="model")
async def get_model(request: AnyRequest) -> Answer:
    return answer(request, model_view(state_of(request)))


@operation("GET", "/api/capabilities", "What this build can do", returns=Capabilities)
async def get_capabilities(request: AnyRequest) -> Answer:
    return answer(request, {**context(request).capabilities(), "model": running_view(state_of(request))})


@operation("GET", "/health", "Whether the process is alive", returns=Health, open=True)
async def get_health(request: AnyRequest) -> Answer:
    return answer(request, {"status": "ok", "position": state_of(request).position})


@operation("GET", "/ready", "Whether everything required is in place. A 503 lists in `reasons` what is not, "
           "and in `coming_back` the SAEs that are being attached again after the last start",
           returns=Ready, errors=("not_ready",), open=True)  # fmt: skip
async def get_ready(request: AnyRequest) -> Answer:
    actor, preparing = context(request).actor, context(request).preparing()
    reasons = waiting_for(actor.state) or ([] if preparing is None else [preparing])
    if reasons and actor.read_only is None:
        coming = coming_back(actor.state)
        raise NotReadyError("; ".join(reasons), reasons=reasons, coming_back=coming, retry_after=1)
    degraded = degraded_view(actor.state)
    status = "read_only" if actor.read_only is not None else "degraded" if degraded else "ready"
    return answer(request, {"status": status, "degraded": degraded, "read_only": actor.read_only})
