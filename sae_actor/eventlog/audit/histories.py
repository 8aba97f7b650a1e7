"""Two logs side by side, each verified as it is read: where a copy and its original part."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from ...domain.events import Event
from ..chain import event_of
from ..inspection import inspect, reading
from ..lock import FolderLock
from ..schema import COLUMNS, NAME
from .bundle import rows_of


class History(NamedTuple):
    """A log to be read from its first event on."""

    log_id: str
    events: Iterator[Event]


@asynccontextmanager
async def folder_history(folder: Path) -> AsyncIterator[History]:
    """The log of a data folder. Read it where it was opened. Raises the errors of `inspect`, and `LogHeldError` while a
    service runs on the folder."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(await FolderLock.acquire(folder, shared=True)))
        findings = await asyncio.to_thread(inspect, folder, thorough=True)
        connection = stack.enter_context(reading(folder / NAME))
        connection.text_factory = str
        rows = connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position")
        yield History(findings.log_id, map(event_of, rows))


@asynccontextmanager
async def history(place: Path) -> AsyncIterator[History]:
    """The log of a data folder, or in an export; of an export raises the errors of `import_bundle`, some of them while
    its events are read."""
    if (place / NAME).exists():
        async with folder_history(place) as found:
            yield found
    else:
        with rows_of(place) as (about, batches):
            yield History(about.log_id, (event_of(row) for batch in batches for row in batch))
