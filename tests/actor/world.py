"""A whole service without HTTP: actor, log, fake engine, fake hub, and the faults that tests put in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sae_actor.actor import Accepted, Actor, Performer
from sae_actor.domain.commands import Attach, Command, Download, LoadModel, Steer
from sae_actor.domain.events import Draft, Event
from sae_actor.domain.evolve import fold
from sae_actor.domain.messages import Start
from sae_actor.domain.refs import Edit
from sae_actor.domain.state import State, encode
from sae_actor.domain.views.outcomes import Outcome
from sae_actor.domain.views.resources import waiting_for
from sae_actor.domain.weights import sae_id_of
from sae_actor.generations import Generations
from sae_actor.ports import EventLog, Head, Verification
from sae_actor.subscriptions import Broadcast
from tests.fakes.engine import FakeEngine
from tests.fakes.hub import FakeHub, description
from tests.fakes.log import MemoryLog

MODEL = "org/tiny"
REPOSITORY = "org/saes"
A, B, C = (sae_id_of(REPOSITORY, path, "main") for path in "abc")
LOAD = LoadModel(MODEL)
PATIENCE = 5.0
"""Seconds after which a test says that something never came; what comes, comes in milliseconds."""


def get(path: str = "a", *, force: bool = False) -> Download:
    return Download(REPOSITORY, path=path, force=force)


class Clock:
    """Stands still unless it is told to move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> str:
        return "2026-01-01T00:00:00.000000Z"

    def monotonic(self) -> float:
        return self.seconds


class FaultyLog:
    """A log whose appends can be held, and can fail; everything else is the log's own."""

    def __init__(self, log: EventLog) -> None:
        self.inner = log
        self.gate: asyncio.Event | None = None
        self.append_error: Exception | None = None
        self.sound = 0
        """Appends that still work before `append_error` is raised."""
        self.read_error: Exception | None = None
        self.appends = 0

    @property
    def log_id(self) -> str:
        return self.inner.log_id

    @property
    def head(self) -> Head:
        return self.inner.head

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        self.appends += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.append_error is not None:
            self.sound -= 1
            if self.sound < 0:
                raise self.append_error
        return await self.inner.append(drafts, expected=expected)

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        return await self.inner.read(after, limit, types)

    async def at(self, positions: Sequence[int]) -> list[Event]:
        return await self.inner.at(positions)

    async def of_command(self, command_id: str) -> list[Event]:
        if self.read_error is not None:
            raise self.read_error
        return await self.inner.of_command(command_id)

    async def created(self) -> str:
        return await self.inner.created()

    async def rows(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        return await self.inner.rows(after, limit)

    async def verify(self, *, full: bool = True, heads: Sequence[Head] = ()) -> Verification:
        return await self.inner.verify(full=full, heads=heads)

    async def close(self) -> None:
        await self.inner.close()


def shelves() -> FakeHub:
    """A hub with three SAEs that fit the fake model."""
    hub = FakeHub()
    for layer, path in enumerate("abc", start=1):
        hub.publish(REPOSITORY, path, description(d_in=16, layer=layer))
    hub.place("/saes/demo", description(d_in=16))
    return hub


@dataclass
class World:
    """One life of a service."""

    log: FaultyLog
    hub: FakeHub
    engine: FakeEngine
    clock: Clock
    actor: Actor
    texts: Generations
    progress: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        return self.actor.state

    async def submit(self, command: Command, *, key: str | None = None, principal: str = "me") -> Accepted:
        return await self.actor.submit(command, principal=principal, key=key)

    async def do(self, command: Command) -> Outcome:
        """Submit a command and wait for what becomes of it."""
        accepted = await self.submit(command)
        outcome = await self.actor.outcome(accepted.command_id, PATIENCE)
        assert outcome.status != "accepted", "it never ended"
        return outcome

    async def done(self, *commands: Command) -> None:
        for command in commands:
            outcome = await self.do(command)
            assert outcome.error is None, outcome.error

    async def ready(self, *paths: str) -> None:
        """The model is loaded, these SAEs are on disk."""
        await self.done(LOAD, *(get(path) for path in paths))

    async def attached(self, *paths: str) -> None:
        await self.ready(*paths)
        await self.done(*(Attach(sae_id_of(REPOSITORY, path, "main")) for path in paths))

    async def events(self) -> list[Event]:
        return await self.log.read(0, 100_000)

    async def types(self) -> list[str]:
        return [event.type for event in await self.events()]

    async def converged(self) -> None:
        await until(lambda: waiting_for(self.state) == [])

    async def idle(self) -> None:
        """No command is open any more."""
        await until(lambda: not self.state.commands)

    async def check(self) -> None:
        """What holds after every test: a whole chain, no gap, the live state is the fold of the log."""
        events = await self.events()
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        assert (await self.log.verify()).ok
        assert encode(fold(events)) == encode(self.state)

    async def kill(self) -> None:
        """End without a word, as kill -9 does: nothing more goes on record."""
        turns, runner = self.actor._task, self.actor._runner
        assert turns is not None
        runner._closed = True
        tasks = {turns, *runner._running.values()}
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.01)


async def begin(
    log: EventLog | None = None,
    hub: FakeHub | None = None,
    engine: FakeEngine | None = None,
    *,
    max_attachments: int = 1,
    drain_seconds: float = 0.05,
    model: LoadModel | None = None,
) -> World:
    """Start a service on a log (a fresh one without), with the hub's disk as it is and an empty device."""
    faulty = log if isinstance(log, FaultyLog) else FaultyLog(log or MemoryLog())
    hub, engine, clock = hub or shelves(), engine or FakeEngine(), Clock()
    progress: list[str] = []
    performer = Performer(engine, hub, lambda each: progress.append(each.kind), drain_seconds)
    actor = Actor(faulty, engine, performer, clock, Broadcast(faulty))
    await actor.replay()
    await actor.start(Start(version="test", max_attachments=max_attachments, drain_seconds=drain_seconds, model=model))
    return World(faulty, hub, engine, clock, actor, Generations(actor, engine), progress)


@asynccontextmanager
async def living(
    log: EventLog | None = None,
    hub: FakeHub | None = None,
    engine: FakeEngine | None = None,
    *,
    max_attachments: int = 1,
) -> AsyncIterator[World]:
    """A service for the length of a test; checked and stopped at its end."""
    world = await begin(log, hub, engine, max_attachments=max_attachments)
    try:
        yield world
        await world.check()
    finally:
        await world.texts.close()
        await world.actor.stop()
        await world.engine.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that the loop will bring about."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def waits_for_its_units(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Task[Accepted], asyncio.Event]:
    """A Steer whose unit the engine resolves once the event is set; A is attached."""
    raw, go = world.engine.raw, asyncio.Event()

    async def slow(position: int, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        await go.wait()
        return await raw(position, edits)

    monkeypatch.setattr(world.engine, "raw", slow)
    waiting = asyncio.create_task(world.submit(Steer(A, (Edit(1, 1.0, unit="unit"),))))
    await turns()
    return waiting, go
