"""A client that goes away: its command goes on, and is neither lost nor doubled."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.commands import Attach, Command, Detach, Steer
from sae_actor.domain.refs import Edit
from sae_actor.errors import SAEError
from tests.actor.world import LOAD, PATIENCE, A, World, begin, get, living, turns
from tests.fakes.log import MemoryLog

pytestmark = pytest.mark.anyio

SCRIPT: list[Command] = [LOAD, get("a"), Attach(A), Steer(A, (Edit(3, 7.0),)), Detach(A)]
INTENTS = ["ModelLoadRequested", "DownloadRequested", "AttachRequested", "SteeringChanged", "DetachRequested"]


async def follow(world: World, command: Command, key: str) -> None:
    """What a client does: send, wait for the outcome."""
    accepted = await world.submit(command, key=key)
    await world.actor.outcome(accepted.command_id, PATIENCE)


@pytest.mark.parametrize("after", range(12))
async def test_cancelled_at_every_await(after: int) -> None:
    """Row 27: the client leaves after so many steps of the loop; then it comes again with the same key."""
    async with living() as world:
        for number, command in enumerate(SCRIPT):
            client = asyncio.create_task(follow(world, command, f"step {number}"))
            await turns(after)
            client.cancel()
            await asyncio.wait([client])
            assert client.cancelled() or client.exception() is None
            await follow(world, command, f"step {number}")
        assert [name for name in await world.types() if name in INTENTS] == INTENTS
        assert world.actor._open == {}


async def test_a_slow_log_and_a_client_that_does_not_wait() -> None:
    async with living() as world:
        world.log.gate = asyncio.Event()
        clients = [asyncio.create_task(world.submit(LOAD)) for _ in range(20)]
        await turns()
        for client in clients[::2]:
            client.cancel()
        await turns()
        world.log.gate.set()
        answers = await asyncio.gather(*clients, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in answers) == 10
        await world.idle()
        assert (await world.types()).count("ModelLoadRequested") == 20, "each was sent, each is on record"
        assert world.engine.calls == [("load_model", 2)]


async def test_a_client_that_leaves_before_its_refusal_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    async with living() as world:
        client = asyncio.create_task(world.submit(Attach(A)))
        await turns(1)
        client.cancel()
        await turns()
        assert "CommandRejected" in await world.types()
    assert caplog.text == ""


async def test_a_hundred_clients_come_and_go() -> None:
    world = await begin(MemoryLog())
    await world.ready("a")

    async def client(number: int) -> None:
        for turn in range(5):
            command = Attach(A) if (number + turn) % 2 else Detach(A)
            try:
                await asyncio.wait_for(world.submit(command), 0.001 * (number % 3))
            except (SAEError, TimeoutError):
                continue

    await asyncio.gather(*(client(number) for number in range(100)))
    await world.idle()
    await turns()
    assert len(world.state.attachments) == len(world.engine.residents) <= 1
    types = await world.types()
    assert types.count("AttachRequested") == types.count("SaeAttached") + types.count("AttachFailed")
    assert types.count("DetachRequested") == types.count("SaeDetached")
    await world.check()
    await world.actor.stop()
