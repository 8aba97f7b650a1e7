"""Commands through the actor: accepted, refused, on record, and what became of them."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.commands import Attach, CancelDownload, Command, Delete, Detach, Steer, UnloadModel
from sae_actor.domain.refs import Edit, Span
from sae_actor.errors import (
    InternalError,
    NotFoundError,
    PreconditionFailedError,
    SAEAlreadyAttachedError,
    SAEDownloadError,
    SAEError,
    SAENotFoundError,
    TooLargeError,
)
from tests.actor.world import LOAD, A, B, get, living, turns, until

pytestmark = pytest.mark.anyio


async def test_two_attaches_at_the_same_instant() -> None:
    async with living() as world:
        await world.ready("a", "b")
        both = await asyncio.gather(world.submit(Attach(A)), world.submit(Attach(B)), return_exceptions=True)
        lost = [each for each in both if isinstance(each, BaseException)]
        assert len(lost) == 1
        assert isinstance(lost[0], SAEAlreadyAttachedError)
        await until(lambda: len(world.state.attached) == 1)
        assert len(world.engine.residents) == 1
        assert (await world.types()).count("AttachRequested") == 1
        await world.done(Detach(world.state.attached[0].sae_id))
        assert (world.engine.residents, world.state.attachments) == ({}, ())


async def test_what_is_answered_is_durable() -> None:
    async with living() as world:
        world.log.gate = asyncio.Event()
        sending = asyncio.create_task(world.submit(LOAD))
        await turns()
        assert not sending.done()
        assert world.engine.calls == [], "the intent comes before the effect"
        assert world.state.position == world.log.head.position == 1
        world.log.gate.set()
        accepted = await sending
        assert accepted.position == 2
        assert (await world.events())[1].command_id == accepted.command_id


async def test_several_commands_of_one_transaction_are_decided_one_after_the_other() -> None:
    async with living() as world:
        await world.ready("a")
        world.log.gate = asyncio.Event()
        first = asyncio.create_task(world.submit(Detach("unknown")))
        await turns()
        commands: list[Command] = [Attach(A), Steer(A, ()), Detach(A), Delete(A), get("b")]
        waiting = [asyncio.create_task(world.submit(command)) for command in commands]
        await turns()
        appends = world.log.appends
        world.log.gate.set()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        codes = [each.code if isinstance(each, SAEError) else "" for each in results]
        assert codes == ["sae_not_found", "", "sae_not_attached", "", "sae_in_use", ""]
        await until(lambda: not world.state.commands)
        assert world.log.appends > appends


async def test_an_outcome_waits() -> None:
    engine_gate = asyncio.Event()
    async with living() as world:
        world.engine.load_gate = engine_gate
        accepted = await world.submit(LOAD)
        assert (await world.actor.outcome(accepted.command_id)).status == "accepted"
        assert (await world.actor.outcome(accepted.command_id, 0.01)).status == "accepted"
        waiting = [asyncio.create_task(world.actor.outcome(accepted.command_id, 5)) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in waiting)
        engine_gate.set()
        for outcome in await asyncio.gather(*waiting):
            assert (outcome.status, outcome.position, outcome.error) == ("completed", accepted.position, None)
            assert [event.type for event in outcome.events] == ["ModelLoadRequested", "ModelLoaded"]
        assert world.actor._open == {}


async def test_a_command_that_ends_another_is_not_failed_by_it() -> None:
    async with living() as world:
        world.engine.load_gate = asyncio.Event()
        loading = await world.submit(LOAD)
        unloading = await world.submit(UnloadModel())
        outcome = await world.actor.outcome(unloading.command_id, 5, unloading)
        assert (outcome.status, [event.type for event in outcome.events]) == ("completed", ["ModelUnloaded"])
        assert outcome == await world.actor.outcome(unloading.command_id)
        ended = await world.actor.outcome(loading.command_id, 5, loading)
        assert (ended.status, [event.type for event in ended.events]) == (
            "failed",
            ["ModelLoadRequested", "ModelLoadFailed"],
        )
        assert ended == await world.actor.outcome(loading.command_id)


async def test_an_outcome_of_nothing() -> None:
    async with living() as world:
        with pytest.raises(NotFoundError):
            await world.actor.outcome("none")
        with pytest.raises(SAENotFoundError):
            await world.submit(Attach(A), key="k")
        refused = (await world.events())[-1]
        assert (refused.type, refused.principal) == ("CommandRejected", "me")
        assert refused.command_id is not None
        with pytest.raises(NotFoundError):
            await world.actor.outcome(refused.command_id)


async def test_a_failed_effect_is_a_failed_command() -> None:
    async with living() as world:
        world.hub.fail("download", SAEDownloadError("cut", tries=5))
        outcome = await world.do(get())
        assert outcome.status == "failed"
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.fields) == ("sae_download_failed", {"tries": 5})
        assert (await world.do(get())).status == "completed"


async def test_joined_downloads_share_the_outcome() -> None:
    async with living() as world:
        gate = world.hub.hold("download")
        accepted = [await world.submit(get()) for _ in range(3)]
        waiting = [asyncio.create_task(world.actor.outcome(each.command_id, 5)) for each in accepted]
        await turns()
        gate.set()
        for each, outcome in zip(accepted, await asyncio.gather(*waiting), strict=True):
            assert (outcome.command_id, outcome.position, outcome.status) == (
                each.command_id, each.position, "completed",
            )  # fmt: skip
            assert [event.type for event in outcome.events] == ["DownloadRequested", "DownloadCompleted"]
        assert world.hub.count("download") == 1
        later = await world.actor.outcome(accepted[2].command_id)
        assert [event.type for event in later.events] == ["DownloadRequested", "DownloadCompleted"]


async def test_a_joined_download_that_is_cancelled_fails_for_all_but_the_one_who_cancelled() -> None:
    async with living() as world:
        world.hub.hold("download")
        accepted = [await world.submit(get()) for _ in range(2)]
        cancelled = await world.do(CancelDownload(A))
        assert (cancelled.status, cancelled.error) == ("completed", None)
        for each in accepted:
            outcome = await world.actor.outcome(each.command_id, 5)
            assert outcome.status == "failed"
            assert outcome.error is not None
            assert outcome.error.fields == {"reason": "cancelled"}


async def test_the_shared_outcome_is_found_across_pages_of_the_log() -> None:
    async with living() as world:
        gate = world.hub.hold("download")
        first = await world.submit(get())
        joined = await world.submit(get())
        await world.done(LOAD)
        for _ in range(600):
            await world.submit(LOAD)  # a no-op with an outcome each
        gate.set()
        outcome = await world.actor.outcome(joined.command_id, 5)
        assert outcome.events[-1].type == "DownloadCompleted"
        assert outcome.events[-1].position > first.position + 1200


async def test_if_match() -> None:
    async with living() as world:
        await world.ready("a")
        old = world.state.revision
        with pytest.raises(PreconditionFailedError):
            await world.actor.submit(Attach(A), principal="me", expected_revision=old - 1)
        with pytest.raises(PreconditionFailedError):
            await world.actor.submit(Attach(A), principal="me", expected_revision=old + 1)
        assert world.state.revision == old, "a refusal moves nothing"
        racing = [
            world.actor.submit(Attach(A), principal="me", expected_revision=old),
            world.actor.submit(Delete(A), principal="me", expected_revision=old),
        ]
        accepted, refused = await asyncio.gather(*racing, return_exceptions=True)
        assert not isinstance(accepted, BaseException)
        assert isinstance(refused, PreconditionFailedError)
        assert refused.fields["expected"] == old


async def test_refusals_are_on_record_at_a_bounded_rate() -> None:
    async with living() as world:
        for _ in range(150):
            with pytest.raises(SAENotFoundError):
                await world.submit(Detach("unknown"))
        types = await world.types()
        assert types.count("CommandRejected") == 100
        world.clock.seconds += 1
        with pytest.raises(SAENotFoundError):
            await world.submit(Detach("unknown"))
        last = (await world.events())[-1]
        assert b'"not_recorded":50' in bytes(last.data)
        assert world.state.revision == 0


async def test_what_no_event_can_hold_is_refused_and_the_service_goes_on() -> None:
    async with living() as world:
        await world.attached("a")
        wide = tuple(Edit(i, 1.0, positions=Span(tokens=tuple(range(10**6, 10**6 + 4096)))) for i in range(20))
        before = world.state.position
        with pytest.raises(TooLargeError):
            await world.submit(Steer(A, wide))
        assert (await world.types())[before:] == ["CommandRejected"]
        await world.done(Steer(A, wide[:2]))


async def test_a_fault_in_the_rules_ends_one_command_not_the_service(caplog: pytest.LogCaptureFixture) -> None:
    async with living() as world:
        with pytest.raises(InternalError):
            await world.submit(Command())
        assert "deciding Command failed" in caplog.text
        await world.done(LOAD)


async def test_an_error_that_cannot_be_written_ends_one_effect() -> None:
    async with living() as world:
        world.hub.fail("download", SAEDownloadError("odd", cause=object()))
        outcome = await world.do(get())
        assert outcome.error is not None
        assert outcome.error.code == "internal"
        await world.done(LOAD, get("b"))
