"""Progress of slow work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="working"):
    """How far something is."""

    kind: Literal["download", "import", "catalog", "fetch", "load"]
    """Of an SAE, of a repository's SAEs, of a model's files (`fetch`) and of the model itself."""
    subject: str
    """The SAE's id, the repository, or the model."""
    phase: str
    """Of a load: finding, checking or loading. Else resolving, listing, checking, waiting, body, verifying, converting
    or describing."""
    done: int = 0
    total: int = 0
    """Bytes; 0: unknown."""
    rate: float = 0.0
    """Bytes a second, recently."""
    seconds_left: float | None = None
    file: str | None = None
    reason: str | None = None
    """While waiting: what for."""


OnProgress: TypeAlias = Callable[[Progress], None]
"""Progress may be dropped and is not logged. Does not raise, works from any thread."""
