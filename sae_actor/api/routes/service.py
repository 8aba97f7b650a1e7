"""What can be read of the service itself: model, capabilities, health."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ...domain.views.capabilities import Capabilities, running_view
from ...domain.views.fields import Position
from ...domain.views.resources import Lost, Model, coming_back, degraded_view, model_view
from ...errors import DrainingError, NotReadyError, ReadOnlyError
from ..answers import answer, state_of
from ..context import context
from ..operations import operation
from ..types import Answer, AnyRequest


class Health(Struct, frozen=True, kw_only=True):
    status: Literal["ok"]
    position: Position


class Ready(Struct, frozen=True, kw_only=True):
    status: Literal["ready", "degraded", "read_only"]
    degraded: tuple[Lost, ...]
    read_only: str | None


@operation("GET", "/api/model", "The model", returns=Model, users=True, tag="model")
async def get_model(request: AnyRequest) -> Answer:
    return answer(request, model_view(state_of(request)))


@operation("GET", "/api/capabilities", "What this build can do", returns=Capabilities, users=True)
async def get_capabilities(request: AnyRequest) -> Answer:
    return answer(request, replace(context(request).capabilities(), model=running_view(state_of(request))))


@operation("GET", "/health", "Whether the process is alive", returns=Health, open=True)
async def get_health(request: AnyRequest) -> Answer:
    return answer(request, Health(status="ok", position=state_of(request).position))


@operation("GET", "/ready", "Whether everything required is in place. A 503 lists in `reasons` what is not, "
           "and in `coming_back` the SAEs that are being attached again after the last start. After a full "
           "disk it is 503 `read_only` until the next start; a service started with `--read-only` is ready",
           returns=Ready, errors=("not_ready", "draining", "read_only"), open=True)  # fmt: skip
async def get_ready(request: AnyRequest) -> Answer:
    actor = context(request).actor
    if actor.draining:
        raise DrainingError()
    if actor.read_only is not None and actor.started:
        raise ReadOnlyError(actor.read_only)
    if reasons := context(request).waiting_for():
        coming = coming_back(actor.state)
        raise NotReadyError("; ".join(reasons), reasons=reasons, coming_back=coming, retry_after=1)
    degraded = degraded_view(actor.state)
    return answer(
        request,
        Ready(
            status="read_only" if actor.read_only is not None else "degraded" if degraded else "ready",
            degraded=degraded,
            read_only=actor.read_only,
        ),
    )
