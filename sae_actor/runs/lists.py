"""Lists of texts, one JSON document a line: `{"text": …}`, with `label` or `messages` in place of it.

The digest is that of these lines, whatever form the texts came in.
"""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import BadRequestError
from . import parquet

MOST_CHARACTERS = 10_000_000
"""Of one text."""


class Item(Struct, frozen=True, omit_defaults=True):
    """One text, or one chat."""

    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    label: str | int | float | bool | None = None

    @property
    def asked(self) -> str | tuple[dict[str, Any], ...]:
        """What is made tokens of."""
        return (self.text or "") if self.messages is None else self.messages

    def line(self) -> bytes:
        return msgspec.json.encode(self)


_DECODER = msgspec.json.Decoder(Item)


def decoded(line: bytes) -> Item:
    return _DECODER.decode(line)


class Digest:
    """Counts and digests lines as they pass."""

    def __init__(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256()

    def through(self, items: Iterable[Item]) -> Iterator[bytes]:
        for item in items:
            line = item.line()
            self.count += 1
            self._sha256.update(line + b"\n")
            yield line

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def read_file(path: Path, kind: str) -> Iterator[Item]:
    """The texts in a file of kind `txt`, `ndjson` or `parquet`. `BadRequestError` names the line at fault."""
    if kind == "parquet":
        yield from _parquet(path)
        return
    for number, raw in enumerate(_lines(path), 1):
        line = (raw.removeprefix(BOM_UTF8) if number == 1 else raw).rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            yield _json(line) if kind == "ndjson" else Item(text=_checked(line.decode()))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"line {number} of the texts: {str(error)[:200]}", param="texts") from None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise BadRequestError(f"the file of texts cannot be read: {error.strerror}", param="texts") from None


def _json(line: bytes) -> Item:
    """Further members, such as an id, are passed over; a line may be a string alone."""
    if line.lstrip()[:1] == b'"':
        return Item(text=_checked(msgspec.json.decode(line, type=str)))
    item = decoded(line)
    if (item.text is None) == (item.messages is None):
        raise msgspec.ValidationError("give text, or messages")
    if item.text is not None:
        _checked(item.text)
    return item


def _checked(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise msgspec.ValidationError(f"a text has more than {MOST_CHARACTERS} characters")
    return text


def _parquet(path: Path) -> Iterator[Item]:
    for text, label in parquet.texts(path):
        try:
            yield Item(text=_checked(text), label=label)
        except msgspec.ValidationError as error:
            raise BadRequestError(f"a row of the texts: {error}", param="texts") from None


def kind_of(path: str) -> str:
    """By the name of a file."""
    suffix = re.sub(r".*\.", "", path.lower())
    kinds = {"txt": "txt", "jsonl": "ndjson", "ndjson": "ndjson", "parquet": "parquet"}
    if suffix not in kinds:
        raise BadRequestError("a file of texts ends in .txt, .jsonl, .ndjson or .parquet", param="file")
    return kinds[suffix]
