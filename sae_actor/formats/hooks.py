"""Names of hooks, in every spelling in use, as hook points of the contract.

A name that could mean two places gives no hook point: a hook on the wrong place is worse than none.
"""

from __future__ import annotations

import re

from ..domain.refs import HookKind, HookPoint

_MAX_LAYER = 4095

_TRANSFORMER_LENS: dict[str, HookKind] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "attn.hook_z": "attn_z",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_in": "mlp_in",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
}
_BLOCK = re.compile(r"\Ablocks\.(\d{1,4})\.(.+)\Z")

_MODULE = re.compile(
    r"\A(?:(?:base_model|model|transformer|gpt_neox|language_model|decoder)\.)*"
    r"(?:layers|h|blocks)\.(\d{1,4})(?:\.(.+?))?\Z"
)
"""Path of a block, or of a module in it, as transformers names them."""

_ATTENTION = r"(?:self_attn|attention|attn)"
_SUBMODULES: tuple[tuple[re.Pattern[str], HookKind], ...] = (
    (re.compile(r"\A(?:output)?\Z"), "resid_post"),
    (re.compile(r"\Ainput\Z"), "resid_pre"),
    (re.compile(rf"\A{_ATTENTION}(?:\.output)?\Z"), "attn_out"),
    (re.compile(rf"\A{_ATTENTION}\.(?:o_proj|out_proj|dense|c_proj)\.input\Z"), "attn_z"),
    (re.compile(r"\Amlp(?:\.output)?\Z"), "mlp_out"),
    (re.compile(r"\Amlp\.input\Z"), "mlp_in"),
    (re.compile(r"\Amlp\.(?:down_proj|c_proj|dense_4h_to_h|fc2)\.input\Z"), "mlp_act"),
    (re.compile(r"\Apre_feedforward_layernorm\.output\Z"), "mlp_in"),
    (re.compile(r"\Apost_feedforward_layernorm\.output\Z"), "mlp_out"),
)
_SITES: dict[str, HookKind] = {
    "resid": "resid_post",
    "resid_post": "resid_post",
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
    "mlp_out": "mlp_out",
}
_SITE = re.compile(r"\A([a-z_]+?)(?:_layer)?[_.]?(\d{1,4})\Z")
"""`resid_post_layer_3` and its like (dictionary_learning)."""

_POST_NORMED = re.compile(r"gemma-?[23]", re.IGNORECASE)
"""Models that normalise what attention and MLP give before adding it: for them `mlp` alone could be either side."""


def parse_hook(name: str | None, *, transcoder_input: bool = False, model: str | None = None) -> HookPoint | None:
    """The hook point that `name` means, or None where it is unknown or could be two.

    `transcoder_input`: a bare `layers.3.mlp` is the MLP's input. `model` is the name of the model trained on.
    """
    if not name:
        return None
    if match := _BLOCK.match(name):
        kind = _TRANSFORMER_LENS.get(match[2])
        return _point(kind, match[1]) if kind else None
    if (match := _SITE.match(name)) and match[1] in _SITES:
        return _point(_SITES[match[1]], match[2])
    if not (match := _MODULE.match(name)):
        return None
    layer, inner = match[1], match[2] or ""
    if transcoder_input and inner == "mlp":
        return _point("mlp_in", layer)
    for pattern, kind in _SUBMODULES:
        if pattern.match(inner):
            ambiguous = kind in ("attn_out", "mlp_out") and "norm" not in inner and _POST_NORMED.search(model or "")
            return None if ambiguous else _point(kind, layer)
    return None


def parse_layer(name: str | None) -> int | None:
    """The layer in a hook's name, also where its place is unknown: `blocks.7.attn.hook_q` is in layer 7."""
    match = re.search(r"(?:\A|\.)(?:blocks|layers|h)\.(\d{1,4})(?:\.|\Z)", name or "")
    if match and int(match[1]) <= _MAX_LAYER:
        return int(match[1])
    point = parse_hook(name)
    return point.layer if point else None


def _point(kind: HookKind, layer: str) -> HookPoint | None:
    return HookPoint(kind, int(layer)) if int(layer) <= _MAX_LAYER else None
