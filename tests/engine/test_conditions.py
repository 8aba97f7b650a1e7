"""`when`: an edit holds at the tokens where another feature is above a threshold, and only those are written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import Edit, When
from sae_actor.engine import TorchEngine
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, finished, request
from tests.engine.tiny import tiny_model

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 62))
ON = 7
STRENGTH = 6.0


@pytest.fixture
async def engine(engine: TorchEngine, tiny_sae: Path) -> TorchEngine:
    """With the SAE on its model."""
    await engine.attach(attach(5), str(tiny_sae))
    return engine


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
async def test_the_text_is_that_of_a_hook_that_asks_each_token(
    engine: TorchEngine, tiny_sae: Path, share: float
) -> None:
    sae = load_sae(tiny_sae)
    reference: Any = tiny_model("llama")
    seen: list[Tensor] = []
    above = 0.0

    def hook(_: Any, __: Any, out: Any) -> Any:
        x = out if isinstance(out, Tensor) else out[0]
        holds = sae.encode(x)[..., ON] > above
        seen.append(holds[0])
        y = torch.where(holds[..., None], x + STRENGTH * sae.W_dec[3], x)
        return y if isinstance(out, Tensor) else (y, *out[1:])

    reference.model.layers[1].register_forward_hook(hook)
    fed = torch.tensor([IDS])
    with torch.inference_mode():
        states = tiny_model("llama")(input_ids=fed, output_hidden_states=True).hidden_states
        above = float(sae.encode(states[2])[0, :, ON].quantile(1 - share))
        out = reference.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    edit = Edit(feature=3, strength=STRENGTH, when=When(ON, above), exclude=())
    end = await finished(engine, request(IDS, active(5, edit), tokens=12))
    assert end.token_ids == tuple(out[0, len(IDS) :].tolist())
    holds = torch.cat(seen)
    assert end.receipt.tokens_edited == int(holds.sum())
    assert 0 < end.receipt.tokens_edited < len(holds)
    assert [at for first, behind in end.edited for at in range(first, behind)] == holds.nonzero()[:, 0].tolist()
