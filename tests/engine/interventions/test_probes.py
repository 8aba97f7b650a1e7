"""Activations told with a text are encode of transformers' own hidden states, before the SAE's own edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import ActiveSae, Edit, HookPoint
from sae_actor.engine import TorchEngine
from sae_actor.engine.interventions import probes
from sae_actor.ports import Activations, Watch
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, finished, read, request
from tests.engine.tiny import tiny_model

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 62))


@pytest.fixture
async def engine(engine: TorchEngine, tiny_sae: Path) -> TorchEngine:
    """With the SAE on its model."""
    await engine.attach(attach(5), str(tiny_sae))
    return engine


def hidden(layer: int, ids: tuple[int, ...], hooks: dict[int, Tensor] | None = None) -> Tensor:
    """Output of that block, [n, 32], with the rows of `hooks` added behind the blocks that they are keyed by."""
    reference: Any = tiny_model("llama")
    for at, row in (hooks or {}).items():
        reference.model.layers[at].register_forward_hook(
            lambda _, __, out, row=row: out + row if isinstance(out, Tensor) else (out[0] + row, *out[1:])
        )
    with torch.inference_mode():
        states = reference(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    found: Tensor = states[layer + 1][0]
    return found


def dense(told: list[Activations], d_sae: int = 24) -> Tensor:
    rows = [row for each in told for row in each.rows]
    acts = torch.zeros(len(rows), d_sae)
    for at, row in enumerate(rows):
        for each in row:
            acts[at, each.feature] = each.activation
    return acts


@pytest.mark.parametrize("values", [probes.MOST_VALUES, 60])
async def test_prompt_and_generated_tokens(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    monkeypatch.setattr(probes, "MOST_VALUES", values)  # 60: the prompt is encoded two rows at a time
    tokens, end = await read(engine.generate(request(IDS, watched=(Watch(sae=active(5), top_k=24),))))
    told = dense([each for token in tokens for each in token.activations])
    expected = load_sae(tiny_sae).encode(hidden(1, (*IDS, *end.token_ids[:-1])))
    assert torch.allclose(told, expected, atol=1e-4)
    assert bool(expected.any())
    few, _ = await read(engine.generate(request(IDS, watched=(Watch(sae=active(5), top_k=2),))))
    best = dense([each for token in few for each in token.activations])
    kept = torch.zeros_like(expected).scatter(1, expected.topk(2).indices, expected.topk(2).values)
    assert torch.allclose(best, kept, atol=1e-4)


async def test_before_the_saes_own_edits_and_behind_those_of_lower_layers(engine: TorchEngine, tiny_sae: Path) -> None:
    lower = HookPoint("resid_post", 0)
    await engine.attach(attach(6, point=lower), str(tiny_sae))
    saes: tuple[ActiveSae, ...] = (
        active(6, Edit(feature=2, strength=3.0, exclude=()), point=lower),
        active(5, Edit(feature=3, strength=40.0, exclude=())),
    )
    watched = (Watch(sae=active(5), top_k=24), Watch(sae=active(6, point=lower), top_k=24))
    tokens, _ = await read(engine.generate(request(IDS, *saes, tokens=1, watched=watched)))
    upper, under = tokens[0].activations
    sae = load_sae(tiny_sae)
    assert torch.allclose(dense([upper]), sae.encode(hidden(1, IDS, {0: 3.0 * sae.W_dec[2]})), atol=1e-4)
    assert torch.allclose(dense([under]), sae.encode(hidden(0, IDS)), atol=1e-4)


async def test_activations_that_are_not_finite_are_no_activations(engine: TorchEngine) -> None:
    assert engine._model is not None
    layer = engine._model.network.model.layers[0]
    handle = layer.register_forward_hook(
        lambda _, __, out: out * torch.nan if isinstance(out, Tensor) else (out[0] * torch.nan, *out[1:])
    )
    end = await finished(engine, request(IDS, watched=(Watch(sae=active(5), top_k=1),)))
    assert (end.reason, end.error_code, end.faulted) == ("error", "internal", None)
    handle.remove()
    assert (await finished(engine, request(IDS, watched=(Watch(sae=active(5), top_k=1),)))).reason == "length"


async def test_a_feature_that_the_sae_lacks(engine: TorchEngine) -> None:
    end = await finished(engine, request(IDS, watched=(Watch(sae=active(5), features=(24,)),)))
    assert (end.error_code, end.faulted) == ("feature_out_of_range", None)
