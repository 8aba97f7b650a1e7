"""Where the hook points of the known model families are: model type → blocks → module of each kind.

A hook point is an activation of the forward pass; a `Place` says at which module it can be read *and
written*, as a path below the block. Nothing is guessed from names: a model type that is not listed is
refused with the list of those that are, and a kind that a family lacks (`resid_mid` of blocks whose
attention and MLP run in parallel) is refused too.

    kind        activation                                               width
    resid_pre   what the block receives                                  hidden_size
    resid_mid   residual stream between attention and MLP                hidden_size
    resid_post  what the block returns                                   hidden_size
    attn_out    what attention adds to the residual stream (bias and     hidden_size
                post-norm included)
    attn_z      heads side by side, before the output projection         heads · head_dim
    mlp_in      what the MLP reads (after its norm)                      hidden_size
    mlp_act     what the MLP's last matrix reads (gate included)         intermediate_size
    mlp_out     what the MLP adds to the residual stream (bias and       hidden_size
                post-norm included)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

from .domain.refs import HookKind, HookPoint
from .errors import LayerOutOfRangeError, ModelLoadError, SAEIncompatibleError

Where = Literal["input", "output"]


@dataclass(frozen=True)
class Place:
    """An activation at a module: what it gets or what it returns."""

    path: str
    """Module below the block; empty for the block itself."""
    where: Where
    in_place: bool = False
    """Write into the tensor itself. The block keeps the same tensor as its residual before the module reads
    it, so that a replaced input would reach the module alone."""


Edit = Callable[[Tensor], Tensor | None]
"""Gets an activation [..., width]; returns what takes its place (same shape and type), or None to leave it."""


@dataclass(frozen=True)
class Hook:
    """A resolved hook point: the module, and how its activation is found there."""

    module: nn.Module
    where: Where
    in_place: bool
    width: int

    def install(self, edit: Edit) -> RemovableHandle:
        """Call `edit` with the activation of every forward pass until the handle is removed.

        What `edit` raises goes through the model's forward pass. Where a module gets or returns no activation
        (a tensor, the first of a tuple or ModelOutput, the first argument or the keyword `hidden_states`),
        `edit` is not called: count the calls.
        """

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(x, Tensor) or (new := edit(x)) is None:
                return None
            if self.in_place:
                x.copy_(new)
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple | ModelOutput) else None
            new = edit(x) if isinstance(x, Tensor) else None
            return None if new is None else _with_first(output, new)

        if self.where == "output":
            return self.module.register_forward_hook(after)
        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def _with_first(output: Any, new: Tensor) -> Any:
    """The module's output with `new` in the place of its (first) tensor."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, ModelOutput):
        first = next(iter(output))
        return type(output)(**{**output, first: new})
    rest = output[1:]
    return type(output)(new, *rest) if hasattr(output, "_fields") else (new, *rest)


def _places(
    *,
    attn_out: str,
    attn_z: str,
    mlp_in: str,
    mlp_act: str,
    mlp_out: str,
    resid_mid: str | None,
) -> dict[HookKind, Place]:
    places: dict[HookKind, Place] = {
        "resid_pre": Place("", "input"),
        "resid_post": Place("", "output"),
        "attn_out": Place(attn_out, "output"),
        "attn_z": Place(attn_z, "input"),
        "mlp_in": Place(mlp_in, "input"),
        "mlp_act": Place(mlp_act, "input"),
        "mlp_out": Place(mlp_out, "output"),
    }
    if resid_mid is not None:
        places["resid_mid"] = Place(resid_mid, "input", in_place=True)
    return places


@dataclass(frozen=True)
class Family:
    """How one model type is built."""

    blocks: str
    """Path of the list of blocks."""
    places: Mapping[HookKind, Place]
    parallel_when: str | None = None
    """Config flag under which attention and MLP read the same residual stream: there is no `resid_mid` then."""
    needs: Mapping[str, bool] = field(default_factory=dict)
    """Config values without which the places are other ones."""


_LLAMA = Family(
    "model.layers",
    _places(
        attn_out="self_attn",
        attn_z="self_attn.o_proj",
        mlp_in="mlp",
        mlp_act="mlp.down_proj",
        mlp_out="mlp",
        resid_mid="post_attention_layernorm",
    ),
)
_GEMMA2 = Family(
    "model.layers",
    _places(
        attn_out="post_attention_layernorm",
        attn_z="self_attn.o_proj",
        mlp_in="mlp",
        mlp_act="mlp.down_proj",
        mlp_out="post_feedforward_layernorm",
        resid_mid="pre_feedforward_layernorm",
    ),
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "phi3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": Family(
        "transformer.h",
        _places(
            attn_out="attn",
            attn_z="attn.c_proj",
            mlp_in="mlp",
            mlp_act="mlp.c_proj",
            mlp_out="mlp",
            resid_mid="ln_2",
        ),
        needs={"add_cross_attention": False},
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        _places(
            attn_out="attention",
            attn_z="attention.dense",
            mlp_in="mlp",
            mlp_act="mlp.dense_4h_to_h",
            mlp_out="mlp",
            resid_mid="post_attention_layernorm",
        ),
        parallel_when="use_parallel_residual",
    ),
    "opt": Family(
        "model.decoder.layers",
        _places(
            attn_out="self_attn",
            attn_z="self_attn.out_proj",
            mlp_in="fc1",
            mlp_act="fc2",
            mlp_out="fc2",
            resid_mid="final_layer_norm",
        ),
        needs={"do_layer_norm_before": True},
    ),
    "phi": Family(
        "model.layers",
        _places(
            attn_out="self_attn",
            attn_z="self_attn.dense",
            mlp_in="mlp",
            mlp_act="mlp.fc2",
            mlp_out="mlp",
            resid_mid=None,
        ),
    ),
}
"""Model type (as in the model's `config.json`) → family."""


class Architecture:
    """The hook points of one loaded model."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Find the blocks and the width of every kind.

        Raises `ModelLoadError` for a model type that is not known, or a model that is not built as its type says.
        """
        self.model_type: str = config.model_type
        family = FAMILIES.get(self.model_type)
        if family is None:
            known = ", ".join(sorted(FAMILIES))
            raise ModelLoadError(
                f"models of type {self.model_type} are not supported; supported are {known}",
                model_type=self.model_type,
                supported=sorted(FAMILIES),
            )
        for name, value in family.needs.items():
            if getattr(config, name, value) != value:
                raise ModelLoadError(
                    f"models of type {self.model_type} with {name} other than {value} are not supported",
                    model_type=self.model_type,
                )
        places = dict(family.places)
        if family.parallel_when is not None and getattr(config, family.parallel_when):
            places.pop("resid_mid")
        try:
            blocks = list(model.get_submodule(family.blocks).children())
            modules = [{kind: block.get_submodule(place.path) for kind, place in places.items()} for block in blocks]
        except AttributeError:
            modules = []
        if not modules:
            raise ModelLoadError(f"the model is not built like one of type {self.model_type}")
        self.num_layers = len(modules)
        self.hidden_size: int = config.hidden_size
        self.widths: dict[HookKind, int] = {
            kind: _columns(modules[0][kind]) if kind in ("attn_z", "mlp_act") else self.hidden_size for kind in places
        }
        self._places = places
        self._modules = modules

    def hook(self, hook_point: HookPoint) -> Hook:
        """The module of a hook point.

        `SAEIncompatibleError` for a kind that this model lacks, `LayerOutOfRangeError` for a layer it lacks.
        """
        place = self._places.get(hook_point.kind)
        if place is None:
            raise SAEIncompatibleError(
                f"models of type {self.model_type} have no hook point {hook_point.kind}; "
                f"they have {', '.join(sorted(self._places))}",
                hook_point=str(hook_point),
            )
        if hook_point.layer >= self.num_layers:
            raise LayerOutOfRangeError(
                f"the model has layers 0 to {self.num_layers - 1}, not {hook_point.layer}", num_layers=self.num_layers
            )
        module = self._modules[hook_point.layer][hook_point.kind]
        return Hook(module, place.where, place.in_place, self.widths[hook_point.kind])


def _columns(projection: nn.Module) -> int:
    """Width of what a projection reads: torch's Linear is [out, in], GPT-2's Conv1D is [in, out]."""
    weight = projection.get_parameter("weight")
    return int(weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0])
