"""What ends one generation of a batch, and none of the others."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from sae_actor.domain.refs import Edit
from sae_actor.ports import Watch
from tests.engine.asking import active, apart, detach, finished, read, request
from tests.engine.tiny import save_tiny_sae

from .batches import LOWER, POINT, ids, running

pytestmark = pytest.mark.anyio


async def test_an_sae_with_bad_rows_ends_only_the_texts_that_touch_them(tiny_llama: Path, tmp_path: Path) -> None:
    folder = save_tiny_sae(tmp_path / "sae")
    good, bad = (
        active(5, Edit(feature=3, strength=5.0, exclude=())),
        active(5, Edit(feature=4, strength=5.0, exclude=())),
    )
    async with running(tiny_llama, (5, POINT), sae=folder) as engine:
        alone = await finished(engine, request(ids(9, 1), good))
        engine._residents[5].sae.W_dec[4] = torch.nan
        asked = [request(ids(9, 1), good), request(ids(9, 1), bad), request(ids(9, 1), good)]
        first, failed, last = await asyncio.gather(*(finished(engine, each) for each in asked))
    assert first.token_ids == last.token_ids == alone.token_ids
    assert first.edited == last.edited == alone.edited
    assert (failed.reason, failed.faulted) == ("error", 5)


async def test_a_forward_pass_that_fails_for_one_text(tiny_llama: Path, tiny_sae: Path) -> None:
    """A module that cannot stand one token: the others get their tokens as if nothing had been."""
    async with running(tiny_llama, sae=tiny_sae) as engine:
        assert engine._model is not None
        good = [request(ids(9, seed), tokens=12) for seed in range(3)]
        alone = [await finished(engine, each) for each in good]

        def fail(_: Any, args: tuple[Any, ...]) -> None:
            if bool((args[0] == 259).any()):
                raise RuntimeError("secret")

        engine._model.network.get_input_embeddings().register_forward_pre_hook(fail)
        bad = request((7, 259, 8), tokens=12)
        ends = await asyncio.gather(*(finished(engine, each) for each in (*good, bad)))
        assert [apart(end) for end in ends[:3]] == [apart(end) for end in alone]
        assert (ends[3].reason, ends[3].error_code) == ("error", "internal")
        assert "secret" not in (ends[3].error_detail or "")


async def test_every_end_is_one_texts_own(tiny_llama: Path, tmp_path: Path) -> None:
    """A reader that leaves, a deadline, an SAE that fails and one that is detached, beside three that go on."""
    folder = save_tiny_sae(tmp_path / "sae")
    fine = [
        request(ids(9, 1), tokens=90),
        request(ids(8, 2), active(5, Edit(feature=3, strength=5.0, exclude=())), tokens=90),
        request(ids(7, 3), active(5, mode="reconstruct"), tokens=90, temperature=0.9),
    ]
    async with running(tiny_llama, (5, POINT), (6, LOWER), (7, LOWER), sae=folder) as engine:
        alone = [await finished(engine, each) for each in fine]
        engine._residents[7].sae.W_dec[4] = torch.nan
        survivors = [asyncio.create_task(finished(engine, each)) for each in fine]
        left = engine.generate(request(ids(9, 4), tokens=100))
        late = asyncio.create_task(finished(engine, request(ids(9, 5), tokens=100, deadline=0.02)))
        failing = request(
            ids(9, 6), active(7, Edit(feature=4, strength=1.0, positions="generated", exclude=()), point=LOWER)
        )
        failed = asyncio.create_task(finished(engine, failing))
        removed = active(6, Edit(feature=1, strength=2.0, exclude=()), point=LOWER)
        gone = asyncio.create_task(finished(engine, request(ids(9, 7), removed, tokens=115)))
        await anext(left)
        await left.aclose()
        assert await engine.detach(detach(6), 0.0) > 0
        assert [(end.token_ids, end.text) for end in await asyncio.gather(*survivors)] == [
            (end.token_ids, end.text) for end in alone
        ]
        assert (await late).error_code == "not_ready"
        assert ((await failed).error_code, (await failed).faulted) == ("internal", 7)
        assert (await gone).reason == "intervention_removed"
        again = [await finished(engine, each) for each in fine]
    assert again == alone


async def test_joined_edits_hold_no_sae_that_was_detached(tiny_llama: Path, tiny_sae: Path) -> None:
    async with running(tiny_llama, (5, POINT), sae=tiny_sae) as engine:
        sae = weakref.ref(engine._residents[5].sae)
        asked = [request(ids(9, n), active(5, Edit(feature=n, strength=2.0, exclude=())), tokens=80) for n in range(3)]
        texts = [asyncio.create_task(finished(engine, each)) for each in asked]
        passing = Watch(sae=active(5), top_k=2, every_seconds=0.0)
        beside = asyncio.create_task(finished(engine, request(ids(9, 5), watched=(passing,), tokens=100)))
        await asyncio.sleep(0.05)
        await engine.detach(detach(5), 0.0)
        assert {(await each).reason for each in texts} <= {"intervention_removed", "length"}
        assert (await beside).reason == "length"
        gc.collect()
        assert sae() is None


async def test_a_text_leaves_nothing_to_the_next_in_its_place(tiny_llama: Path, tiny_sae: Path) -> None:
    """A text whose activations stop being finite, beside a longer one; then another in its slot."""
    async with running(tiny_llama, sae=tiny_sae) as engine:
        assert engine._model is not None
        good = request(ids(7, 3), tokens=10)
        alone = await finished(engine, good)
        bad = replace(request(ids(40, 2)), forced=(1, 2, 3, 259, 4, 5))

        def spoil(_: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return torch.where((args[0] == 259)[..., None], torch.nan, out)

        engine._model.network.get_input_embeddings().register_forward_hook(spoil)
        long = engine.generate(request(ids(90, 1), tokens=38))
        await anext(long)
        end = await finished(engine, bad)
        assert (end.reason, end.error_code, end.token_ids) == ("error", "internal", (1, 2, 3, 259))
        assert end.error_detail == "the model's logits are not finite"
        innocent = [await finished(engine, good) for _ in range(2)]
        assert (await read(long))[1].reason == "length"
    assert innocent[0].batch is not None
    assert innocent[0].batch[1] == 2, "it ran beside the long one"
    assert [(end.reason, end.token_ids) for end in innocent] == [("length", alone.token_ids)] * 2
