"""Texts: admitted in order, run under what was in force, and always closed on record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Steer
from sae_actor.domain.messages import AdmitGeneration
from sae_actor.domain.refs import Edit
from sae_actor.errors import (
    DrainingError,
    MailboxFullError,
    ModelNotLoadedError,
)
from sae_actor.generations import Completed, Generations, Requested, RunningGeneration, interleaved
from sae_actor.generations.records import token_digest
from sae_actor.ports import Token
from tests.actor.world import A, World, living, turns, until

pytestmark = pytest.mark.anyio
PROMPT = tuple(b"hello")


def ask(max_tokens: int = 4, **more: Any) -> Callable[[str], AdmitGeneration]:
    def made(generation_id: str) -> AdmitGeneration:
        return AdmitGeneration(
            generation_id=generation_id,
            kind="completion",
            tokens_prompt=len(PROMPT),
            sampling=ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, seed=1),
            **more,
        )

    return made


async def open_text(world: World, texts: Generations | None = None, **more: Any) -> RunningGeneration:
    requested = Requested(ask(**more), PROMPT)
    return (await (texts or world.texts).open_all([requested], principal="me"))[0]


async def ends(world: World) -> list[ev.GenerationFinished]:
    """Every end on record; there is exactly one for each beginning."""
    events = await world.events()
    started = [e.payload() for e in events if e.type == "GenerationStarted"]
    finished = [e.payload() for e in events if e.type == "GenerationFinished"]
    begun = [each.generation_id for each in started if isinstance(each, ev.GenerationStarted)]
    ended = [each for each in finished if isinstance(each, ev.GenerationFinished)]
    assert sorted(begun) == sorted(each.generation_id for each in ended)
    return ended


async def test_the_last_thing_comes_after_the_end_is_durable() -> None:
    async with living() as world:
        await world.ready()
        text = await open_text(world)
        assert text.position == world.log.head.position
        world.log.gate = asyncio.Event()
        items: list[Token | Completed] = []

        async def read() -> None:
            async for _, item in interleaved([text]):
                items.append(item)

        reading = asyncio.create_task(read())
        await turns(50)
        assert [type(item) for item in items] == [Token] * 4
        world.log.gate.set()
        await reading
        done = items[-1]
        assert isinstance(done, Completed)
        (end,) = await ends(world)
        assert end == done.record
        assert (end.finish_reason, end.started_position, end.error) == ("length", text.position, None)
        assert end.prompt_sha256 == token_digest(end.salt, PROMPT)
        assert end.output_sha256 == token_digest(end.salt, done.finished.token_ids)
        assert (end.text, end.prompt_token_ids, end.output_token_ids) == (None, None, None)


async def test_what_was_in_force_stays_in_force() -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        steered = (await (await open_text(world)).result()).finished.text
        world.engine.text_gate = asyncio.Event()
        running = await open_text(world)
        await world.done(Steer(A, ()))
        world.engine.text_gate.set()
        assert (await running.result()).finished.text == steered
        assert (await (await open_text(world)).result()).finished.text != steered


async def test_record_text() -> None:
    async with living() as world:
        await world.ready()
        texts = Generations(world.actor, world.engine, record_text=True)
        done = await (await open_text(world, texts)).result()
        (end,) = await ends(world)
        assert (end.prompt_token_ids, end.output_token_ids, end.text) == (
            PROMPT, done.finished.token_ids, done.finished.text,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "left_out"),
    [
        (10, None),
        (2_000, ["prompt_token_ids"]),
        (11, ["prompt_token_ids", "output_token_ids", "text"]),
    ],
)
async def test_what_of_a_text_no_event_can_hold_is_named(
    tokens: int, left_out: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ev, "MAX_PAYLOAD_BYTES", 4096)
    async with living() as world:
        world.engine.context_length = 10**6
        await world.ready()
        texts = Generations(world.actor, world.engine, record_text=True)
        prompt = tuple([200] * tokens)
        long = left_out is not None and "text" in left_out
        (text,) = await texts.open_all([Requested(ask(1_500 if long else 4), prompt)], principal="me")
        done = await text.result()
        (end,) = await ends(world)
        assert (end, end.finish_reason) == (done.record, "length")
        assert end.prompt_token_ids == (None if left_out else prompt)
        assert end.output_token_ids == (None if long else done.finished.token_ids)
        assert end.text == (None if long else done.finished.text)
        if left_out is None:
            assert end.left_out is None
            return
        assert end.left_out is not None
        assert (end.left_out.code, end.left_out.fields["left_out"]) == ("too_large", left_out)
        assert f"{ev.MAX_PAYLOAD_BYTES} go on record" in end.left_out.detail


@pytest.mark.parametrize("after", range(10))
async def test_a_reader_that_leaves_cancels_the_text_and_not_its_record(after: int) -> None:
    async with living() as world:
        await world.ready()
        world.engine.step_seconds = 0.001

        async def client() -> None:
            text = await open_text(world, max_tokens=100)
            await text.result()

        reading = asyncio.create_task(client())
        await turns(after)
        reading.cancel()
        await asyncio.wait([reading])
        await until(lambda: not world.state.generations and not world.texts._running)
        await turns()
        assert all(end.finish_reason == "cancelled" for end in await ends(world))
        assert not world.engine._streams
        world.engine.step_seconds = 0.0
        assert (await (await open_text(world)).result()).finished.reason == "length"


async def test_a_text_that_nobody_reads_has_a_receipt_all_the_same() -> None:
    """Steered tokens went out: where it was steered is on record."""
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        world.engine.step_seconds = 0.001
        text = await open_text(world, max_tokens=100)
        await until(lambda: len(text.made) >= 3)
        text.abandon()
        await text.result()
        (end,) = await ends(world)
        assert end.receipt is not None
        run = len(PROMPT) + end.receipt.tokens_generated - 1
        assert (end.finish_reason, end.edited, end.receipt.tokens_edited) == ("cancelled", ((1, run),), run - 1)
        assert not world.engine._streams


async def test_an_engine_that_does_not_say_where_a_text_was_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, (Edit(3, 7.0),)))
        world.engine.text_gate = asyncio.Event()
        world.texts.stop_wait_seconds = 0.01
        monkeypatch.setattr("tests.fakes.text.RunningText.stop", lambda _: None)
        text = await open_text(world)
        text.abandon()
        await text.result()
        (end,) = await ends(world)
        assert (end.finish_reason, end.receipt, end.edited) == ("cancelled", None, ())
        assert not world.engine._streams


async def test_the_engine_is_full() -> None:
    async with living() as world:
        world.engine.max_running, world.engine.max_waiting = 1, 0
        world.engine.text_gate = asyncio.Event()
        await world.ready()
        first = await open_text(world)
        await turns()
        with pytest.raises(MailboxFullError):
            await (await open_text(world)).result()
        world.engine.text_gate.set()
        await first.result()
        reasons = [(end.finish_reason, end.error.code if end.error else None) for end in await ends(world)]
        assert sorted(reasons, key=str) == [("error", "mailbox_full"), ("length", None)]


async def test_not_admitted_is_not_begun() -> None:
    async with living() as world:
        with pytest.raises(ModelNotLoadedError):
            await open_text(world)
        assert await ends(world) == []
        assert "CommandRejected" not in await world.types()
        await world.actor.stop()
        with pytest.raises(DrainingError):
            await open_text(world)


async def test_order_against_commands_is_that_of_the_log() -> None:
    async with living() as world:
        await world.attached("a")
        sending: list[asyncio.Task[Any]] = []
        for i in range(20):
            sending.append(asyncio.create_task(world.submit(Steer(A, (Edit(i, 1.0),)))))
            sending.append(asyncio.create_task(open_text(world)))
        await asyncio.gather(*sending)
        current: tuple[Edit, ...] = ()
        for event in await world.events():
            payload = event.payload()
            if isinstance(payload, ev.SteeringChanged):
                current = payload.features
            if isinstance(payload, ev.GenerationStarted):
                assert payload.intervention[0].steering == current
