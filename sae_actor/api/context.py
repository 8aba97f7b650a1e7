"""What every route may use: the actor, the texts, the edges it asks directly, the settings it obeys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar import Request

from ..actor import Actor, Texts
from ..ports import Engine, EventLog, Hub


@dataclass(slots=True)
class Context:
    actor: Actor
    texts: Texts
    log: EventLog
    hub: Hub
    engine: Engine
    capabilities: Callable[[], dict[str, Any]]
    """What `/api/capabilities` says; from the code itself, without loading a model."""
    max_readers: int = 2000
    """Streams of events at the same time."""
    heartbeat: float = 15.0
    """Seconds between two comments, and two checkpoints, of a stream of events."""
    quota_bytes: int | None = None
    """What downloads may take on disk together; None: as much as there is."""
    tokens: tuple[str, ...] = ()
    """Bearer tokens; none: no token is asked for."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host names that a request may be addressed to; `*`: any."""


def context(request: Request[Any, Any, Any]) -> Context:
    found: Context = request.app.state.context
    return found


def principal(request: Request[Any, Any, Any]) -> str:
    """Who asks, as the security middleware found out."""
    return str(request.scope.get("principal", "local"))
