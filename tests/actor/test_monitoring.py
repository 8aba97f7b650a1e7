"""What is monitored goes out as passing events: beside every text, in none of its answers, at a limited rate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sae_actor.actor import monitoring
from sae_actor.domain.commands import Detach, Monitor, Steer
from sae_actor.domain.refs import Edit
from tests.actor.test_text_records import PROMPT, open_text
from tests.actor.world import A, World, living, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
def every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pause between two readings of one text."""
    monkeypatch.setattr(monitoring, "EVERY_SECONDS", 0.0)


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[World, list[dict[str, Any]]]]:
    """A service with an SAE attached, and the data of every `activations` event so far."""
    async with living() as world:
        await world.attached("a")
        announced: list[dict[str, Any]] = []
        announce = world.actor.broadcast.announce

        def spy(event_type: str, data: dict[str, Any]) -> None:
            if event_type == "activations":
                announced.append(msgspec.json.decode(msgspec.json.encode(data)))
            announce(event_type, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.actor.broadcast, "announce", spy)
            yield world, announced


async def test_every_text_is_read_and_no_answer_shows_it(every_time: None) -> None:
    async with watching() as (world, announced):
        await world.done(Steer(A, (Edit(3, 7.0),)))
        bare = await (await open_text(world)).result()
        assert announced == []
        await world.done(Monitor(A, enabled=True, top_k=2))
        text = await open_text(world)
        watched = await text.result()
        digests = (bare.record.intervention_sha256, watched.record.intervention_sha256)
        assert (watched.finished, digests[1]) == (bare.finished, digests[0])
        assert [token.activations for token in text.made] == [()] * 4
        ids = (*PROMPT, *watched.finished.token_ids)
        assert announced == [
            {
                "generation_id": text.started.generation_id,
                "sae_id": A,
                "position": at,
                # Nobody told this text what its prompt reads.
                "token": None if at < len(PROMPT) else chr(ids[at]),
                "features": [{"feature": (ids[at] + n) % 32, "activation": 3.0 - n} for n in range(2)],
            }
            for at in range(len(PROMPT) - 1, len(ids) - 1)
        ]
        assert (await world.events())[-1].type == "GenerationFinished"
        assert not any(event.type == "activations" for event in await world.events())


async def test_a_baseline_is_read_too_and_a_request_s_own_reading_stays_whole(every_time: None) -> None:
    async with watching() as (world, announced):
        await world.done(Monitor(A, enabled=True, features=(ord("o") % 32, 1), top_k=1))
        text = await open_text(world, baseline=True, watch=True)
        await text.result()
        own = [told for token in text.made for told in token.activations]
        assert [len(token.activations) for token in text.made] == [1] * 4
        assert sum(len(told.rows) for told in own) == len(PROMPT) + 3
        assert announced[0]["features"] == [{"feature": ord("o") % 32, "activation": 3.0}]


async def test_at_a_limited_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching() as (world, announced):
        await world.done(Monitor(A, enabled=True))
        await (await open_text(world, max_tokens=100)).result()
        assert len(announced) == 1, "100 tokens in a moment are read once"
        monkeypatch.setattr(monitoring, "EVERY_SECONDS", 0.0)
        announced.clear()
        texts = [await open_text(world, max_tokens=100) for _ in range(4)]
        await asyncio.gather(*(text.result() for text in texts))
        assert len(announced) <= monitoring.BURST + 5, "over all texts together"


@pytest.mark.parametrize("end", [Monitor(A, enabled=False), Detach(A)], ids=["taken back", "detached"])
async def test_it_ends_in_the_middle_of_a_text(every_time: None, end: Monitor | Detach) -> None:
    async with watching() as (world, announced):
        await world.done(Monitor(A, enabled=True))
        world.engine.text_gate = asyncio.Event()
        text = await open_text(world, max_tokens=6, baseline=True)
        await turns()
        await world.done(end)
        world.engine.text_gate.set()
        assert (await text.result()).finished.reason == "length", "a text that is only monitored goes on"
        assert announced == []
        assert world.state.attached == () or world.state.attached[0].monitoring is None
