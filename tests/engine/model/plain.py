"""Models of width 12, and their forward pass by hand around one hook point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.formats.written import D_IN

LAYER = 1
IDS = tuple(range(40, 52))
AT = 5
# — models of width 12 —

_LLAMA: dict[str, Any] = {"hidden_size": D_IN, "intermediate_size": D_IN, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen3", "gemma2", "gemma3_text", "mistral"), _LLAMA),
    "gpt2": {"n_embd": D_IN, "n_inner": D_IN, "n_head": 2},
    "gpt_neox": {"hidden_size": D_IN, "intermediate_size": D_IN, "num_attention_heads": 1, "num_key_value_heads": 1},
}
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


@dataclass(frozen=True)
class Place:
    path: str
    side: Literal["input", "output"]
    in_place: bool = False
    norm: str | None = None
    """Before the gain of this norm."""
    offset: float = 0.0
    """Added to the norm's weight."""


_OF_ALL: dict[str, Place] = {"resid_pre": Place("", "input"), "resid_post": Place("", "output")}
_OF_LLAMA: dict[str, Place] = {
    **_OF_ALL,
    "attn_z": Place("self_attn.o_proj", "input"),
    "mlp_in": Place("mlp.gate_proj", "input"),
    "mlp_in before gain": Place("mlp", "input", norm="post_attention_layernorm"),
    "mlp_in before norm": Place("post_attention_layernorm", "input"),
    "mlp_out": Place("mlp", "output"),
}
_OF_GEMMA: dict[str, Place] = {
    **_OF_LLAMA,
    "mlp_in before gain": Place("mlp", "input", norm="pre_feedforward_layernorm", offset=1.0),
    "mlp_out": Place("post_feedforward_layernorm", "output"),
    "mlp_out before norm": Place("mlp.down_proj", "output"),
    "attn_out before norm": Place("self_attn.o_proj", "output"),
}
PLACES: dict[str, dict[str, Place]] = {
    **dict.fromkeys(("llama", "qwen3", "mistral"), _OF_LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _OF_GEMMA),
    "gpt_neox": _OF_ALL,
    "gpt2": {
        **_OF_ALL,
        "mlp_in before gain": Place("mlp", "input", norm="ln_2"),
        "resid_mid": Place("ln_2", "input", in_place=True),
        "attn_z": Place("attn.c_proj", "input"),
        "mlp_act": Place("mlp.c_proj", "input"),
    },
}


class Plain:
    """The model as transformers loads it, with hooks that this file makes."""

    def __init__(self, model_type: str, network: Any) -> None:
        self.places = PLACES[model_type]
        self.network = network
        self.blocks = network.get_submodule(BLOCKS.get(model_type, "model.layers"))

    def run(self, *seen: str, write: tuple[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Activations of block `LAYER`, the stream that the next block receives, and hidden states; maybe with one
        of them replaced."""
        found: dict[str, Tensor] = {}
        handles = [self._hook(name, found) for name in seen]
        if write is not None:
            handles.append(self._hook(write[0], {}, write[1]))
        with torch.inference_mode(), after_block(self.blocks, found):
            states = self.network(torch.tensor([IDS]), output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        return found | {f"before.{n}": state[0] for n, state in enumerate(states)}

    def _hook(self, name: str, found: dict[str, Tensor], new: Tensor | None = None) -> Any:
        place = self.places[name]
        module = self.blocks[LAYER].get_submodule(place.path)
        if place.norm is not None:
            norm: Any = self.blocks[LAYER].get_submodule(place.norm)
            gain, bias = norm.weight + place.offset, getattr(norm, "bias", torch.zeros(()))
            new = None if new is None else new * gain + bias

        def on_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            found[name] = args[0][0].clone() if place.norm is None else (args[0][0] - bias) / gain
            if new is None:
                return None
            if place.in_place:
                args[0].copy_(new[None])
                return None
            return (new[None], *args[1:])

        def on_output(_: nn.Module, __: Any, output: Any) -> Any:
            first = output if isinstance(output, Tensor) else output[0]
            found[name] = first[0].clone()
            if new is None:
                return None
            return new[None] if isinstance(output, Tensor) else (new[None], *output[1:])

        if place.side == "input":
            return module.register_forward_pre_hook(on_input)
        return module.register_forward_hook(on_output)


@contextmanager
def after_block(blocks: Any, found: dict[str, Tensor]) -> Iterator[None]:
    """Keep the stream that the block behind `LAYER` receives in the first pass."""

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.setdefault("after", args[0][0].clone())

    handle = blocks[LAYER + 1].register_forward_pre_hook(see)
    try:
        yield
    finally:
        handle.remove()
