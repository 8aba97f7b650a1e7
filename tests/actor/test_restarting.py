"""A new process on the same log: everything as it was, each effect once more, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from sae_actor.domain.commands import Attach, Command, Delete, Detach, Download, Steer, UnloadModel
from sae_actor.domain.events import Draft, Event, Sampling
from sae_actor.domain.messages import AdmitGeneration
from sae_actor.domain.refs import Edit
from sae_actor.domain.views.resources import degraded_view, state_view
from sae_actor.errors import SAEError, SAEInvalidError
from sae_actor.eventlog import SqliteLog
from sae_actor.ports import EventLog
from tests.actor.world import LOAD, PATIENCE, REPOSITORY, A, B, C, World, begin, get, living, shelves, turns, until
from tests.fakes.engine import FakeEngine
from tests.fakes.log import MemoryLog

pytestmark = pytest.mark.anyio
EDITS = (Edit(3, 7.0, exclude=("sink",)), Edit(4, 0.0, "scale"))


@pytest.mark.parametrize("crash", [False, True])
async def test_everything_as_it_was(crash: bool, tmp_path: Path) -> None:
    log, hub = await SqliteLog.open(tmp_path), shelves()
    world = await begin(log, hub)
    await world.attached("a")
    await world.done(Steer(A, EDITS, enabled=False), get("b"))
    before = state_view(world.state)
    await (world.kill() if crash else world.actor.stop())
    await log.close()

    log = await SqliteLog.open(tmp_path)
    async with living(log, hub) as after:
        await after.converged()
        now = state_view(after.state)
        assert now.model == before.model
        assert now.saes == before.saes
        (was,), (attachment,) = before.attachments, now.attachments
        assert replace(attachment, position=0) == replace(was, position=0)
        restored = [e.type for e in await after.events() if b'"restored":true' in bytes(e.data)]
        assert restored == ["ModelLoaded", "SaeAttached"]
        assert ("EffectInterrupted" in await after.types()) is False, "nothing was under way"
        assert len(after.engine.residents) == 1
    await log.close()


async def test_the_end_of_a_text_that_a_crash_cut_off_belongs_to_whoever_asked_for_it() -> None:
    world = await begin()
    await world.ready()
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1)
    asked = AdmitGeneration(generation_id="g", kind="completion", tokens_prompt=1, sampling=sampling)
    (started,) = await world.actor.admit([asked], principal="uma")
    assert [each.principal for each in state_view(world.state).generations] == ["uma"]
    await world.kill()
    async with living(world.log, world.hub) as after:
        end = next(event for event in await after.events() if event.type == "GenerationFinished")
        assert (started.principal, end.principal) == ("uma", "uma")
        assert b'"finish_reason":"interrupted"' in bytes(end.data)


async def test_the_model_of_the_settings_is_asked_for_once() -> None:
    world = await begin(model=LOAD)
    assert world.state.model is not None
    assert world.state.model.status == "loading", "nobody finds the service ready before"
    await world.converged()
    await world.actor.stop()
    again = await begin(world.log, world.hub, model=LOAD)
    await again.converged()
    await again.actor.stop()
    asked = [event for event in await again.events() if event.type == "ModelLoadRequested"]
    assert [(event.principal, event.command_id is not None) for event in asked] == [("configuration", True)]


async def test_in_the_order_of_the_log() -> None:
    async with living(max_attachments=3) as world:
        await world.ready("a", "b", "c")
        await world.done(Attach(C), Attach(A), Attach(B), Detach(A), Attach(A))
        positions = [a.request_position for a in world.state.attached]
        log, hub = world.log, world.hub
    async with living(log, hub, max_attachments=3) as after:
        await after.converged()
        assert [a.sae_id for a in after.state.attached] == [C, B, A]
        assert after.engine.calls == [("load_model", 2), *(("attach", at) for at in positions)]


async def test_the_third_crash_in_a_row_is_the_last() -> None:
    """Row 61a: an effect that ends the process every time."""
    log: EventLog | None = None
    hub, engine = shelves(), FakeEngine()
    engine.load_gate = asyncio.Event()
    world = await begin(log, hub, engine)
    loading = await world.submit(LOAD)
    for attempt in (1, 2, 3):
        await until(lambda calls=engine.calls: calls == [("load_model", loading.position)])  # type: ignore[misc]
        await world.kill()
        engine = FakeEngine()
        engine.load_gate = asyncio.Event()
        world = await begin(world.log, hub, engine)
        assert (await world.types()).count("EffectInterrupted") == attempt
    assert engine.calls == []
    outcome = await world.actor.outcome(loading.command_id, 5)
    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("failed", "internal")
    await world.done(get())
    await world.check()
    await world.actor.stop()


async def test_what_cannot_be_brought_back_does_not_hold_up_the_rest() -> None:
    async with living(max_attachments=2) as world:
        await world.ready("a", "b")
        await world.done(Attach(A), Attach(B), Steer(A, EDITS))
        log, hub = world.log, world.hub
    hub.damage(hub.repositories[REPOSITORY]["a"].files[1])
    async with living(log, hub, max_attachments=2) as after:
        await after.converged()
        assert [a.sae_id for a in after.state.attached] == [B]
        assert [each.sae_id for each in degraded_view(after.state)] == [A]
        await after.done(Download(REPOSITORY, path="a", force=True))
    async with living(log, hub, max_attachments=2) as again:
        await again.converged()
        assert [a.sae_id for a in again.state.attached] == [A, B]
        assert (again.state.attached[0].steering, degraded_view(again.state)) == (EDITS, ())


async def test_a_crash_while_it_is_brought_back() -> None:
    async with living() as world:
        await world.attached("a")
        await world.done(Steer(A, EDITS))
        log, hub = world.log, world.hub
    engine = FakeEngine()
    engine.attach_gate = asyncio.Event()
    second = await begin(log, hub, engine)
    await until(lambda: any(name == "attach" for name, _ in engine.calls))
    await second.kill()
    async with living(log, hub) as third:
        await third.converged()
        assert third.state.attached[0].steering == EDITS
        types = await third.types()
        assert types.count("SaeAttached") == 2, "the crashed start never got so far"
        assert types.count("EffectInterrupted") == 1


async def test_an_attach_that_fails_after_the_restart_is_the_commands() -> None:
    world = await begin()
    await world.ready("a")
    world.engine.attach_gate = asyncio.Event()
    attach = await world.submit(Attach(A))
    await turns()
    await world.kill()
    broken = FakeEngine(attach_error=SAEInvalidError("not finite"))
    async with living(world.log, world.hub, broken) as after:
        outcome = await after.actor.outcome(attach.command_id, 5)
        assert outcome.error is not None
        assert (outcome.error.code, after.state.attachments) == ("sae_invalid", ())
        assert degraded_view(after.state) == ()


SCRIPT: list[Command] = [
    LOAD, get("a"), get("b"), Attach(A), Steer(A, EDITS), Attach(B, replace=True), Attach(B, layer=3, replace=True),
    Detach(B), Attach(A), Steer(A, EDITS[:1]), Detach(A), Delete(B), UnloadModel(), LOAD, Attach(A, layer=2),
]  # fmt: skip


async def run(world: World) -> None:
    """Send the script, each command under a key of its own, each when the last is done."""
    for number, command in enumerate(SCRIPT):
        accepted = await world.submit(command, key=f"step {number}")
        await world.actor.outcome(accepted.command_id, PATIENCE)
    await world.idle()


class Deadly(MemoryLog):
    """Ends the process, so to say, at its n-th append: before it, or when it is stored and not yet answered."""

    def __init__(self, at: int, *, before: bool) -> None:
        super().__init__()
        self.left = at
        self.before = before
        self.reached = asyncio.Event()

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        self.left -= 1
        if self.left != 0:
            return await super().append(drafts, expected=expected)
        if not self.before:
            await super().append(drafts, expected=expected)
        self.reached.set()
        return await asyncio.Future()


@pytest.mark.parametrize("before", [True, False])
async def test_killed_at_every_append(before: bool) -> None:
    """Rows 1 to 8: before or after the append, the retried script comes to the same end."""
    async with living() as untouched:
        await run(untouched)
        appends, end = untouched.log.appends, attachments(untouched)
        intents = sorted(name for name in await untouched.types() if name.endswith("Requested"))
    for at in range(2, appends + 1):
        log = Deadly(at, before=before)
        world = await begin(log)
        running = asyncio.create_task(run(world))
        await asyncio.wait_for(log.reached.wait(), PATIENCE)
        running.cancel()
        await asyncio.wait([running])
        await world.kill()
        async with living(log, world.hub) as after:
            await after.converged()
            await after.idle()
            await run(after)
            assert attachments(after) == end
            assert sorted(name for name in await after.types() if name.endswith("Requested")) == intents
            await turns()
            assert set(after.engine.residents) == {a.request_position for a in after.state.attachments}


def attachments(world: World) -> list[tuple[str, int, tuple[Edit, ...]]]:
    return [(a.sae_id, a.hook_point.layer, a.steering) for a in world.state.attached]


async def test_any_commands_and_crashes_come_to_rest() -> None:
    """Random commands, kills and starts on one log and one disk: it converges, and the log is whole."""
    random = Random(7)
    commands: list[Command] = [*SCRIPT, get("a", force=True), Delete(A), get("c"), Attach(C, replace=True)]
    world = await begin()
    for _ in range(60):
        for _ in range(random.randrange(6)):
            try:
                accepted = await world.submit(random.choice(commands))
                if random.random() < 0.7:
                    await world.actor.outcome(accepted.command_id, 0.2)
            except SAEError:
                continue
        if random.random() < 0.5:
            await world.kill()
        else:
            await world.actor.stop()
        await world.check()
        world = await begin(world.log, world.hub)
    await world.converged()
    await world.idle()
    await turns()
    assert set(world.engine.residents) == {a.request_position for a in world.state.attachments}
    await world.check()
    await world.actor.stop()
