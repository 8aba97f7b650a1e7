"""The implementations of the service's ports: the real adapters, or those that a caller of `serve.run` passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import Settings
from ..domain.structs import filled
from ..eventlog import SqliteLog
from ..hub import HuggingFaceHub
from ..ports import Clock, Engine
from ..ports.clock import SystemClock


def torch_engine(settings: Settings) -> Engine:
    """Imports torch: seconds and hundreds of megabytes, so only when a model is wanted."""
    from ..engine import EngineSettings, TorchEngine  # noqa: PLC0415 - that is the point

    return TorchEngine(filled(EngineSettings, settings.engine, threads=settings.engine.threads or None))


@dataclass(frozen=True)
class Adapters:
    """One for each port."""

    engine: Callable[[Settings], Engine] = torch_engine
    """Called on a worker thread when a model is first wanted."""
    hub: Callable[..., HuggingFaceHub] = HuggingFaceHub
    """Called with the arguments of `HuggingFaceHub`."""
    log: type[SqliteLog] = SqliteLog
    clock: Clock = field(default_factory=SystemClock)


OWN = Adapters()
"""Those of the service itself."""
