"""`log diff --other`: two histories of one log, and where they part."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import msgspec

from ..domain import events as ev
from ..domain.events import Event
from ..domain.evolve import evolve
from ..domain.state import EMPTY, State
from ..domain.views.difference import difference
from ..errors import BadRequestError
from ..eventlog.audit.histories import History, folder_history, history
from ..eventlog.chain import genesis
from ..ports import Head
from . import exit_codes
from .render import difference as differences

View = dict[str, Any]


async def compare(folder: Path, other: Path, *, as_json: bool) -> int:
    """Raises the errors of logs that do not verify, and `BadRequestError` for two logs with nothing in common."""
    async with folder_history(folder) as mine, history(other) as theirs:
        view = _compared(mine, theirs)
    if as_json:
        print(msgspec.json.encode(view).decode())
    else:
        print(differences.histories(msgspec.to_builtins(view)))
    return exit_codes.OK


class _Side:
    """One of the two, as it goes on after the common part."""

    def __init__(self, state: State, head: Head) -> None:
        self.state = state
        self.head = head
        self.events = 0
        self.forks: list[View] = []

    def take(self, event: Event) -> None:
        self.state = evolve(self.state, event)
        self.head = Head(event.position, event.hash)
        self.events += 1
        if event.type == ev.LogForked.type:
            data = msgspec.json.decode(event.data)
            self.forks.append({"position": event.position, "time": event.time, "data": data})

    def view(self, common: State) -> View:
        """Its head, how many events it has alone, and what they changed."""
        return {
            "head": self.head,
            "events": self.events,
            "branch_id": self.state.branch_id,
            "forks": self.forks,
            "changes": difference(common, self.state),
        }


def _compared(mine: History, theirs: History) -> View:
    if mine.log_id != theirs.log_id:
        raise BadRequestError(
            f"these are two logs, not two histories of one: {mine.log_id[:8]} and {theirs.log_id[:8]}"
        )
    common, head = EMPTY, Head(0, genesis(mine.log_id).hex())
    pairs = zip_longest(mine.events, theirs.events)
    parted: tuple[Event | None, Event | None] = (None, None)
    for one, other in pairs:
        if one is None or other is None or one.hash != other.hash:
            parted = (one, other)
            break
        common, head = evolve(common, one), Head(one.position, one.hash)
    sides = (_Side(common, head), _Side(common, head))
    for pair in chain([parted], pairs):
        for side, event in zip(sides, pair, strict=True):
            if event is not None:
                side.take(event)
    return {"log_id": mine.log_id, "common": head, "mine": sides[0].view(common), "other": sides[1].view(common)}
