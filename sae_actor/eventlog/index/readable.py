"""What a look-up needs of a log: `EventLog` has it, and so has the log in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...domain.events import Event
from ...ports import Head


class Readable(Protocol):
    @property
    def log_id(self) -> str: ...

    @property
    def head(self) -> Head: ...

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]: ...

    async def at(self, positions: Sequence[int]) -> list[Event]: ...
