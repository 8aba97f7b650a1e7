"""Gemma Scope: one `params.npz`, float32, JumpReLU without b_dec on the input. The place is in the path alone.

    layer_12/width_16k/average_l0_82/params.npz          in google/gemma-scope-2b-pt-res, …-mlp, …-att, …-transcoders
    embedding/width_4k/average_l0_6/params.npz

The numbers in the path are names: sizes are those of the arrays. Embedding SAEs were trained on the embedding
before Gemma multiplies it by √d_in; they are read at the input of layer 0, after it.
"""

from __future__ import annotations

import math
import re

from ...domain.refs import HookPoint
from ..assembly import Alias, Names, assemble, layout, sizes_of
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..hook_names import parse_hook
from ..layout import Layout, Recipe

WEIGHTS = "params.npz"
NAMING = Naming((WEIGHTS,))

_NAMES: Names = {
    "W_enc": tuple(map(Alias, ("W_enc", "w_enc", "Wenc", "wenc", "W_e", "w_e"))),
    "b_enc": tuple(map(Alias, ("b_enc", "benc", "b_e"))),
    "W_dec": tuple(map(Alias, ("W_dec", "w_dec", "Wdec", "wdec", "W_d", "w_d"))),
    "b_dec": tuple(map(Alias, ("b_dec", "bdec", "b_d"))),
    "threshold": (Alias("threshold"),),
    "scaling_factor": (Alias("scaling_factor"),),
}
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SITES = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
    "transcoders": "ln2.hook_normalized",
}
_LAYER = re.compile(r"layer_(\d{1,3})")

NO_PLACE = "the place in the model is in the repository's name alone, which is not known here"


def recognise(files: SaeFiles) -> bool:
    return files.has(WEIGHTS)


def read(files: SaeFiles) -> Layout:
    file = files.tensors(WEIGHTS)
    sizes = sizes_of(file, _NAMES)
    warnings: list[str] = []
    model, site = _release(files.origin)
    placed = files.origin.named(_LAYER)
    layer = int(placed[1]) if placed else None
    embedding = "embedding" in files.origin.parts[-3:] and layer is None
    transcoder = site == "transcoders"
    hook_name, point = None, None
    if embedding:
        layer, hook_name, point = 0, "hook_embed", HookPoint("resid_pre", 0)
    elif site is not None and layer is not None:
        hook_name = f"blocks.{layer}.{_SITES[site]}"
        point = parse_hook(hook_name)
    else:
        warnings.append(NO_PLACE)
    scale = math.sqrt(sizes.d_in) if embedding else 1.0
    return layout(
        file,
        assemble(file, _NAMES, sizes, optional=("scaling_factor",)),
        Recipe(
            activation="jumprelu",
            norm_output=not transcoder,
            scale_in=1.0 / scale,
            row_scale=scale,
            heads=site == "att",
        ),
        sizes,
        architecture="jumprelu_transcoder" if transcoder else "jumprelu",
        trained_on=model,
        trained_layer=layer,
        hook_name=hook_name,
        hook_point=point,
        hook_point_out=HookPoint("mlp_out", point.layer) if transcoder and point else None,
        warnings=warnings,
        ones_only=("scaling_factor",),
    )


def _release(origin: Origin) -> tuple[str | None, str | None]:
    """Model and site, by the name of the repository or of a folder that is called like it."""
    match = origin.named(_REPOSITORY)
    if match is None:
        return None, None
    size, tuned, site = match.groups()
    return f"gemma-2-{size}" + ("-it" if tuned == "it" else ""), site


FORMAT = Format("gemma_scope", NAMING, ("jumprelu", "jumprelu_transcoder"), recognise, read)
