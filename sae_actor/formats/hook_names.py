"""Names of hooks in every spelling in use, as hook points.

A name that could mean two places gives no hook point: a hook on the wrong place is worse than none. What the names of
transformer_lens mean was compared with that library (tests/engine/hooknames), release by release:

    blocks.N.hook_resid_mid      the stream between attention and MLP; absent if these run in parallel
    blocks.N.hook_mlp_in         the same numbers, on their way to the MLP alone
    blocks.N.ln2.hook_normalized what the norm before the MLP gives before its gain; of a LayerNorm whose gain was not
                                 folded away HookedTransformer up to 2.x gives it after gain and bias
    blocks.N.hook_mlp_out        what the MLP adds, after the norm that follows it in Gemma 2 and 3; hook_attn_out too
    blocks.N.mlp.hook_out        what the MLP returns, before that norm; attn.hook_out too

Modules of transformers are hooked where they are: `layers.3.mlp` is what that module returns.
"""

from __future__ import annotations

import re

from ..domain.refs import Before, HookKind, HookPoint

_MAX_LAYER = 4095

_Side = tuple[HookKind, Before | None]

_TRANSFORMER_LENS: dict[str, _Side] = {
    "hook_resid_pre": ("resid_pre", None),
    "hook_in": ("resid_pre", None),
    "hook_resid_mid": ("resid_mid", None),
    "hook_resid_post": ("resid_post", None),
    "hook_out": ("resid_post", None),
    "attn.hook_z": ("attn_z", None),
    "attn.o.hook_in": ("attn_z", None),
    "attn.o.hook_out": ("attn_out", "norm"),
    "attn.hook_out": ("attn_out", "norm"),
    "ln1_post.hook_in": ("attn_out", "norm"),
    "ln1_post.hook_normalized": ("attn_out", "gain"),
    "ln1_post.hook_out": ("attn_out", None),
    "hook_attn_out": ("attn_out", None),
    "hook_mlp_in": ("mlp_in", "norm"),
    "ln2.hook_in": ("mlp_in", "norm"),
    "ln2.hook_normalized": ("mlp_in", "gain"),
    "ln2.hook_out": ("mlp_in", None),
    "mlp.hook_in": ("mlp_in", None),
    "mlp.hook_post": ("mlp_act", None),
    "mlp.out.hook_in": ("mlp_act", None),
    "mlp.out.hook_out": ("mlp_out", "norm"),
    "mlp.hook_out": ("mlp_out", "norm"),
    "ln2_post.hook_in": ("mlp_out", "norm"),
    "ln2_post.hook_normalized": ("mlp_out", "gain"),
    "ln2_post.hook_out": ("mlp_out", None),
    "hook_mlp_out": ("mlp_out", None),
}
"""Of HookedTransformer and TransformerBridge. Left out is what has no hook point here: what attention reads (`ln1.…`,
`hook_attn_in`, `hook_q_input`), what is inside of attention or MLP (`attn.hook_q`, `mlp.hook_pre`), and one of the two
matrices that read the same (`mlp.in.hook_in`, `mlp.gate.hook_in`)."""
_BLOCK = re.compile(r"\Ablocks\.(\d{1,4})\.(.+)\Z")

_MODULE = re.compile(
    r"\A(?:(?:base_model|model|transformer|gpt_neox|language_model|text_model|decoder)\.)*"
    r"(?:layers|h|blocks)\.(\d{1,4})(?:\.(.+?))?\Z"
)
"""Path of a block, or of a module in it, as transformers names them."""

_ATTENTION = r"(?:self_attn|self_attention|linear_attn|attn\.attention|attention|attn)"
_MLP = r"(?:mlp|feed_forward)"
_LAST = rf"(?:{_MLP}\.(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out)|fc2)"
_MODULES: tuple[tuple[str, _Side], ...] = (
    (r"(?:output)?", ("resid_post", None)),
    (r"input", ("resid_pre", None)),
    (rf"{_ATTENTION}(?:\.(?:o_proj|out_proj|dense|c_proj))?(?:\.output)?", ("attn_out", "norm")),
    (rf"{_ATTENTION}\.(?:o_proj|out_proj|dense|c_proj)\.input", ("attn_z", None)),
    (rf"(?:{_MLP}|{_LAST})(?:\.output)?", ("mlp_out", "norm")),
    (rf"(?:{_MLP}|fc1)\.input", ("mlp_in", None)),
    (rf"{_LAST}\.input", ("mlp_act", None)),
    (r"(?:pre_feedforward_layernorm|ln_2|final_layer_norm)(?:\.output)?", ("mlp_in", None)),
    (r"(?:pre_feedforward_layernorm|ln_2|final_layer_norm)\.input", ("mlp_in", "norm")),
    (r"post_feedforward_layernorm(?:\.output)?", ("mlp_out", None)),
    (r"post_feedforward_layernorm\.input", ("mlp_out", "norm")),
)
_SUBMODULES = tuple((re.compile(rf"\A{pattern}\Z"), side) for pattern, side in _MODULES)
_AFTER_ATTENTION = re.compile(r"\Apost_attention_layernorm(?:\.(input|output))?\Z")
"""The norm before the MLP or, where two norms more follow attention and MLP, the one after attention."""
_SITES: dict[str, _Side] = {
    "resid": ("resid_post", None),
    "resid_post": ("resid_post", None),
    "resid_pre": ("resid_pre", None),
    "resid_mid": ("resid_mid", None),
    "attn_out": ("attn_out", "norm"),
    "attention_out": ("attn_out", "norm"),
    "mlp_out": ("mlp_out", "norm"),
}
_SITE = re.compile(r"\A([a-z_]+?)(?:_layer)?[_.]?(\d{1,4})\Z")
"""`resid_post_layer_3` and its like (dictionary_learning), which hooks modules."""

_POST_NORMED = re.compile(r"gemma-?[234](?!\d*b\b)|olmo-?[23]\b|exaone-?4", re.IGNORECASE)
"""Models that normalise what attention and MLP give before adding it; gemma-2b is of the first generation."""
_NOT_POST_NORMED = re.compile(
    r"llama|mi[sx]tral|qwen|smollm|pythia|neox|gpt-?[2j]|gpt-?neo|gpt-?oss|\bopt-|phi-|gemma-?(?:2|7)b\b"
    r"|deepseek|stablelm|starcoder|falcon|bloom|nemotron|olmoe|seed-?oss",
    re.IGNORECASE,
)
"""Models that do not: what their attention and MLP return is what these add. A `post_attention_layernorm` of theirs is
the norm before the MLP."""
_PARALLEL = re.compile(r"pythia|neox|gpt-?j|falcon|phi-?[12]|command-?r|c4ai|\bcohere", re.IGNORECASE)
"""Models whose attention and MLP read the same stream: nothing lies between them."""


def parse_hook(
    name: str | None, *, transcoder_input: bool = False, model: str | None = None, norms_folded: bool = False
) -> HookPoint | None:
    """The hook point that `name` means, or None where it is unknown or could be two.

    `transcoder_input`: it is read and never written; a bare `layers.3.mlp` is the MLP's input. `model` is the name of
    the model trained on; `norms_folded`: its norms' gains had been moved into the next matrices.
    """
    if not name:
        return None
    if match := _BLOCK.match(name):
        side = _TRANSFORMER_LENS.get(match[2])
        if side == ("mlp_in", "norm") and transcoder_input and not _PARALLEL.search(model or ""):
            side = ("resid_mid", None)
        elif side == ("mlp_in", None) and norms_folded:
            side = ("mlp_in", "gain")
        return _point(side, match[1], model)
    if (match := _SITE.match(name)) and match[1] in _SITES:
        side = _SITES[match[1]]
        ambiguous = side[1] is not None and _POST_NORMED.search(model or "")
        return None if ambiguous else _point(side, match[2], model)
    if not (match := _MODULE.match(name)):
        return None
    layer, inner = match[1], match[2] or ""
    if transcoder_input and inner == "mlp":
        return _point(("mlp_in", None), layer, model)
    model = "gpt_neox" if "gpt_neox." in name else model
    if norm := _AFTER_ATTENTION.match(inner):
        return _point(_after_attention(norm[1], model), layer, model)
    return _point(next((side for pattern, side in _SUBMODULES if pattern.match(inner)), None), layer, model)


def _after_attention(end: str | None, model: str | None) -> _Side | None:
    before: Before | None = "norm" if end == "input" else None
    if _POST_NORMED.search(model or ""):
        return "attn_out", before
    return ("mlp_in", before) if _added_as_it_is(model) else None


def agree(point: HookPoint, other: HookPoint, model: str | None) -> bool:
    """Whether two names mean one place. What attention and MLP return is what they add, where no norm follows."""
    if (point.kind, point.layer) != (other.kind, other.layer):
        return False
    return point.before == other.before or (point.kind != "mlp_in" and not _POST_NORMED.search(model or ""))


def parse_layer(name: str | None) -> int | None:
    """The layer in a hook's name, also where its place is unknown: `blocks.7.attn.hook_q` is in layer 7."""
    match = re.search(r"(?:\A|\.)(?:blocks|layers|h)\.(\d{1,4})(?:\.|\Z)", name or "")
    if match and int(match[1]) <= _MAX_LAYER:
        return int(match[1])
    point = parse_hook(name)
    return point.layer if point else None


def _point(side: _Side | None, layer: str, model: str | None) -> HookPoint | None:
    if side is None or int(layer) > _MAX_LAYER:
        return None
    kind, before = side
    if before == "norm" and kind != "mlp_in" and _added_as_it_is(model):
        before = None
    return HookPoint(kind, int(layer), before)


def _added_as_it_is(model: str | None) -> bool:
    """Whether no norm follows attention and MLP, by the model's name; where it says nothing, the model will."""
    return bool(_NOT_POST_NORMED.search(model or "")) and not _POST_NORMED.search(model or "")
