"""Imports with real files: one SAE wherever its folder lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sae_actor.domain.commands import Attach, Detach, Import
from sae_actor.hub.digests import sha256_of
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.making import recording

pytestmark = pytest.mark.anyio


async def test_a_folder_that_moved_is_the_same_sae(tmp_path: Path) -> None:
    model, first = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "one" / "my-sae")
    digest = sha256_of(first / "sae_weights.safetensors")
    async with recording(tmp_path / "log", model) as service:
        sae_id = await service.attach(first)
        assert sae_id == f"my-sae-{digest[:8]}"
        second = Path(shutil.copytree(first, tmp_path / "two" / "my-sae"))
        await service.do(Import(path=str(second)))
        record = service.actor.state.saes[sae_id]
        assert (list(service.actor.state.saes), record.path, record.status) == ([sae_id], str(second), "cached")
        assert service.actor.state.attachment(sae_id) is not None
        shutil.rmtree(first)
        await service.do(Detach(sae_id=sae_id))
        await service.do(Attach(sae_id=sae_id))
        before = service.actor.state.position
        await service.do(Import(path=str(second)))
        assert service.actor.state.position == before + 2, "it is there"
        other = save_tiny_sae(tmp_path / "three" / "my-sae", seed=9)
        await service.do(Import(path=str(other)))
        assert sorted(service.actor.state.saes) == sorted(
            [sae_id, f"my-sae-{sha256_of(other / 'sae_weights.safetensors')[:8]}"]
        )
