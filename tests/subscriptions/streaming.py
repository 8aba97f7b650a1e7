"""A log, its broadcast, and what a reader of it sees."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import Any

from sae_actor.domain import events as ev
from sae_actor.domain.events import Payload, draft
from sae_actor.subscriptions import Broadcast, EventFilter
from sae_actor.subscriptions.broadcast import RING, Page
from tests.fakes.log import MemoryLog

STOPPED, STARTED = ev.ActorStopped(), ev.ActorStarted(version="1")


class Slow(MemoryLog):
    """Reads take a moment, in which more is published."""

    async def read(self, *args: Any, **more: Any) -> list[ev.Event]:
        await asyncio.sleep(0)
        found = await super().read(*args, **more)
        await asyncio.sleep(0)
        return found


class Stream:
    """A log and its broadcast."""

    def __init__(self, ring: int = RING) -> None:
        self.log = Slow()
        self.broadcast = Broadcast(self.log, ring=ring)

    async def append(self, *payloads: Payload) -> None:
        """Durable, and not published yet."""
        made = [draft(each, time="t", command_id=None, principal="me") for each in payloads]
        self.appended = await self.log.append(made, expected=self.log.head.position)

    async def publish(self, *payloads: Payload) -> None:
        await self.append(*payloads)
        self.broadcast.publish(self.appended)

    async def collect(self, after: int = 0, *, types: set[str] | None = None, upto: int | None = None) -> list[int]:
        """Positions as a reader sees them, to the end of the stream or to position `upto`."""
        seen: list[int] = []
        wanted = EventFilter(None if types is None else frozenset(types))
        with self.broadcast.seat():
            async with aclosing(self.broadcast.read(after, wanted, heartbeat=5)) as pages:
                async for page in pages:
                    assert page is not None
                    seen += positions(page)
                    assert page.after >= max(seen, default=0)
                    if upto is not None and seen[-1] >= upto:
                        break
        return seen


def positions(page: Page) -> list[int]:
    """Of the durable events in a page, as their ids say."""
    return [int(found) for found in re.findall(rb"^id: [0-9a-f]{8}\.(\d+)$", page.data, re.MULTILINE)]
