"""Where the hook points of the known model families are: model type → blocks → module of each kind.

A hook point is an activation of the forward pass; a `HookPlace` says at which module it can be read *and
written*, as a path below the block. Nothing is guessed from names: a model type that is not listed is
refused with the list of those that are, and a kind that a family lacks (`resid_mid` of blocks whose
attention and MLP run in parallel) is refused too.

    kind        activation                                               width
    resid_pre   what the block receives                                  hidden_size
    resid_mid   residual stream between attention and MLP                hidden_size
    resid_post  what the block returns                                   hidden_size
    attn_out    what attention adds to the residual stream (bias and     hidden_size
                post-norm included)
    attn_z      heads concatenated, before the output projection         heads · head_dim
    mlp_in      what the MLP reads (after its norm)                      hidden_size
    mlp_act     what the MLP's last matrix reads (gate included)         intermediate_size
    mlp_out     what the MLP adds to the residual stream (bias and       hidden_size
                post-norm included)

A norm gives `mlp_in`, and `attn_out` and `mlp_out` in families that have one after attention and MLP. On its near
side there are two more places: before its gain (the activation without bias, divided by the gain: computed), and
before the norm itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..domain.refs import Before, HookKind

Where = Literal["input", "output"]


@dataclass(frozen=True)
class HookPlace:
    """An activation at a module: what it gets or what it returns."""

    path: str
    """Module below the block; empty for the block itself."""
    where: Where
    in_place: bool = False
    """Write into the tensor itself. The block keeps the same tensor as its residual before the module reads
    it, so that a replaced input would reach the module alone."""


def _places(
    *,
    attn_out: str = "self_attn",
    attn_z: str = "self_attn.o_proj",
    mlp_in: str = "mlp",
    mlp_act: str | None = "mlp.down_proj",
    mlp_out: str = "mlp",
    resid_mid: str | None = "post_attention_layernorm",
) -> dict[HookKind, HookPlace]:
    """Where not named: as in Llama's blocks."""
    inputs: dict[HookKind, str | None] = {"attn_z": attn_z, "mlp_in": mlp_in, "mlp_act": mlp_act}
    return {
        "resid_pre": HookPlace("", "input"),
        "resid_post": HookPlace("", "output"),
        "attn_out": HookPlace(attn_out, "output"),
        "mlp_out": HookPlace(mlp_out, "output"),
        **{kind: HookPlace(path, "input") for kind, path in inputs.items() if path is not None},
        **({} if resid_mid is None else {"resid_mid": HookPlace(resid_mid, "input", in_place=True)}),
    }


@dataclass(frozen=True)
class Family:
    """How one model type is built."""

    blocks: str
    """Path of the list of blocks."""
    places: Mapping[HookKind, HookPlace]
    norms: Mapping[HookKind, str]
    """The norm that a kind comes out of, as a path below the block."""
    layer_norm: bool = False
    """The norms take the mean away and add a bias; else they are RMS norms."""
    gain_offset: float = 0.0
    """A norm multiplies by its weight plus this."""
    shared_norm: bool = False
    """The norm before the MLP is that before attention: what it gets cannot be changed for the MLP alone."""
    parallel_when: str | None = None
    """Config flag under which attention and MLP read the same residual stream: there is no `resid_mid` then."""
    needs: Mapping[str, bool] = field(default_factory=dict)
    """Config values without which the places are other ones."""

    @property
    def before(self) -> dict[HookKind, tuple[Before, ...]]:
        """Kind → on which sides of its norm there is a place too."""
        return dict.fromkeys(self.norms, ("gain",) if self.shared_norm else ("gain", "norm"))


_LLAMA = Family("model.layers", _places(), {"mlp_in": "post_attention_layernorm"})
_GEMMA2 = Family(
    "model.layers",
    _places(
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        resid_mid="pre_feedforward_layernorm",
    ),
    {
        "attn_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    },
    gain_offset=1.0,
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": replace(_LLAMA, gain_offset=1.0),
    "phi3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": Family(
        "transformer.h",
        _places(attn_out="attn", attn_z="attn.c_proj", mlp_act="mlp.c_proj", resid_mid="ln_2"),
        {"mlp_in": "ln_2"},
        layer_norm=True,
        needs={"add_cross_attention": False},
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        _places(attn_out="attention", attn_z="attention.dense", mlp_act="mlp.dense_4h_to_h"),
        {"mlp_in": "post_attention_layernorm"},
        layer_norm=True,
        parallel_when="use_parallel_residual",
    ),
    "opt": Family(
        "model.decoder.layers",
        _places(attn_z="self_attn.out_proj", mlp_in="fc1", mlp_act="fc2", mlp_out="fc2", resid_mid="final_layer_norm"),
        {"mlp_in": "final_layer_norm"},
        layer_norm=True,
        needs={"do_layer_norm_before": True},
    ),
    # The experts' inner activations are one per expert and token: mlp_act does not have a single place.
    "gpt_oss": replace(_LLAMA, places=_places(mlp_act=None)),
    "phi": Family(
        "model.layers",
        _places(attn_z="self_attn.dense", mlp_act="mlp.fc2", resid_mid=None),
        {"mlp_in": "input_layernorm"},
        layer_norm=True,
        shared_norm=True,
    ),
}
"""Model type (as in the model's `config.json`) → family."""
