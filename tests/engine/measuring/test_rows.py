"""What an SAE's weights say of each feature, worked out plainly; and what the port tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_actor.engine import TorchEngine
from sae_actor.engine.measuring import rows
from sae_actor.errors import SAENotAttachedError
from sae_actor.ports import TextGroup
from sae_actor.sae import load_sae
from tests.engine.asking import attach, detach
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

TEXTS = ((1, 2, 3, 2), (7, 7), (9,))


def nearest(rows_of: Tensor) -> Tensor:
    """[n, width] → [n]"""
    cosines = cosine_similarity(rows_of[:, None], rows_of[None], dim=-1)
    return cosines.fill_diagonal_(-1).amax(-1)


async def test_as_computed_plainly(engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 10)
    await engine.attach(attach(7), str(tiny_sae))
    found = await engine.compare_rows(7)
    sae = load_sae(str(tiny_sae), dtype="float64")
    encoder, decoder = sae.W_enc.T, sae.W_dec
    for told, expected in (
        (found.encoder_bias, sae.weights["b_enc"]),
        (found.encoder_norm, encoder.norm(dim=-1)),
        (found.encoder_decoder_cosine, cosine_similarity(encoder, decoder)),
        (found.nearest_encoder_cosine, nearest(encoder)),
        (found.nearest_decoder_cosine, nearest(decoder)),
    ):
        torch.testing.assert_close(torch.tensor(told, dtype=torch.float64), expected, rtol=1e-5, atol=1e-5)


async def test_the_port_tells_a_number_of_each_feature(given: Given) -> None:
    await given.attach(5)
    group = TextGroup(attach_position=5, texts=TEXTS)
    found, compared = await given.engine.evaluate(group), await given.engine.compare_rows(5)
    d_sae = len(found.firing)
    lists = (compared.encoder_bias, compared.encoder_norm, compared.nearest_encoder_cosine, found.texts_firing)
    assert [len(each) for each in lists] == [d_sae] * 4
    assert found.sums["texts"] == len(TEXTS)
    for positions, texts in zip(found.firing, found.texts_firing, strict=True):
        assert (positions > 0) == (texts > 0)
        assert texts <= min(positions, 2), "of the last text no position counts"
    await given.engine.detach(detach(5), 0.0)
    with pytest.raises(SAENotAttachedError):
        await given.engine.compare_rows(5)
