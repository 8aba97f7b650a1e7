"""The bounded mailbox: commands may be refused, reports never are."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.actor import Accepted, Envelope, Mailbox
from sae_actor.domain.commands import Download, UnloadModel
from sae_actor.domain.messages import Stop
from sae_actor.errors import MailboxFullError
from tests.actor.world import LOAD, REPOSITORY, get, living, turns, until

pytestmark = pytest.mark.anyio


def envelope(*, reserved: bool = False, weight: int = 1) -> Envelope:
    return Envelope(Stop(), "me", asyncio.get_running_loop().create_future(), reserved=reserved, weight=weight)


async def test_first_in_first_out() -> None:
    mailbox = Mailbox()
    sent = [envelope(reserved=i % 2 == 0) for i in range(10)]
    for each in sent:
        mailbox.put(each)
    assert await mailbox.take(4) == sent[:4]
    assert await mailbox.take(100) == sent[4:]
    assert len(mailbox) == 0


async def test_a_turn_takes_a_heavy_message_alone() -> None:
    """1,024 texts of one request and 63 messages with as many would be more than one append holds."""
    mailbox = Mailbox()
    light, heavy, behind = envelope(weight=3), envelope(weight=1024), envelope()
    for each in (light, envelope(), heavy, behind):
        mailbox.put(each)
    assert (await mailbox.take(64))[0] is light
    assert await mailbox.take(64) == [heavy]
    assert await mailbox.take(64) == [behind]


async def test_a_bound_for_the_outside_alone() -> None:
    mailbox = Mailbox(capacity=3)
    for _ in range(3):
        mailbox.put(envelope())
    with pytest.raises(MailboxFullError) as full:
        mailbox.put(envelope())
    assert full.value.fields["retry_after"] >= 1
    for _ in range(100):
        mailbox.put(envelope(reserved=True))
    assert len(await mailbox.take(1)) == 1
    mailbox.put(envelope())
    with pytest.raises(MailboxFullError):
        mailbox.put(envelope())


async def test_a_reader_waits_and_may_give_up() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.take(5))
    await turns()
    reader.cancel()
    await asyncio.wait([reader])
    one = envelope()
    mailbox.put(one)
    assert await mailbox.take(5) == [one]


async def test_a_reader_does_not_wake_for_what_was_drained() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.take(5))
    await turns()
    mailbox.put(envelope())
    mailbox.drain()
    await turns()
    assert not reader.done()
    one = envelope()
    mailbox.put(one)
    assert await reader == [one]


async def test_drain() -> None:
    mailbox = Mailbox(capacity=2)
    outside, report = envelope(), envelope(reserved=True)
    for each in (outside, report):
        mailbox.put(each)
    assert mailbox.drain(reserved=False) == [outside]
    assert await mailbox.take(5) == [report]
    mailbox.put(outside)
    mailbox.put(report)
    assert mailbox.drain() == [outside, report]
    for _ in range(2):
        mailbox.put(envelope())  # there is room again


async def test_an_answer_to_someone_who_went_away() -> None:
    one = envelope()
    one.reply.cancel()
    one.answer(1)
    one.fail(ValueError())


async def test_a_flood_of_commands_does_not_hold_up_reports() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        gate = world.hub.hold("download")
        await world.submit(LOAD)
        await world.submit(get())
        world.log.gate = asyncio.Event()  # the log is slow: everything waits
        sent: list[asyncio.Task[Accepted]] = []
        for i in range(10_000):
            sent.append(asyncio.create_task(world.submit(Download(REPOSITORY, path="a", force=bool(i % 2)))))
        await turns()
        full = [task.exception() for task in sent if task.done()]
        assert len(full) > 9_000
        assert all(isinstance(error, MailboxFullError) for error in full)
        assert len(world.actor.mailbox) <= world.actor.mailbox.capacity + 1
        gate.set()
        world.engine.load_gate.set()
        await turns()  # both effects report into the full mailbox
        world.log.gate.set()
        await asyncio.gather(*sent, return_exceptions=True)
        await until(lambda: not world.state.commands)
        assert world.state.model is not None
        assert world.state.model.status == "loaded"
        await world.done(UnloadModel())
