"""Parquet, through pyarrow where it is installed: lists of texts in, rows out."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import BadRequestError, SAEUnsupportedError

EXTRA = "sae-actor[parquet]"
ROWS = 64
"""Texts that are in memory at a time."""
EXPANDED = 64
"""How many times the size of its file the texts may have together; of a small file a megabyte's worth."""


def texts(path: Path) -> Iterator[tuple[str, str | int | float | bool | None]]:
    """Text and label of each row. `SAEUnsupportedError` without pyarrow, `BadRequestError`."""
    parquet = _module("pyarrow.parquet")
    room = EXPANDED * max(path.stat().st_size, 2**20)
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in ("text", "label") if name in file.schema_arrow.names]
            if "text" not in names:
                raise BadRequestError("the Parquet file has no column `text`", param="texts")
            for batch in file.iter_batches(columns=names, batch_size=ROWS):
                for row in batch.to_pylist():
                    text, label = row["text"], row.get("label")
                    if not isinstance(text, str):
                        raise BadRequestError("the column `text` has values that are not text", param="texts")
                    room -= len(text)
                    if room < 0:
                        raise BadRequestError(
                            f"the texts are more than {EXPANDED} times as long as their file", param="texts"
                        )
                    yield text, label if isinstance(label, str | int | float | bool | None) else str(label)
    except (OSError, ValueError, NotImplementedError) as error:
        raise BadRequestError(f"the Parquet file cannot be read: {str(error)[:200]}", param="texts") from None


def table(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """A file of these columns; one whose values are of several types is JSON. `SAEUnsupportedError` without pyarrow."""
    arrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(arrow.table({name: _column(arrow, values) for name, values in columns.items()}), out)
    return out.getvalue()


def available() -> None:
    """`SAEUnsupportedError` without pyarrow."""
    _module("pyarrow.parquet")


def _column(arrow: Any, values: Sequence[Any]) -> Any:
    try:
        return arrow.array(values)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.array([None if each is None else msgspec.json.encode(each).decode() for each in values])


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SAEUnsupportedError(f"Parquet needs pyarrow: pip install '{EXTRA}'") from None
