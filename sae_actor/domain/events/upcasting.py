"""Payloads of earlier schemas, read as the ones of today.

An event keeps the bytes it was written with: they are what is hashed, served and exported. Readers of its meaning
read it through here, one step for each schema since. A payload gets a new schema when a field must go, or mean
something else; a new optional field needs none.

A step: the `schema` of the payload's struct grows by one, and an entry here makes of each old payload a new one. The
golden logs of the versions before then prove that nothing was lost. PayloadRedacted and LogTruncated keep schema 1
for good: the chain itself reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import ValidationError

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""The payload of one schema → that of the next; both as plain JSON values. Pure; may change what it is given."""

UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""(event type, schema) → the step to schema + 1. Every type has one for each schema before its own."""


def upcast(type_: str, schema: int, to: int, data: Any) -> Any:
    """The payload as one of schema `to`. Raises `ValidationError` for a payload that a step cannot read."""
    for step in range(schema, to):
        try:
            data = UPCASTERS[type_, step](data)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValidationError(f"a {type_} of schema {step} cannot be read: {error!r}") from None
    return data
