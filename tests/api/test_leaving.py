"""Clients that hang up while much of the log is read for them: the reading ends, and their place is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from sae_actor.api.context import WALKS
from sae_actor.domain.events import Event
from sae_actor.eventlog.memory import MemoryLog
from sae_actor.ports import Verification

from .conftest import serving

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

    async def verify(self) -> Verification:
        await self.read()
        return await super().verify()


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
