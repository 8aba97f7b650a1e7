"""What is monitored goes out as passing events: beside every text, in none of its answers, at a limited rate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from sae_actor.domain.commands import Detach, Monitor, Steer
from sae_actor.domain.refs import Edit
from sae_actor.generations import monitoring, read_activations
from sae_actor.ports import Watch
from sae_actor.subscriptions import Broadcast
from tests.actor.world import A, World, living, turns
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.generations.test_records import PROMPT, open_text
from tests.reproducing.making import GREEDY, edit, recording

pytestmark = pytest.mark.anyio


@pytest.fixture
def every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pause between two readings of one text."""
    monkeypatch.setattr(monitoring, "EVERY_SECONDS", 0.0)


@contextmanager
def heard(broadcast: Broadcast) -> Iterator[list[dict[str, Any]]]:
    """The data of every `activations` event that is announced meanwhile."""
    announced: list[dict[str, Any]] = []
    announce = broadcast.announce

    def spy(event_type: str, data: dict[str, Any]) -> None:
        if event_type == "activations":
            announced.append(msgspec.json.decode(msgspec.json.encode(data)))
        announce(event_type, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broadcast, "announce", spy)
        yield announced


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[World, list[dict[str, Any]]]]:
    """A service with an SAE attached, and what it announces."""
    async with living() as world:
        await world.attached("a")
        with heard(world.actor.broadcast) as announced:
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
    now = asyncio.get_running_loop().time
    async with watching() as (world, announced):
        await world.done(Monitor(A, enabled=True))
        began = now()
        await (await open_text(world, max_tokens=100)).result()
        assert 1 <= len(announced) <= 1 + (now() - began) / monitoring.EVERY_SECONDS, "100 tokens in a moment"
        monkeypatch.setattr(monitoring, "EVERY_SECONDS", 0.0)
        announced.clear()
        began = now()
        texts = [await open_text(world, max_tokens=100) for _ in range(4)]
        await asyncio.gather(*(text.result() for text in texts))
        most = monitoring.BURST + monitoring.PER_SECOND * (now() - began)
        assert 0 < len(announced) <= most, "over all texts together"


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


async def test_on_a_real_model(tmp_path: Path, every_time: None) -> None:
    """What is announced is what reading the whole text as a prompt gives; the text and its record are as without."""
    model, sae = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "sae")
    async with recording(tmp_path / "log", model) as service:
        sae_id = await service.attach(sae)
        await service.steer(sae_id, edit(3, 30.0))
        _, bare = await service.say()
        with heard(service.actor.broadcast) as announced:
            await service.do(Monitor(sae_id, enabled=True, top_k=3))
            _, done = await service.say()
            assert (done.finished.token_ids, done.finished.receipt) == (bare.finished.token_ids, bare.finished.receipt)
            assert done.record.intervention_sha256 == bare.record.intervention_sha256
            prompt = (await service.engine.tokenize("hello")).token_ids
            (watch,) = monitoring.watches(service.actor.state)
            steered = replace(watch.sae, steering=(edit(3, 30.0),))
            ids = (*prompt, *done.finished.token_ids[:-1])
            whole = await read_activations(
                service.engine, ids, (steered,), (), Watch(sae=watch.sae, top_k=3), deadline_seconds=60
            )
        assert [each["position"] for each in announced] == list(range(len(prompt) - 1, len(ids)))
        for each in announced:
            read = {one.feature: one.activation for one in whole.rows[each["position"]]}
            assert {one["feature"]: one["activation"] for one in each["features"]} == pytest.approx(read, rel=1e-4)
        assert len(announced) == GREEDY.max_tokens
