"""What a model does after its last block, next to the formulas of the families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.engine.interventions.hook_points import Architecture
from sae_actor.engine.model.tail import Tail
from tests.engine.tiny import CONFIGS, tiny_model

IDS = torch.tensor([list(range(40, 52))])
NORMS = {
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
    "phi": "model.final_layernorm",
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "falcon", "bloom"), "transformer.ln_f"),
}
"""Paths of the last norm; elsewhere it is `model.norm`."""

SCALED: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 2.0},
}


def unembedded(network: Any, x: Tensor) -> Tensor:
    """softmax's argument, W_U norm(x), with the scales and caps that a config names."""
    config = network.config
    norm = network.get_submodule(NORMS.get(config.model_type, "model.norm"))
    logits: Tensor = network.get_output_embeddings()(norm(x))
    if config.model_type in ("cohere", "cohere2"):
        logits = logits * config.logit_scale
    if config.model_type == "granite":
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gemma3n_text"])
def test_every_layer_is_unembedded_as_the_last_one(name: str) -> None:
    network: Any = tiny_model(name, **SCALED.get(name, {}))
    architecture = Architecture(network, network.config)
    tail = Tail(network, architecture.blocks)
    seen: list[Tensor] = []
    for block in architecture.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    with torch.inference_mode():
        logits = network(input_ids=IDS, use_cache=False).logits[0]
        streams = [x.clone()[0] for x in seen]
        for x in streams:
            torch.testing.assert_close(tail.logits(x), unembedded(network, x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tail.logits(streams[-1]), logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tail.logits(streams[0]), logits, atol=1e-3)
        again = network(input_ids=IDS, use_cache=False).logits[0]
    assert torch.equal(again, logits), "the blocks are the model's own again"
