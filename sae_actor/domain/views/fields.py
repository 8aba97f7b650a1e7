"""Types of fields in answers, for the description too."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

Position: TypeAlias = Annotated[int, Meta(ge=0, description="of an event in the log")]
Bytes: TypeAlias = Annotated[int, Meta(ge=0)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Digest: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Time: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z", description="UTC")
]
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Of positions, each from its first up to the one that follows its last."""
