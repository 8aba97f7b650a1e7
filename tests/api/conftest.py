"""The service over a real socket, with an engine and a hub that need no torch and no network."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from sae_actor.actor import Actor, Performer
from sae_actor.api import Context, create_app
from sae_actor.api.server.listener import listen
from sae_actor.api.server.protocol import ConnectionLimits, protocol
from sae_actor.config.access import Access, Grant, operator
from sae_actor.domain.evolve import fold
from sae_actor.domain.messages import Start
from sae_actor.domain.state import encode
from sae_actor.eventlog.index import Finder, IndexDatabase, follow
from sae_actor.features import Features
from sae_actor.generations import Generations
from sae_actor.ports import Progress
from sae_actor.ports.clock import SystemClock
from sae_actor.runs import RunFolder, Runs
from sae_actor.subscriptions import Broadcast, progress_frame
from tests.fakes.engine import FakeEngine
from tests.fakes.hub import FakeHub, description
from tests.fakes.log import MemoryLog

from .conforming import CAPABILITIES, conforms

MODEL = "tiny"
REPOSITORY = "org/saes"


@dataclass
class Running:
    """A service under test."""

    client: httpx.AsyncClient
    actor: Actor
    log: MemoryLog
    engine: FakeEngine
    hub: FakeHub
    context: Context
    url: str
    sae_ids: list[str] = field(default_factory=list)

    async def command(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its outcome, which must be good."""
        answer = await self.client.post("/api/commands", json={"type": type_, **fields}, headers={"Prefer": "wait=10"})
        assert answer.status_code == 200, answer.text
        outcome: dict[str, Any] = answer.json()
        assert outcome["status"] == "completed", outcome
        return outcome

    async def ready(self, attach: bool = True) -> str:
        """A model, an SAE on disk and, unless told otherwise, the SAE attached; the SAE's id."""
        await self.command("LoadModel", model=MODEL)
        sae_id = await self.download("layer.1")
        if attach:
            await self.command("Attach", sae_id=sae_id)
        return sae_id

    async def download(self, path: str) -> str:
        outcome = await self.command("Download", repository_id=REPOSITORY, path=path)
        sae_id: str = outcome["events"][0]["data"]["sae_id"]
        self.sae_ids.append(sae_id)
        return sae_id

    async def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.client.get("/api/log", params={"limit": 5000})).json()["events"]
        return found

    async def check(self) -> None:
        """What holds after every test: a whole chain, no gap, and a live state that is the fold of the log."""
        assert (await self.log.verify()).ok
        events = await self.log.read(0, 100_000)
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        assert encode(fold(events)) == encode(self.actor.state)


@contextlib.asynccontextmanager
async def serving(  # noqa: PLR0915 — one life of a service, from end to end
    log: MemoryLog | None = None,
    *,
    tokens: tuple[str, ...] = (),
    grants: tuple[Grant, ...] = (),
    cors_origins: tuple[str, ...] = (),
    bearer: str = "",
    limits: ConnectionLimits | None = None,
    max_attachments: int = 1,
    drain_seconds: float = 0.2,
    record_text: bool = False,
    engine: FakeEngine | None = None,
    hub: FakeHub | None = None,
    runs_folder: Path | None = None,
    data: Path | None = None,
    upload_bytes: int = 2**20,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Running]:
    log = log if log is not None else MemoryLog()
    engine = engine if engine is not None else FakeEngine()
    hub = hub if hub is not None else FakeHub()
    hub.publish(REPOSITORY, "layer.1", description(d_in=engine.hidden_size))
    hub.publish(REPOSITORY, "layer.2", description(d_in=engine.hidden_size, layer=2))
    hub.publish(REPOSITORY, "wide", description(d_in=engine.hidden_size * 2))
    hub.place("/saes/demo", description(d_in=engine.hidden_size))
    broadcast = Broadcast(log)
    loop = asyncio.get_running_loop()

    def announce(progress: Progress) -> None:
        loop.call_soon_threadsafe(broadcast.announce, *progress_frame(progress))

    folder = data if data is not None else Path(tempfile.mkdtemp(prefix="data-"))
    index = IndexDatabase(None)
    finder = Finder(log, index, broadcast.grown)
    broadcast.look_up = finder.skipping
    features = Features(folder, hub, lambda: actor.state, upload_bytes)
    performer = Performer(engine, hub, announce, drain_seconds, features.forget)
    actor = Actor(log, engine, performer, SystemClock(), broadcast)
    runs = Runs(RunFolder((runs_folder or folder) / "runs"), engine, lambda: actor.state, announce, again=0.05)
    performer.run, runs.profiled, features.profile_rows = runs.perform, features.profiled, runs.all_rows
    texts = Generations(
        actor,
        engine,
        record_text=record_text,
        running=getattr(engine, "max_running", None),
        labels=features.labels,
        clock=monotonic,
    )
    runs.use(texts, features.labels, 4)
    await actor.replay()
    await features.start()
    start = Start(
        version="test",
        max_attachments=max_attachments,
        drain_seconds=drain_seconds,
        run_progress=runs.folder.progress(actor.state.runs),
    )
    await actor.start(start)
    context = Context(
        actor=actor,
        generations=texts,
        log=log,
        hub=hub,
        engine=engine,
        runs=runs,
        texts_roots=(runs_folder or folder,),
        features=features,
        finder=finder,
        capabilities=lambda: CAPABILITIES,
        access=Access([*map(operator, tokens), *grants]),
        cors_origins=cors_origins,
    )
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(context),
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
        ws="none",
        http=protocol(limits or ConnectionLimits()),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    following = asyncio.create_task(follow(log, index, broadcast.grown))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    bearer = bearer or next(iter(tokens), "")
    headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10, headers=headers) as client:
            client.event_hooks = {"response": [conforms]}
            context.capabilities = lambda: CAPABILITIES
            running = Running(client, actor, log, engine, hub, context, url)
            yield running
            await running.check()
    finally:
        broadcast.close()
        await texts.close()
        server.should_exit = True
        await serve
        await actor.stop()
        await engine.close()
        features.close()
        following.cancel()
        index.close()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
        listener.close()


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


@pytest.fixture
def serve() -> Callable[..., contextlib.AbstractAsyncContextManager[Running]]:
    """`async with serve(...)`: a service with settings of the test's own."""
    return serving
