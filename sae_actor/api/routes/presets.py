"""`/api/presets`: interventions with a name; `SavePreset` and `DeletePreset` change them."""

from __future__ import annotations

from ...domain.views.presets import Presets, presets_view
from ..answers import answer, state_of
from ..operations import operation
from ..types import Answer, AnyRequest


@operation(
    "GET", "/api/presets", "The presets, and whether each can be used now", returns=Presets, users=True, tag="steering"
)
async def get_presets(request: AnyRequest) -> Answer:
    return answer(request, presets_view(state_of(request)))
