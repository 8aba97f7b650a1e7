"""What the demo says of a log in which its SAE is not attached: lines for a shell that bring it back."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from sae_actor.demo.seed import seed
from sae_actor.domain.commands import LoadModel
from tests.api.conftest import MODEL, serving
from tests.fakes.hub import description, imported_id

FOLDER = "/saes/smollm2 layer'15"
SAE_ID = imported_id(FOLDER)


@pytest.mark.anyio
async def test_the_way_back_after_a_detach_and_after_a_delete(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as running:
        running.hub.place(FOLDER, description(d_in=16))
        await running.command("LoadModel", model=MODEL)

        async def way_back() -> list[str]:
            await seed(running.actor, running.log, LoadModel(model=MODEL), running.url, Path(FOLDER), token=False)
            head, _, *lines = capsys.readouterr().out.splitlines()
            assert head == "ready; the demo's SAE is not attached. To attach it again:"
            for line in lines:
                ran = await asyncio.to_thread(subprocess.run, ["sh", "-c", line], capture_output=True, check=True)
                assert b'"status":"completed"' in ran.stdout, ran
            assert running.actor.state.attachment(SAE_ID) is not None
            return lines

        assert len(await way_back()) == 2
        await running.command("Detach", sae_id=SAE_ID)
        assert len(await way_back()) == 1
        await running.command("Detach", sae_id=SAE_ID)
        await running.command("Delete", sae_id=SAE_ID)
        assert len(await way_back()) == 2
