"""Counters of the actor, for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..domain.commands import Command
from ..domain.events import Event
from ..domain.evolve import closes
from ..domain.state import State
from ..errors import SAEError
from ..telemetry.metrics import Histogram, Labels
from .turn import Turn


class ActorCounts:
    """Counted since the process started."""

    def __init__(self) -> None:
        self.commands: Counter[Labels] = Counter()
        """Commands by type and outcome: `accepted`, then `completed` or `failed`; or `refused`, or `repeated` under its
        key."""
        self.events: Counter[Labels] = Counter()
        """Recorded events by type."""
        self.turn_seconds = Histogram()
        """Duration of a turn: from its first envelope to the answers, the append included."""
        self.append_seconds = Histogram()

    def refused(self, message: object) -> None:
        """Count a message that got no turn, or whose turn could not be stored."""
        if isinstance(message, Command):
            self.commands[message.type_name, "refused"] += 1

    def appended(self, events: Sequence[Event], seconds: float) -> None:
        self.append_seconds.observe(seconds)
        self.events.update((event.type,) for event in events)

    def took(self, turn: Turn, before: State, recorded: Sequence[Event], seconds: float) -> None:
        """Count a turn: `before` is the state at its beginning, `recorded` the events that it appended."""
        self.turn_seconds.observe(seconds)
        opened: dict[str, str] = {}
        for envelope, answer in turn.answers:
            if isinstance(envelope.message, Command):
                self.commands[envelope.message.type_name, _outcome(answer)] += 1
                if isinstance(answer, slice) and envelope.command_id is not None:
                    opened[envelope.command_id] = envelope.message.type_name
        was_open = {key: command.type for key, command in before.commands.items()}
        closed = {key: name for key, name in {**was_open, **opened}.items() if key not in turn.state.commands}
        if closed:
            self._close(closed, before, recorded)

    def _close(self, closed: dict[str, str], before: State, recorded: Sequence[Event]) -> None:
        failures = _failures(recorded)
        for command_id, name in closed.items():
            command = before.commands.get(command_id)
            failed = command is not None and command.request_position in failures
            self.commands[name, "failed" if failed else "completed"] += 1


def _outcome(answer: object) -> str:
    if isinstance(answer, SAEError):
        return "refused"
    return "accepted" if isinstance(answer, slice) else "repeated"


def _failures(recorded: Sequence[Event]) -> set[int]:
    """Positions of the requests that these events end without success; a cancelled one has none."""
    found = set()
    for event in recorded:
        payload = event.payload()
        if payload is not None and closes(payload):
            ended = getattr(payload, "request_position", None)
            if ended is not None and (getattr(payload, "error", None) is not None or event.type == "DownloadCancelled"):
                found.add(ended)
    return found
