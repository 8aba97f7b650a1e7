"""The implementations of the service's ports: the real adapters, or those that the caller of `process.run` passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import Settings
from ..domain.structs import filled
from ..eventlog import SqliteLog
from ..generations.places import BEYOND
from ..hub import HuggingFaceHub
from ..ports import Clock, Engine
from ..ports.clock import SystemClock


def torch_engine(settings: Settings) -> Engine:
    """The real engine. Importing torch takes seconds and hundreds of megabytes, so it waits for the first model."""
    from ..engine import EngineSettings, TorchEngine  # noqa: PLC0415 - the import is what is delayed

    own = settings.engine
    # `Generations` refuses what is too much, whole requests and by principal; the engine takes whatever that admits.
    waiting = BEYOND * (own.max_running + own.max_waiting) - own.max_running
    return TorchEngine(filled(EngineSettings, own, threads=own.threads or None, max_waiting=waiting))


@dataclass(frozen=True)
class Adapters:
    """An implementation of each port."""

    engine: Callable[[Settings], Engine] = torch_engine
    """Called on a worker thread before the first load."""
    hub: Callable[..., HuggingFaceHub] = HuggingFaceHub
    """Called with the arguments of `HuggingFaceHub`."""
    log: type[SqliteLog] = SqliteLog
    clock: Clock = field(default_factory=SystemClock)


OWN = Adapters()
"""The real adapters."""
