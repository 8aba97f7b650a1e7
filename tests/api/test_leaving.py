"""Clients that hang up while much of the log is read for them: the reading ends, and their place is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sae_actor.api.context import LOOKS_WAITING, WALKS, prompt_queue
from sae_actor.domain.events import Event
from sae_actor.eventlog.index import Finder
from sae_actor.limits import LONGEST
from sae_actor.ports import Head, Verification
from tests.fakes.engine import FakeEngine
from tests.fakes.log import MemoryLog

from .conftest import serving
from .raw import parsed

pytestmark = pytest.mark.anyio

PATHS = ["/api/state?at=1", "/api/log", "/api/log/verify", "/api/generations", "/api/generations/none"]


class HeldLog(MemoryLog):
    """Reads nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.reading = 0

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        self.reading += 1
        try:
            await self.go_on.wait()
        finally:
            self.reading -= 1
        return await super().read(after, limit, types)

    async def verify(self, *, full: bool = True, heads: Sequence[Head] = ()) -> Verification:
        await self.read()
        return await super().verify(full=full, heads=heads)


async def true(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_hangs_up_ends_the_reading(path: str) -> None:
    log = HeldLog()
    async with serving(log) as service:
        await service.command("LoadModel", model="tiny")
        address = service.url.removeprefix("http://").split(":")
        await true(lambda: service.context.finder.upto == log.head.position)
        service.context.finder = Finder.without_index(log)  # all of the log is looked through, by requests alone
        log.go_on.clear()
        writers = []
        for _ in range(WALKS + 20):
            _, writer = await asyncio.open_connection(address[0], int(address[1]))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            writers.append(writer)
        await true(lambda: log.reading == WALKS)
        assert service.context.walks.locked()
        for writer in writers:
            writer.transport.abort()
        await true(lambda: log.reading == 0 and not service.context.walks.locked())
        log.go_on.set()
        assert (await service.client.get(path)).status_code in {200, 404}


class HeldEngine(FakeEngine):
    """Reads no prompt and looks at no feature until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.asked = 0

    async def tokenize(self, prompt: Any, how: Any = None, **more: Any) -> Any:
        self.asked += 1
        await self.go_on.wait()
        return await super().tokenize(prompt, how, **more)

    async def feature(self, attach_position: int, feature: int) -> Any:
        self.asked += 1
        await self.go_on.wait()
        return await super().feature(attach_position, feature)


@pytest.mark.parametrize("prompts", [True, False], ids=["prompts", "features"])
async def test_few_wait_for_the_engine_and_none_who_has_left(prompts: bool) -> None:
    engine = HeldEngine()
    async with serving(engine=engine) as service:
        sae_id = await service.ready()
        address = service.url.removeprefix("http://").split(":")
        body = b'{"prompt":"a","max_tokens":1}'
        head = b"Host: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
        asking = b"POST /v1/completions HTTP/1.1\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        if not prompts:
            asking = f"GET /api/saes/{sae_id}/features/1 HTTP/1.1\r\n".encode() + head + b"\r\n"
        room = 1 + LOOKS_WAITING
        service.context.prompts = prompt_queue(LOOKS_WAITING)
        places = service.context.prompts if prompts else service.context.looks
        streams = []
        for _ in range(room + 5):
            streams.append(await asyncio.open_connection(address[0], int(address[1])))
            streams[-1][1].write(asking)
            if len(streams) == room:
                await true(lambda: places.waiting == LOOKS_WAITING)
        for reader, writer in streams[room:]:
            answer = parsed(await asyncio.wait_for(reader.read(), 5))
            assert answer.status == 429
            assert 1 <= int(answer.header("retry-after") or 0) <= LONGEST, "nothing has ended yet"
            writer.close()
        for _, writer in streams[:room]:
            writer.transport.abort()
        await true(lambda: not places.locked())
        engine.go_on.set()
        made = await service.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert made.status_code == 200
        assert engine.asked == 2, "for the first who asked, and the one who stayed"
