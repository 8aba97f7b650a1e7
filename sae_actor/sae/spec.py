"""The description of an SAE in memory, and where it belongs."""

from __future__ import annotations

from ..domain.refs import SaeDescription


class SaeSpec(SaeDescription, frozen=True, kw_only=True):
    """The description of the files; `dtype` is the type that the weights have in memory, and of the arithmetic."""

    stored_dtype: str
    """Type of the weights on disk."""
