"""One feature through the weights: against formulas on the tiny SAE and llama."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_actor.domain.refs import HookPoint
from sae_actor.engine import TorchEngine
from sae_actor.engine.saes.feature_details import SHOWN
from sae_actor.errors import FeatureOutOfRangeError, SAENotAttachedError
from sae_actor.sae import load_sae
from tests.engine.asking import attach
from tests.engine.tiny import tiny_model

pytestmark = pytest.mark.anyio


async def test_norm_neighbours_and_tokens(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    found = await engine.feature(5, 7)
    sae = load_sae(tiny_sae)
    W = sae.W_dec
    assert found.decoder_norm == pytest.approx(float(W[7].norm()), rel=1e-5)
    assert found.bias == pytest.approx(float(sae.weights["b_enc"][7]))
    assert found.threshold is None
    cosines = torch.cosine_similarity(W, W[7][None], dim=1)
    order = [each for each in cosines.argsort(descending=True).tolist() if each != 7][:SHOWN]
    assert [each.feature for each in found.nearest] == order
    assert [each.cosine for each in found.nearest] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    reference: Any = tiny_model("llama")
    weights = reference.lm_head.weight.detach() @ W[7]
    assert [each.token_id for each in found.promoted] == weights.topk(SHOWN).indices.tolist()
    assert [each.weight for each in found.promoted] == pytest.approx(weights.topk(SHOWN).values.tolist(), abs=1e-5)
    assert [each.token_id for each in found.suppressed] == (-weights).topk(SHOWN).indices.tolist()
    assert found.suppressed[0].weight == pytest.approx(float(weights.min()), abs=1e-5)
    assert (found.label, found.max_activation, found.density, found.top_tokens) == (None, None, None, ())


async def test_no_tokens_where_nothing_is_written_into_the_residual_stream(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5, point=HookPoint("mlp_in", 1)), str(tiny_sae))
    found = await engine.feature(5, 0)
    assert (found.promoted, found.suppressed) == ((), ())
    assert len(found.nearest) == SHOWN


async def test_what_the_folder_records(engine: TorchEngine, tiny_sae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sae, tmp_path / "sae")
    entry = '{"label": "sea", "max": 4.5, "density": 0.5, "top_tokens": [" sea"]}'
    (folder / "features.json").write_text(f'{{"2": {entry}}}')
    await engine.attach(attach(5), str(folder))
    found = await engine.feature(5, 2)
    assert (found.label, found.max_activation, found.density, found.top_tokens) == ("sea", 4.5, 0.5, (" sea",))


async def test_refusals(engine: TorchEngine, tiny_sae: Path) -> None:
    with pytest.raises(SAENotAttachedError):
        await engine.feature(5, 0)
    await engine.attach(attach(5), str(tiny_sae))
    with pytest.raises(FeatureOutOfRangeError):
        await engine.feature(5, 24)
