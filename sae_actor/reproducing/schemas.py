"""The JSON schema that a text had to follow: from the log, or from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import MsgspecError

from ..domain.events import ResponseFormat
from ..errors import SAEError
from ..ports import Engine, Grammar
from .testbed import NotComparable

_ANY_OBJECT = '{"type":"object"}'


async def grammar_of(form: ResponseFormat | None, files: Sequence[str], engine: Engine) -> Grammar | None:
    """The grammar of a recorded response format. files: JSON that may be, or hold, the schema of it.

    Raises `NotComparable` if the schema is neither on record nor given, or has no grammar here.
    """
    if form is None:
        return None
    schema = _ANY_OBJECT if form.schema_sha256 is None else _schema(form, files)
    try:
        return await engine.grammar(schema)
    except SAEError as error:
        raise NotComparable(f"its JSON schema cannot be followed here: {error.detail}") from None


def _schema(form: ResponseFormat, files: Sequence[str]) -> str:
    if form.schema is not None:
        if _digest(form.schema) != form.schema_sha256:
            raise NotComparable("the recorded JSON schema does not match the recorded digest")
        return form.schema
    for schema in (reading for file in files for reading in _readings(file)):
        if _digest(schema) == form.schema_sha256:
            return schema
    if files:
        raise NotComparable("the JSON schema of the file does not match the recorded digest")
    raise NotComparable("its JSON schema was not recorded ([audit] record_text); give it with --schema-file")


def _readings(file: str) -> Iterator[str]:
    """The schema itself, or one inside a response format or a request."""
    try:
        found: Any = msgspec.json.decode(file)
    except (MsgspecError, ValueError, RecursionError):
        return
    for key in (None, "response_format", "json_schema", "schema"):
        if key is not None and isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
        if isinstance(found, dict):
            yield msgspec.json.encode(found).decode()


def _digest(schema: str) -> str:
    return hashlib.sha256(schema.encode()).hexdigest()
