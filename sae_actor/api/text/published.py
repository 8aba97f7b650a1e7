"""Fields that OpenAI or vLLM publish, which the bodies of `/v1` do not hold themselves: what becomes of each value.

`fields` is the table. A body is looked through with it before it is read as a struct, which knows the rest:

    Neutral    we lack it: null, an empty value, or one that asks for nothing passes; others are "not supported"
    Inert      changes no text: every value of its type passes
    Lacking    the struct has the field, but not these published values of it
    Unsaid     the struct has the field, and takes these values as if it were not there

A field that is in neither is unknown, and refused as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from ...errors import BadRequestError

Json: TypeAlias = dict[str, Any]
Kind = Literal["boolean", "integer", "number", "string", "array", "object", "any"]
_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "number": (int, float), "string": (str,),
    "array": (list,), "object": (dict,),
}  # fmt: skip


class Neutral(NamedTuple):
    kind: Kind
    why: str
    """Why other values are refused."""
    values: tuple[Any, ...] = ()
    """Those that ask for nothing, besides null and what is empty."""
    unless: tuple[str, Any] | None = None
    """Another field of the object and a value of it with which any value here asks for nothing."""
    ignored: tuple[str, ...] = ()
    """Elements of a list that ask for nothing."""

    def take(self, value: Any, where: str, siblings: Mapping[str, Any]) -> None:
        if value is None:
            return
        if self.kind != "any" and not _is(value, self.kind):
            raise BadRequestError(f"{where}: expected {self.kind} or null", param=where)
        if self.unless is not None and siblings.get(self.unless[0]) == self.unless[1]:
            return
        if self.ignored:
            value = [each for each in value if each not in self.ignored]
        if not (value in ("", [], {}) or any(_same(value, each) for each in self.values)):
            raise BadRequestError(f"{where}: this value is not supported: {self.why}", param=where)

    def schema(self) -> Json:
        """As JSON Schema, of those parts that generators of clients read."""
        return {
            "description": f"Takes null, empty and neutral values alone: {self.why}",
            "anyOf": [*self._accepted(), {"type": "null"}],
        }

    def _accepted(self) -> Iterator[Json]:
        kinds = ("string", "array", "object") if self.kind == "any" else (self.kind,)
        for kind in kinds:
            match kind:
                case "array":
                    inner = [
                        *self.ignored,
                        *(each for value in self.values if isinstance(value, list) for each in value),
                    ]
                    items: Json = {"type": "string", "enum": inner} if inner else {}
                    yield {"type": kind, "items": items, **({} if self.unless else {"maxItems": len(inner)})}
                case "object":
                    said = {
                        key: {"const": value}
                        for each in self.values
                        if isinstance(each, dict)
                        for key, value in each.items()
                    }
                    yield {"type": kind, "properties": said, "additionalProperties": False}
                case "string":
                    yield {"type": kind, "enum": ["", *(value for value in self.values if isinstance(value, str))]}
                case "boolean":
                    yield from ({"type": kind, "const": value} for value in self.values)
                case _ if not self.values:
                    # No number at all: a type of only null is one that generators of clients stumble over.
                    yield {"type": kind, "minimum": 1, "maximum": 0}
                case _:
                    yield from ({"type": kind, "minimum": value, "maximum": value} for value in self.values)


class Inert(NamedTuple):
    type_: Any
    why: str
    """Why it changes nothing."""

    def take(self, value: Any, where: str, _: Mapping[str, Any]) -> None:
        try:
            msgspec.convert(value, self.type_ | None)
        except msgspec.ValidationError as error:
            raise BadRequestError(f"{where}: {error!s:.200}", param=where) from None

    def schema(self) -> Json:
        return {**msgspec.json.schema(self.type_ | None), "description": f"Changes no text: {self.why}"}


class Lacking(NamedTuple):
    values: tuple[str, ...]
    why: str

    def take(self, value: Any, where: str, _: Mapping[str, Any]) -> None:
        if value in self.values:
            raise BadRequestError(f"{where}: {value!r} is not supported: {self.why}", param=where)


class Unsaid(NamedTuple):
    values: tuple[Any, ...]


Row = Neutral | Inert | Lacking | Unsaid


class Shape(NamedTuple):
    """One object of a body: its rows, and the objects (or lists of objects) in it."""

    name: str
    """Of the struct that it is read as."""
    fields: Mapping[str, Row]
    inside: Mapping[str, Shape] = {}

    def settle(self, value: Any, where: str = "") -> None:
        """Take out of a decoded object what the struct does not know, or refuse it. Raises `BadRequestError`."""
        if not isinstance(value, dict):
            return  # reading it as the struct says what is wrong
        said = dict(value)
        for name, given in said.items():
            row, at = self.fields.get(name), f"{where}{name}"
            match row:
                case Neutral() | Inert():
                    row.take(given, at, said)
                    del value[name]
                case Lacking():
                    row.take(given, at, said)
                case Unsaid() if any(_same(given, each) for each in row.values):
                    del value[name]
            if name in self.inside and name in value:
                self._settle_inside(self.inside[name], given, at)

    @staticmethod
    def _settle_inside(shape: Shape, given: Any, at: str) -> None:
        if not isinstance(given, list):
            shape.settle(given, f"{at}.")
            return
        for n, each in enumerate(given):
            shape.settle(each, f"{at}[{n}].")

    def described(self) -> dict[str, Json]:
        """Name of a struct → the properties that the table adds to it, in JSON Schema."""
        own = {name: row.schema() for name, row in self.fields.items() if isinstance(row, Neutral | Inert)}
        found = {self.name: own}
        for shape in self.inside.values():
            found |= shape.described()
        return found


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _same(one: Any, other: Any) -> bool:
    """Equal, and a number only to a number: True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def together(*tables: Mapping[str, Row]) -> dict[str, Row]:
    """One table of several. A field is in one of them only."""
    names: Sequence[str] = [name for table in tables for name in table]
    assert len(names) == len(set(names)), "a field is in two tables"
    return {name: row for table in tables for name, row in table.items()}
