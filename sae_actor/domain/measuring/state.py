"""A run, as the fold of its events."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from ..events import Problem, RunKind, RunModel, RunSae, RunTexts, RunVariant

RunStatus: TypeAlias = Literal["open", "completed", "failed", "cancelled"]


class RunState(Struct, frozen=True, kw_only=True):
    run_id: str
    kind: RunKind
    name: str | None
    status: RunStatus
    request_position: int
    created_at: str
    spec: dict[str, Any] = {}
    model: RunModel
    saes: tuple[RunSae, ...] = ()
    texts: tuple[RunTexts, ...] = ()
    variants: tuple[RunVariant, ...] = ()
    seeds: tuple[int, ...] = ()
    attempts: int = 0
    """Deaths of the process during it since it last made something durable."""
    progress: int = 0
    """How many steps were durable at the last death."""
    rows: int = 0
    rows_sha256: str | None = None
    summary: dict[str, Any] | None = None
    environments: tuple[str, ...] = ()
    """Digests; those of `RunCompleted`."""
    error: Problem | None = None
    position: int = 0
    """Position of the last event about it."""
