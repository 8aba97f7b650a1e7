"""OpenAI's GPT-2 autoencoders: `{location}/autoencoders/{layer}.pt`, or one such file converted to safetensors.

x' = layer norm of x, if and only if the activation is TopK;  z = x' − pre_bias
f = activation(z @ encoder.weightᵀ + latent_bias);  x̂ = norm⁻¹(f @ W_dec + pre_bias)
"""

from __future__ import annotations

import re

from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import MATH, Alias, Names, Sizes, assemble, check_k, layout, side
from ..file_names import Naming
from ..files import Origin, SaeFiles
from ..format import Format
from ..headers import TensorFile
from ..hook_names import parse_hook
from ..layout import Layout, Recipe
from ..settings.keys import TRAINING, left

NAMING = Naming(("autoencoders/#.pt", "autoencoders/#.safetensors"), one_per_file=True)

_FILE = re.compile(r".+\.(?:pt|safetensors)")
_LAYER = re.compile(r"(\d{1,3})\.(?:pt|safetensors)")
_NAMES: Names = {
    "W_enc": (MATH["W_enc"][1],),
    "b_enc": (Alias("latent_bias"),),
    "W_dec": (MATH["W_dec"][1], Alias("decoder.linear.weight")),
    "b_dec": (Alias("pre_bias"),),
}
"""A tied decoder holds the encoder's own matrix, [d_sae, d_in], and multiplies by it as it is."""
_STATISTICS = left(
    f"{TRAINING}: statistics of the features",
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)
_LOCATIONS = {
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
    "mlp_post_act": "mlp.hook_post",
}
_VERSION = re.compile(r"_v\d+(?:_\d+k)?\Z")


def recognise(files: SaeFiles) -> bool:
    return files.holds(_FILE, "pre_bias", "latent_bias", "encoder.weight")


def read(files: SaeFiles) -> Layout:
    file = files.tensors(files.one(_FILE))
    sizes = Sizes(side(file, _NAMES, "W_enc", 0), side(file, _NAMES, "W_enc", 1), side(file, _NAMES, "b_dec", 0))
    activation, k = _activation(file, sizes)
    hook_name = _hook_name(files.origin_of(file), file.name)
    point = parse_hook(hook_name)
    return layout(
        file,
        assemble(file, _NAMES, sizes, ignored=_STATISTICS),
        Recipe(
            activation="relu" if k is None else "topk",
            k=k,
            subtract_b_dec=True,
            row_norm="none" if k is None else "layer_norm",
        ),
        sizes,
        architecture=activation,
        trained_on="gpt2" if point else None,
        hook_name=hook_name,
        hook_point=point,
        warnings=() if point else ("the place in the model is in the path alone, which is not known here",),
        left=_STATISTICS,
        extras=("activation", "activation_state_dict"),
    )


def _activation(file: TensorFile, sizes: Sizes) -> tuple[str, int | None]:
    """Architecture, and k of a TopK."""
    name = file.extras.get("activation")
    state = file.extras.get("activation_state_dict")
    state = state if isinstance(state, dict) else {}
    strange = sorted(str(key) for key in state if name == "ReLU" or key not in ("k", "postact_fn"))
    if strange:
        raise SAEUnsupportedError(f"activation {name} with {strange[0][:60]}", check="activation_state_dict")
    if name == "ReLU":
        return "standard", None
    if name != "TopK":
        raise SAEUnsupportedError(f"activation {str(name)[:60]}")
    if state.get("postact_fn", "ReLU") != "ReLU":
        raise SAEUnsupportedError(f"TopK with {str(state['postact_fn'])[:60]} after it")
    k = state.get("k")
    if type(k) is not int:
        raise SAEInvalidError(f"{file.name}: a TopK SAE without k", check="k")
    return "topk", check_k(k, sizes.d_sae, file.name)


def _hook_name(origin: Origin, name: str) -> str | None:
    layer = _LAYER.fullmatch(name)
    if layer is None or len(origin.parts) < 2 or origin.parts[-1] != "autoencoders":
        return None
    site = _LOCATIONS.get(_VERSION.sub("", origin.parts[-2]))
    return f"blocks.{layer[1]}.{site}" if site else None


FORMAT = Format("openai", NAMING, ("standard", "topk"), recognise, read, ("*.pt", "*.safetensors"))
