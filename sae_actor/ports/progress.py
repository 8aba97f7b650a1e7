"""Progress of slow work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="working"):
    """How far a download, a fetch or a load is."""

    kind: Literal["download", "import", "catalog", "fetch", "load", "run"]
    """An SAE's download or import, a repository's catalog, the fetch of a model's files, a model's load, or
    a run, whose `done` and `total` count texts."""
    subject: str
    """The SAE's id, the repository, or the model."""
    phase: str
    """For a load: finding, checking or loading. Else resolving, listing, checking, waiting, body, verifying,
    converting or describing."""
    done: int = 0
    total: int = 0
    """Bytes; 0: unknown."""
    rate: float = 0.0
    """Recent speed, in bytes per second."""
    seconds_left: float | None = None
    file: str | None = None
    reason: str | None = None
    """Why it waits, in the phase `waiting`."""


OnProgress: TypeAlias = Callable[[Progress], None]
"""Progress may be dropped and is not logged. Does not raise, works from any thread."""
