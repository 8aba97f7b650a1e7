"""Generations that run: several are read together, each at its reader's place."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.errors import MailboxFullError
from sae_actor.generations import Completed, interleaved
from sae_actor.ports import Token
from tests.actor.world import living
from tests.generations.test_records import open_text

pytestmark = pytest.mark.anyio


async def test_several_are_read_together_and_a_reader_that_lags_gets_them_in_turn() -> None:
    async with living() as world:
        await world.ready()
        texts = [await open_text(world, max_tokens=count) for count in (2, 4)]
        await asyncio.gather(*(text.result() for text in texts))
        found = [(at, type(item)) async for at, item in interleaved(texts)]
        assert found == [
            *[(0, Token), (1, Token)] * 2,
            (0, Completed),
            (1, Token),
            (1, Token),
            (1, Completed),
        ]


async def test_the_first_error_is_raised_to_who_reads_several() -> None:
    async with living() as world:
        await world.ready()
        world.engine.max_running, world.engine.max_waiting = 1, 0
        world.engine.text_gate = asyncio.Event()
        texts = [await open_text(world), await open_text(world)]
        with pytest.raises(MailboxFullError):
            _ = [item async for item in interleaved(texts)]
