"""What lies next to an SAE's weights: `features.json`, `labels.jsonl` (as `lines` reads it), names of vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..domain.state import SaeRecord
from ..formats.settings import statistics
from .lines import Entry, Labelled, Measured, entries
from .matching import Matching

LABELS = "labels.jsonl"
LIMIT = 64 * 2**20
"""Bytes of a file of labels in the SAE's folder."""


def digest(record: SaeRecord, folder: Path) -> str:
    """Of all that `own_entries` reads."""
    made = hashlib.sha256("\0".join(() if record.sae is None else record.sae.names).encode())
    for name in (statistics.NAME, LABELS):
        path = folder / name
        if folder.is_dir() and path.is_file() and path.stat().st_size <= statistics.MOST_BYTES:
            with path.open("rb") as file:
                made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()


def own_entries(record: SaeRecord, folder: Path) -> Iterator[Entry]:
    """Raises `SAEInvalidError`, and what `lines.entries` does."""
    assert record.sae is not None, "the files are complete"
    for feature, name in enumerate(record.sae.names):
        yield Labelled(feature, name)
    found = statistics.read_statistics(str(folder))
    for feature, each in found.recorded.items():
        if feature >= record.sae.d_sae:
            continue
        yield Measured(feature, each.density, found.maxima.get(feature), each.top_tokens)
        if each.label:
            yield Labelled(feature, each.label)
    if folder.is_dir() and (folder / LABELS).is_file():
        for _, entry in entries(folder / LABELS, Matching(record), LABELS, LIMIT):
            yield entry
