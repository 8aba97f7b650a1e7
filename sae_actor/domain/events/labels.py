"""Labels of an SAE's features."""

from __future__ import annotations

from msgspec import Struct

from .payload import Intent


class LabelSource(Struct, frozen=True):
    """What a file of labels has from one source."""

    source: str
    labels: int
    features: int
    """How many features it says something of: labels, statistics or examples."""


class LabelsImported(Intent, frozen=True, kw_only=True):
    """The labels of these sources are those of this file, from here on."""

    sae_id: str
    source: str
    """Of the lines that name none."""
    sha256: str
    """Of the file as it was sent; it is kept under this name."""
    labels: int
    features: int
    sources: tuple[LabelSource, ...]


class LabelsDeleted(Intent, frozen=True, kw_only=True):
    sae_id: str
    sources: tuple[str, ...]
    labels: int
