"""Records of older versions, whose hook names were taken for other places.

An event says what was believed when it was written, and stays; what was attached then was attached there. An attach
from now on goes where the name means: `hook_mlp_in` was taken for what the norm before the MLP gives, the
`hook_normalized` of a norm for what it gives after its gain, and the module of an MLP or of attention for what is
added to the stream, also where a norm comes between.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec.structs import replace

from .refs import HookPoint, SaeDescription

HOOKS_READ = 1
"""Of descriptions that this version makes."""

_NORMED = re.compile(r"\.ln2\.hook_normalized\Z")
_IN_DOUBT = "ln2.hook_normalized lies before the norm's own weight"
"""Begins the warning of older versions that they might take it for another place; they did."""
_BRANCH = re.compile(r"\.hook_mlp_in\Z")
_MODULE = re.compile(
    r"\.mlp\.hook_out\Z|(?:\A|\.)(?:layers|h|blocks)\.\d+\.(?:mlp|self_attn|attention|attn)(?:\.output)?\Z"
)


def reread(sae: SaeDescription) -> SaeDescription:
    """The description with its hook points read as this version reads their name."""
    name, point = sae.hook_name or "", sae.hook_point
    if sae.hooks_read >= HOOKS_READ or point is None:
        return sae
    out = sae.hook_point_out
    warnings = sae.warnings
    if _NORMED.search(name):
        warnings = tuple(each for each in warnings if not each.startswith(_IN_DOUBT))
        point = _moved(point, "mlp_in", lambda old: HookPoint("mlp_in", old.layer, before="gain"))
    elif _BRANCH.search(name) and out is not None:
        point = _moved(point, "mlp_in", lambda old: HookPoint("resid_mid", old.layer))
    elif _BRANCH.search(name):
        point = _moved(point, "mlp_in", lambda old: HookPoint("mlp_in", old.layer, before="norm"))
    elif _MODULE.search(name):
        for kind in ("attn_out", "mlp_out"):
            point = _moved(point, kind, lambda old: replace(old, before="norm"))
            out = out and _moved(out, kind, lambda old: replace(old, before="norm"))
    return replace(sae, hook_point=point, hook_point_out=out, hooks_read=HOOKS_READ, warnings=warnings)


def _moved(point: HookPoint, kind: str, to: Callable[[HookPoint], HookPoint]) -> HookPoint:
    return to(point) if point.kind == kind and point.before is None else point
