"""Where an SAE goes on the loaded model, and warnings about the place.

Older versions took some names of hooks for other places. An event says what was believed when it was written, and
stays; what was attached then was attached there. An attach from now on goes where the name means (`reread`):
`hook_mlp_in` was taken for what the norm before the MLP gives, the `hook_normalized` of a norm for what it gives after
its gain, and the module of an MLP or of attention for what is added to the stream, also where a norm comes between.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from .. import errors
from .refs import HookPoint, ModelFacts, SaeDescription

HOOKS_READ = 1
"""Of descriptions that this version makes."""

_NORMED = re.compile(r"\.ln2\.hook_normalized\Z")
_IN_DOUBT = "ln2.hook_normalized lies before the norm's own weight"
"""Begins the warning of older versions that they might take it for another place; they did."""
_BRANCH = re.compile(r"\.hook_mlp_in\Z")
_MODULE = re.compile(
    r"\.mlp\.hook_out\Z|(?:\A|\.)(?:layers|h|blocks)\.\d+\.(?:mlp|self_attn|attention|attn)(?:\.output)?\Z"
)


NO_BOS = (
    "trained on texts that begin with BOS (prepend_bos), which this model's tokenizer does not add by itself: "
    "ask for it with prepend_bos true"
)
BOS = (
    "trained on texts without BOS (prepend_bos false), which this model's tokenizer adds by itself: "
    "leave it out with prepend_bos false"
)


class Target(Struct, frozen=True, kw_only=True):
    """Where an SAE reads, where it writes, and warnings about it."""

    hook_point: HookPoint
    hook_point_out: HookPoint | None
    warnings: tuple[str, ...] = ()

    @property
    def written_at(self) -> HookPoint:
        return self.hook_point_out or self.hook_point


def target(sae: SaeDescription, model: ModelFacts, layer: int | None, hook_point: HookPoint | None) -> Target:
    """Where the SAE goes on this model; raises if it cannot."""
    requested = _hook_point(sae, layer, hook_point)
    _exists(requested, model)
    requested = placed(requested, sae, model, given=hook_point is not None)
    shift = requested.layer - sae.hook_point.layer if sae.hook_point is not None else 0
    out = sae.hook_point_out
    _fits(requested, "d_in", sae.d_in, model)
    if out is not None:
        if out.layer + shift < 0:
            raise errors.LayerOutOfRangeError(f"at {requested} it would write to layer {out.layer + shift}")
        out = replace(out, layer=out.layer + shift)
        _exists(out, model)
        out = placed(out, sae, model)
        _fits(out, "d_out", sae.d_out, model)
    elif sae.d_out != sae.d_in or "transcoder" in sae.architecture:
        raise errors.SAEIncompatibleError("a transcoder needs a second hook point, and its files name none")
    return Target(hook_point=requested, hook_point_out=out, warnings=tuple(_warnings(sae, model, requested)))


def _hook_point(sae: SaeDescription, layer: int | None, hook_point: HookPoint | None) -> HookPoint:
    agree(layer, hook_point)
    if hook_point is not None:
        return hook_point
    if sae.hook_point is None and sae.hook_name is not None:
        raise errors.SAEUnsupportedError(
            f"the SAE was trained at {sae.hook_name[:100]}, which is not a hook point here, or could be two; give "
            "hook_point to attach it elsewhere",
            hook_name=sae.hook_name[:100],
            param="hook_point",
        )
    if sae.hook_point is None:
        raise errors.BadRequestError(
            "the SAE's files do not say where it was trained: give hook_point", param="hook_point"
        )
    return sae.hook_point if layer is None else replace(sae.hook_point, layer=layer)


def agree(layer: int | None, hook_point: HookPoint | None) -> None:
    if layer is not None and hook_point is not None and layer != hook_point.layer:
        raise errors.BadRequestError(
            f"layer {layer} and hook_point.layer {hook_point.layer} disagree", param="hook_point"
        )


def _exists(point: HookPoint, model: ModelFacts) -> None:
    if point.layer >= model.num_layers:
        raise errors.LayerOutOfRangeError(
            f"layer {point.layer} is not below the model's {model.num_layers}",
            layer=point.layer,
            num_layers=model.num_layers,
        )
    if model.width(point) == 0:
        where = f"layer {point.layer} of {model.model_type}" if point.kind in model.widths else model.model_type
        reason = f": {model.without[point.kind]}" if point.kind in model.without else ""
        raise errors.SAEIncompatibleError(f"{where} has no hook point of kind {point.kind}{reason}", kind=point.kind)


def _fits(point: HookPoint, name: str, width: int, model: ModelFacts) -> None:
    model_d = model.width(point)
    if model_d != width:
        raise errors.SAEIncompatibleError(
            f"the SAE's {name} is {width}, the model is {model_d} wide at {point}",
            **{f"sae_{name}": width, "model_d": model_d, "layer": point.layer},
        )


def _warnings(sae: SaeDescription, model: ModelFacts, requested: HookPoint) -> list[str]:
    warnings = list(sae.warnings)
    if sae.trained_layer is not None and requested.layer != sae.trained_layer:
        warnings.append(f"trained on layer {sae.trained_layer}, attached to layer {requested.layer}")
    if sae.hook_point is not None and not _same(sae, model, requested):
        warnings.append(f"trained on {_unlayered(sae.hook_point)}, attached to {_unlayered(requested)}")
    if sae.trained_on is not None and _name(sae.trained_on) != _name(model.model_id):
        warnings.append(f"trained on {sae.trained_on}, the model is {model.model_id}")
    if sae.prepend_bos is not None and model.adds_bos is not None and sae.prepend_bos != model.adds_bos:
        warnings.append(NO_BOS if sae.prepend_bos else BOS)
    if model.in_turn is not None:
        warnings.append(f"this model's texts run one after the other: {model.in_turn}")
    return warnings


def _same(sae: SaeDescription, model: ModelFacts, requested: HookPoint) -> bool:
    """Whether it is the hook point it was trained at, whatever the layer. A name with two meanings matches both."""
    assert sae.hook_point is not None
    trained = sae.hook_point
    if trained.kind == requested.kind:
        try:
            trained = placed(trained, sae, model)
        except errors.SAEIncompatibleError:
            return True
    return (trained.kind, trained.before) == (requested.kind, requested.before)


def _unlayered(point: HookPoint) -> str:
    return str(point).replace(f".{point.layer}", "", 1)


def _name(model: str) -> str:
    """The part of a model's name that spellings agree on: without organisation or folder, and gpt2-small is gpt2."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return "gpt2" if name == "gpt2-small" else name


def outdated(sae: SaeDescription, model: ModelFacts, at: HookPoint, out: HookPoint | None) -> tuple[str, ...]:
    """What is odd about an SAE that is attached `at` and `out`: an older version, which wrote its description, took its
    hook's name for that place, and it means another."""
    now = reread(sae)
    then = sae.hook_point and replace(sae.hook_point, layer=at.layer)
    if at != then or (now.hook_point, now.hook_point_out) == (sae.hook_point, sae.hook_point_out):
        return ()
    try:
        meant = target(now, model, at.layer, None)
    except errors.SAEError:
        return ()  # attaching it again gives the warning
    if (meant.hook_point, meant.hook_point_out) == (at, out):
        return ()
    here, there = (_places(*each) for each in ((at, out), (meant.hook_point, meant.hook_point_out)))
    return (
        f"attached to {here}, which an older version took {sae.hook_name} for; it means {there}: attach it again, with "
        "replace, to have it there",
    )


def _places(point: HookPoint, out: HookPoint | None) -> str:
    return str(point) if out is None else f"{point} and {out}"


def placed(point: HookPoint, sae: SaeDescription, model: ModelFacts, *, given: bool = False) -> HookPoint:
    """`point`, which the SAE's files name, as this model has it; `given`: a client named it.

    Without a norm after them, attention and MLP return what they add. `SAEIncompatibleError` if the model has no such
    place, or the files' name for it is ambiguous.
    """
    if point.before is None:
        return point
    sides = model.before.get(point.kind, ())
    if point.before == "norm" and point.kind != "mlp_in" and not sides:
        return replace(point, before=None)
    if point.before not in sides:
        raise errors.SAEIncompatibleError(
            f"models of type {model.model_type} have no hook point {point}", hook_point=str(point), kind=point.kind
        )
    if point.before == "gain" and model.layer_norm and not (given or sae.norms_folded):
        raise errors.SAEIncompatibleError(
            f"the model has LayerNorms, for which {sae.hook_name} lies before the gain and bias in some releases of "
            "the library that the SAE was trained with, and after them in others; the SAE's files do not name the "
            f'release. Give hook_point {{"kind": "{point.kind}", "layer": {point.layer}}} for after, and with '
            '"before": "gain" for before',
            hook_name=sae.hook_name,
            hook_point=str(point),
        )
    return point


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
