"""Where the hook points of the known model families are: model type → blocks → module of each kind.

A hook point is an activation of the forward pass; a `HookPlace` says at which module it can be read *and
written*, as a path below the block. Nothing is guessed from names: a model type that is not listed is
refused with the list of those that are, and a kind that a family or one of its layers lacks (`resid_mid` of
blocks whose attention and MLP run in parallel) is refused with the reason.

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

`mlp_in` is the output of a norm; in families with norms after attention and MLP, so are `attn_out` and `mlp_out`. Each
such norm offers two further places: before its gain (computed as (activation - bias) / gain), and before the norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..domain.refs import Before, HookKind

Where = Literal["input", "output"]

EXPERTS = "each token passes some of the experts, and each of them has its own"
PARALLEL = "attention and MLP read the same residual stream"
LINEAR = "layers of linear attention have no heads whose outputs are concatenated"
SCALED = "the block scales it before adding it, so that no module returns what is added"
STREAMS = "its blocks keep several residual streams, and none of them is the hidden state"
BESIDE_EXPERTS = "the MLP and the experts read the stream through different norms"


@dataclass(frozen=True)
class HookPlace:
    """An activation at a module: its input or its output."""

    paths: tuple[str, ...]
    """Module below the block: the first of these that the block has. Empty for the block itself."""
    where: Where
    in_place: bool = False
    """Change the tensor itself. The block also uses it as its residual, so replacing the module's input would not
    change the residual."""


Path = str | tuple[str, ...]


def _places(
    *,
    attn_out: Path | None = "self_attn",
    attn_z: Path = "self_attn.o_proj",
    mlp_in: Path | None = "mlp",
    mlp_act: Path | None = "mlp.down_proj",
    mlp_out: Path | None = "mlp",
    resid_mid: Path | None = "post_attention_layernorm",
    resid: Path | None = "",
) -> dict[HookKind, HookPlace]:
    """The module of each kind. Defaults are those of Llama's blocks. None: no module has it."""
    modules: dict[HookKind, tuple[Path | None, Where]] = {
        "resid_pre": (resid, "input"),
        "resid_mid": (resid_mid, "input"),
        "resid_post": (resid, "output"),
        "attn_out": (attn_out, "output"),
        "attn_z": (attn_z, "input"),
        "mlp_in": (mlp_in, "input"),
        "mlp_act": (mlp_act, "input"),
        "mlp_out": (mlp_out, "output"),
    }
    return {
        kind: HookPlace((path,) if isinstance(path, str) else path, where, in_place=kind == "resid_mid")
        for kind, (path, where) in modules.items()
        if path is not None
    }


@dataclass(frozen=True)
class Family:
    """How one model type is built."""

    blocks: str = "model.layers"
    """Path of the list of blocks."""
    places: Mapping[HookKind, HookPlace] = field(default_factory=_places)
    norms: Mapping[HookKind, str] = field(default_factory=lambda: {"mlp_in": "post_attention_layernorm"})
    """Kind → the norm whose output it is, as a path below the block."""
    layer_norm: bool = False
    """The norms subtract the mean and add a bias; else they are RMS norms."""
    gain_offset: float = 0.0
    """A norm's gain is its weight plus this."""
    shared_norm: bool = False
    """Attention and MLP share one norm, so its input cannot be changed for the MLP alone."""
    without: Mapping[HookKind, str] = field(default_factory=dict)
    """Kinds that the family, or some of its layers, lack → the reason."""
    variants: tuple[tuple[Mapping[str, object], Family], ...] = ()
    """Families used instead when these config values hold; the first match wins."""
    needs: Mapping[str, object] = field(default_factory=dict)
    """Config values the model must have; else it is refused."""

    @property
    def before(self) -> dict[HookKind, tuple[Before, ...]]:
        """Kind → the further places of its norm."""
        return dict.fromkeys(self.norms, ("gain",) if self.shared_norm else ("gain", "norm"))

    @property
    def lacks(self) -> dict[str, str]:
        """Kinds that the family, some of its layers or some of its variants lack → the reason."""
        found: dict[str, str] = {str(kind): reason for kind, reason in self.without.items()}
        for values, variant in self.variants:
            where = ", ".join(f"{name} {str(value).lower()}" for name, value in values.items())
            for kind, reason in variant.without.items():
                found.setdefault(kind, f"with {where}: {reason}")
        return found

    def of(self, config: Any) -> Family:
        """The variant for a model's config, else the family itself."""
        return next((variant for values, variant in self.variants if _holds(values, config)), self)


def _holds(values: Mapping[str, object], config: Any) -> bool:
    return all(getattr(config, name, None) == value for name, value in values.items())


def _but(family: Family, lacks: Mapping[HookKind, str], **changes: Any) -> Family:
    """The family without the kinds in `lacks` (kind → the reason), and with other changes."""
    places = {kind: place for kind, place in changes.pop("places", family.places).items() if kind not in lacks}
    return replace(family, places=places, without={**family.without, **lacks}, **changes)


_LLAMA = Family()
_EXPERTS = replace(_LLAMA, without={"mlp_act": EXPERTS})
"""Llama's blocks, some or all with experts in place of the MLP; the blocks without experts have `mlp_act`."""
_GEMMA2 = Family(
    places=_places(
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        resid_mid="pre_feedforward_layernorm",
    ),
    norms={
        "attn_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    },
    gain_offset=1.0,
)
_GEMMA4 = replace(_GEMMA2, gain_offset=0.0)
_NORMS_AFTER = Family(
    places=_places(attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm", resid_mid="mlp"),
    norms={"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"},
)
"""The MLP reads the residual stream itself: `mlp_in` equals `resid_mid`, but a change to it reaches the MLP alone."""
_QWEN3_5 = Family(places=_places(attn_out=("self_attn", "linear_attn")), gain_offset=1.0, without={"attn_z": LINEAR})
_GPT2 = Family(
    "transformer.h",
    _places(attn_out="attn", attn_z="attn.c_proj", mlp_act="mlp.c_proj", resid_mid="ln_2"),
    {"mlp_in": "ln_2"},
    layer_norm=True,
)
_ONE_NORM = Family(
    places=_places(resid_mid=None),
    norms={"mlp_in": "input_layernorm"},
    layer_norm=True,
    shared_norm=True,
    without={"resid_mid": PARALLEL},
)
"""Attention and MLP read the output of one norm."""
_STABLELM = replace(_LLAMA, layer_norm=True)
_GPT_NEOX = Family(
    "gpt_neox.layers",
    _places(attn_out="attention", attn_z="attention.dense", mlp_act="mlp.dense_4h_to_h"),
    layer_norm=True,
)
_FALCON = Family(
    "transformer.h",
    _places(attn_out="self_attention", attn_z="self_attention.dense", mlp_act="mlp.dense_4h_to_h"),
    layer_norm=True,
)
_FALCON_PARALLEL = _but(_FALCON, {"resid_mid": PARALLEL}, norms={"mlp_in": "input_layernorm"}, shared_norm=True)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe_text": replace(_QWEN3_5, without={"attn_z": LINEAR, "mlp_act": EXPERTS}),
    "gemma": replace(_LLAMA, gain_offset=1.0),
    "phi3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gemma3n_text": _but(
        Family(norms={"mlp_in": "pre_feedforward_layernorm"}),
        {
            **dict.fromkeys(("resid_pre", "resid_mid", "resid_post"), STREAMS),
            **dict.fromkeys(("attn_out", "mlp_out"), SCALED),
        },
    ),
    "gemma4_text": replace(
        _GEMMA4,
        variants=(
            (
                {"enable_moe_block": True},
                _but(
                    _GEMMA4,
                    {"mlp_in": BESIDE_EXPERTS, "mlp_act": EXPERTS},
                    norms={kind: norm for kind, norm in _GEMMA4.norms.items() if kind != "mlp_in"},
                ),
            ),
        ),
    ),
    "gpt2": replace(_GPT2, needs={"add_cross_attention": False}),
    "gpt_neo": replace(
        _GPT2, places=_places(attn_out="attn", attn_z="attn.attention.out_proj", mlp_act="mlp.c_proj", resid_mid="ln_2")
    ),
    "gptj": replace(
        _ONE_NORM,
        blocks="transformer.h",
        places=_places(attn_out="attn", attn_z="attn.out_proj", mlp_act="mlp.fc_out", resid_mid=None),
        norms={"mlp_in": "ln_1"},
    ),
    "gpt_neox": replace(
        _GPT_NEOX, variants=(({"use_parallel_residual": True}, _but(_GPT_NEOX, {"resid_mid": PARALLEL})),)
    ),
    "opt": Family(
        "model.decoder.layers",
        _places(attn_z="self_attn.out_proj", mlp_in="fc1", mlp_act="fc2", mlp_out="fc2", resid_mid="final_layer_norm"),
        {"mlp_in": "final_layer_norm"},
        layer_norm=True,
        needs={"do_layer_norm_before": True},
    ),
    "gpt_oss": _but(_LLAMA, {"mlp_act": EXPERTS}),
    "phi": replace(_ONE_NORM, places=_places(attn_z="self_attn.dense", mlp_act="mlp.fc2", resid_mid=None)),
    "olmo": replace(_LLAMA, layer_norm=True),
    "olmo2": _NORMS_AFTER,
    "olmo3": _NORMS_AFTER,
    "olmoe": _but(_LLAMA, {"mlp_act": EXPERTS}),
    "exaone4": _NORMS_AFTER,
    "mixtral": _but(_LLAMA, {"mlp_act": EXPERTS}),
    "granite": _but(_LLAMA, dict.fromkeys(("attn_out", "mlp_out"), SCALED)),
    "smollm3": _LLAMA,
    "seed_oss": _LLAMA,
    "stablelm": replace(
        _STABLELM,
        variants=(
            (
                {"use_parallel_residual": True},
                _but(_STABLELM, {"resid_mid": PARALLEL}, norms={"mlp_in": "input_layernorm"}, shared_norm=True),
            ),
        ),
    ),
    "glm": _LLAMA,
    "glm4": Family(
        places=_places(attn_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"),
        norms={
            "attn_out": "post_self_attn_layernorm",
            "mlp_in": "post_attention_layernorm",
            "mlp_out": "post_mlp_layernorm",
        },
    ),
    "deepseek_v3": _EXPERTS,
    "llama4_text": replace(
        _EXPERTS, places=_places(mlp_in="feed_forward", mlp_act="feed_forward.down_proj", mlp_out="feed_forward")
    ),
    "starcoder2": replace(_LLAMA, places=_places(mlp_act="mlp.c_proj"), layer_norm=True),
    "cohere": _ONE_NORM,
    "cohere2": _ONE_NORM,
    "nemotron": replace(_LLAMA, layer_norm=True, gain_offset=1.0),
    "falcon": replace(
        _FALCON,
        variants=(
            (
                {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
                _but(_FALCON, {"resid_mid": PARALLEL}, norms={"mlp_in": "ln_mlp"}),
            ),
            ({"new_decoder_architecture": True}, _FALCON_PARALLEL),
            ({"parallel_attn": True}, _FALCON_PARALLEL),
        ),
    ),
    # The modules of attention and MLP return their output plus the residual; the last matrix of each returns it alone.
    "bloom": Family(
        "transformer.h",
        _places(
            attn_out="self_attention.dense",
            attn_z="self_attention.dense",
            mlp_act="mlp.dense_4h_to_h",
            mlp_out="mlp.dense_4h_to_h",
        ),
        layer_norm=True,
        needs={"apply_residual_connection_post_layernorm": False, "slow_but_exact": False},
    ),
}
"""Model type (as in the model's `config.json`) → family."""

TEXT_PART: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""Multimodal model type → the type of its text part if its `text_config` names none. Only that part is loaded."""


def text_type(config: Mapping[str, Any]) -> object:
    """The model type of the blocks in a `config.json`: of the text part, if the model is multimodal."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in TEXT_PART:
        return model_type
    text = config.get("text_config")
    return text.get("model_type", TEXT_PART[model_type]) if isinstance(text, Mapping) else TEXT_PART[model_type]
