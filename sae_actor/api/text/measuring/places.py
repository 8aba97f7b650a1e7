"""Hook points that a request names, without an SAE."""

from __future__ import annotations

from ....domain.placement import HOOKS_READ, target
from ....domain.refs import HookPoint, ModelFacts, SaeDescription


def placed(point: HookPoint, model: ModelFacts) -> HookPoint:
    """The point as the model has it; raises as an attach there."""
    width = model.width(point)
    sae = SaeDescription(
        format="", architecture="vectors", d_in=width, d_sae=1, d_out=width, dtype="float32", hooks_read=HOOKS_READ
    )
    return target(sae, model, None, point).hook_point
