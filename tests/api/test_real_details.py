"""`sae.details` on a real model: what the answer tells of each position is what the other routes tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import save_tiny_sae

from .test_real_presets import answered, together, with_presets

pytestmark = pytest.mark.anyio

EDIT = {"feature": 3, "strength": 30.0}


async def test_of_a_tiny_llama(tmp_path: Path) -> None:
    async with with_presets(tmp_path) as (client, service):
        sae_id = await service.attach(save_tiny_sae(tmp_path / "tiny-sae"))
        plain = await answered(client, sae={"steering": [EDIT]})
        own: dict[str, Any] = {"steering": [EDIT], "details": True, "details_of": [7]}
        told, other = await together(
            service, answered(client, sae=own), answered(client, prompt="Another prompt", sae={"steering": [EDIT]})
        )
        assert told["choices"] == plain["choices"]
        assert (told["sae"]["batch"][1], other["sae"]["batch"][1]) == (2, 2)
        positions = told["sae"]["positions"]
        prompt = told["sae"]["receipt"]["tokens_prompt"]
        assert len(positions) == prompt + 23
        assert [each["edits"] for each in positions] == [[]] + [[[sae_id, 0]]] * (prompt + 22)
        norms = [each["relative_norm"] for each in positions]
        assert norms[0] == 0.0
        assert sum(norms) / (len(norms) - 1) == pytest.approx(plain["sae"]["receipt"]["mean_relative_norm"], rel=1e-4)
        ids = (await client.post("/tokenize", json={"prompt": "Once upon a time"})).json()["tokens"]
        read = {"token_ids": ids, "features": [3, 7], "sae": {"steering": [EDIT]}}
        rows = (await client.post("/api/activations", json=read)).json()["features"]
        # The decoder row of feature 3 is of length 1, and its encoder reads along it.
        for each, row in zip(positions[1:], rows[1:], strict=False):
            assert [one["feature"] for one in each["features"]] == [3, 7]
            assert [one["before"] for one in each["features"]] == pytest.approx(
                [one["activation"] for one in row], abs=1e-3
            )
        raw = (await client.post("/api/activations", json={**read, "raw": True})).json()["raw"]
        for each, x in zip(positions[1:], raw[1:], strict=False):
            assert each["relative_norm"] == pytest.approx(30.0 / sum(n * n for n in x) ** 0.5, rel=1e-3)
