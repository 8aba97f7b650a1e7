"""Time travel: for any position, the service, the command line and a fold by hand of the export say the same.

Random lives of the actor on a real log: commands that work, fail, overlap and are refused, texts that run and end,
stops and kills. The fold by hand shares no line with `evolve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sae_actor.api import Context, create_app
from sae_actor.api.log_pages import StateCache
from sae_actor.cli import main
from sae_actor.domain.commands import (
    Attach,
    CancelDownload,
    Command,
    Delete,
    Detach,
    Import,
    LoadModel,
    Monitor,
    Steer,
    UnloadModel,
)
from sae_actor.domain.refs import Edit, Span
from sae_actor.errors import OutOfMemoryError, SAEDownloadError, SAEError
from sae_actor.eventlog import SqliteLog, export_bundle
from sae_actor.eventlog.index import Finder
from sae_actor.generations import Requested
from tests.actor.world import LOAD, A, B, C, World, begin, get
from tests.fakes.hub import imported_id
from tests.fold_by_hand import views
from tests.generations.test_records import ask

IMPORTED = imported_id("/saes/demo")
SAES = (A, B, C, IMPORTED)
Picture = dict[str, Any]


def a_command(chance: random.Random) -> Command:
    sae_id = chance.choice((A, A, B, C, IMPORTED))
    edit = Edit(chance.randrange(40), chance.uniform(-9, 9), exclude=chance.choice([(), ("sink",)]))
    ranged = Edit(chance.randrange(9), 0.5, method="scale", positions=Span(from_=1, to=chance.randrange(2, 9)))
    commands: list[Callable[[], Command]] = [
        lambda: LOAD,
        lambda: LoadModel(chance.choice(["org/other", "none/such"])),
        UnloadModel,
        *[lambda: get(chance.choice("abc"), force=chance.random() < 0.3)] * 3,
        lambda: CancelDownload(sae_id),
        lambda: Import("/saes/demo"),
        *[lambda: Attach(sae_id, layer=chance.choice([None, None, 2, 3, 9]), replace=chance.random() < 0.5)] * 4,
        *[lambda: Detach(sae_id)] * 2,
        lambda: Delete(sae_id),
        *[lambda: Steer(sae_id, chance.choice([(), (edit,), (edit, ranged)]), enabled=chance.random() < 0.8)] * 3,
        lambda: Monitor(sae_id, chance.random() < 0.7, top_k=chance.randrange(1, 9)),
    ]
    return chance.choice(commands)()


async def step(world: World, chance: random.Random) -> None:
    """One thing that happens to a service."""
    match chance.randrange(12):
        case 0:
            world.hub.fail("download", SAEDownloadError("cut"))
        case 1:
            world.engine.attach_error = OutOfMemoryError("full") if world.engine.attach_error is None else None
        case 2:
            with contextlib.suppress(SAEError):
                asked = Requested(ask(tag=chance.choice([None, "t"])), b"hello")
                (text,) = await world.texts.open_all([asked], principal="me")
                if chance.random() < 0.7:
                    await text.result()
        case _:
            with contextlib.suppress(SAEError):
                accepted = await world.submit(a_command(chance))
                if chance.random() < 0.7:
                    await world.actor.outcome(accepted.command_id, 0.2)


_served: list[tuple[Context, httpx.ASGITransport]] = []


def over_http(world: World) -> httpx.ASGITransport:
    """The world through the routes. They are made once: what they speak of is in the context."""
    edges = {
        "actor": world.actor,
        "generations": world.texts,
        "log": world.log,
        "hub": world.hub,
        "engine": world.engine,
        "runs": None,
        "features": None,
        "finder": Finder.without_index(world.log),
    }
    if not _served:
        context = Context(**edges, capabilities=dict)  # type: ignore[arg-type]  # named as its fields are
        app: Any = create_app(context)
        _served.append((context, httpx.ASGITransport(app)))
    context, transport = _served[0]
    if context.log.log_id != world.log.log_id:
        context.past = StateCache()
    for name, edge in edges.items():
        setattr(context, name, edge)
    return transport


async def live(folder: Path, chance: random.Random, positions: int) -> list[Picture]:
    """A life of several starts; what `/api/state?at` says of so many positions, and `/api/state` of now."""
    log = await SqliteLog.open(folder)
    room = chance.choice([1, 1, 2])
    world = await begin(log, max_attachments=room)
    if chance.random() < 0.8:
        await world.ready("a", "b")
    for _ in range(chance.randrange(5, 30)):
        await step(world, chance)
        if chance.random() < 0.08:
            await (world.kill() if chance.random() < 0.6 else world.actor.stop())
            world = await begin(world.log, world.hub, max_attachments=room)
    told: list[Picture] = []
    async with httpx.AsyncClient(transport=over_http(world), base_url="http://localhost") as client:
        told.append((await client.get("/api/state")).json())
        head = told[0]["position"]
        for at in {0, head, *(chance.randrange(head + 1) for _ in range(positions))}:
            told.append((await client.get("/api/state", params={"at": at})).json())
            assert told[-1]["position"] == at
    await world.texts.close()
    await world.kill()
    await log.close()
    return told


def agree(folder: Path, seed: int, capsys: pytest.CaptureFixture[str], positions: int = 6) -> int:
    """Everyone says the same of one life; how many events it had."""
    chance = random.Random(seed)
    told = asyncio.run(live(folder / "log", chance, positions))
    asyncio.run(export_bundle(folder / "log", folder / "bundle"))
    lines = (folder / "bundle" / "events.ndjson").read_bytes().splitlines()
    by_hand = dict(views(lines))
    for picture in told:
        assert picture == by_hand[picture["position"]], f"seed {seed}, /api/state at {picture['position']}"
    for at in chance.sample(range(len(lines) + 1), min(2, len(lines))):
        capsys.readouterr()
        assert main(["log", "state", "--json", "--at", str(at), "--data-dir", str(folder / "log")]) == 0
        assert json.loads(capsys.readouterr().out) == by_hand[at], f"seed {seed}, log state --at {at}"
    return len(lines)


def lives(tmp_path: Path, seeds: range, capsys: pytest.CaptureFixture[str]) -> None:
    events = [agree(tmp_path / str(seed), seed, capsys) for seed in seeds]
    assert sum(events) > 15 * len(events)
    with capsys.disabled():
        print(f"\n{len(events)} lives of {sum(events)} events: the service, the command line and the export agree")


def test_the_state_at_any_position_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lives(tmp_path, range(50), capsys)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_the_state_at_any_position_is_one_over_a_thousand_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lives(tmp_path, range(1000, 2000), capsys)
