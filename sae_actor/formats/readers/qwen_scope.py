"""Qwen Scope: `layer{n}.sae.pt` at the repository's root; mathematical names with torch.nn.Linear orientation.

    f = the k largest of x @ W_encᵀ + b_enc, those above 0;  x̂ = f @ W_decᵀ + b_dec

k stands in the repository's name alone (`SAE-Res-Qwen3-8B-W64K-L0_100`): a file without it is refused.
"""

from __future__ import annotations

import re

from ...domain.refs import HookPoint
from ...errors import SAEInvalidError
from ..assembly import Alias, Names, assemble, check_k, layout, sizes_of
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..layout import Layout, Recipe

NAMING = Naming(("layer#.sae.pt", "layer#.sae.safetensors"), one_per_file=True)

_FILE = re.compile(r"layer(\d{1,3})\.sae\.(?:pt|safetensors)")
_REPOSITORY = re.compile(r"SAE-Res-(?P<model>.+)-W\d+K-L0_(?P<k>\d{1,5})")
_NAMES: Names = {
    "W_enc": (Alias("W_enc", transposed=True),),
    "b_enc": (Alias("b_enc"),),
    "W_dec": (Alias("W_dec", transposed=True),),
    "b_dec": (Alias("b_dec"),),
}


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_FILE))


def read(files: SaeFiles) -> Layout:
    name = files.one(_FILE)
    file = files.tensors(name)
    match = _FILE.fullmatch(name)
    assert match is not None
    layer = int(match[1])
    sizes = sizes_of(file, _NAMES)
    model, k = _release(files.origin_of(file))
    return layout(
        file,
        assemble(file, _NAMES, sizes),
        Recipe(activation="topk", k=check_k(k, sizes.d_sae, name)),
        sizes,
        architecture="topk",
        trained_on=f"Qwen/{model}",
        hook_name=f"model.layers.{layer}",
        hook_point=HookPoint("resid_post", layer),
    )


def _release(origin: Origin) -> tuple[str, int]:
    match = origin.named(_REPOSITORY)
    if match is None:
        why = "k is in the repository's name alone (SAE-Res-…-L0_k), which is not known here: give repository_id"
        raise SAEInvalidError(why, check="k")
    return match["model"], int(match["k"])


FORMAT = Format("qwen_scope", NAMING, ("topk",), recognise, read)
