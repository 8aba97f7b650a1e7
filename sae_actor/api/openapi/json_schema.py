"""JSON Schema of the structs, with what msgspec cannot say of them.

Patterns are written for JSON Schema's dialect; events are a union told apart by `type`, each with its own payload;
rules that a struct checks in `__post_init__` are said in `RULES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ...domain.commands import RepositoryId, Revision
from ...domain.events import PAYLOADS, Event
from ...errors import BY_CODE
from ..requests import MAX_PROMPTS

Json = dict[str, Any]
_AT = "#/components/schemas/"


def _only(name: str, type_: str, *others: str) -> Json:
    """An object with member `name`, and without the others (or with null in their place)."""
    return {
        "required": [name],
        "properties": {name: {"type": type_}, **{other: {"type": "null"} for other in others}},
    }


def _without(*patterns: str) -> Json:
    return {"not": {"anyOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}}


_REPOSITORY = _without(r"\.\.", "--")
_REVISION = _without(r"\.\.", "//", "/$", r"/\.(/|$)")
_DOWNLOAD: Json = {
    "properties": {
        "repository_id": _REPOSITORY,
        "revision": _REVISION,
        "path": _without("^/", "/$", "//", r"(^|/)\.{1,2}(/|$)"),
    }
}
_TOKENS: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT: Json = {"type": "string", "minLength": 1}
_NEUTRAL: Json = {
    "n": {"enum": [1, None]},
    "frequency_penalty": {"enum": [0, None]},
    "presence_penalty": {"enum": [0, None]},
    "logit_bias": {"maxProperties": 0},
}
"""Parameters of `/v1` that are taken where they ask for nothing."""

_PASSED: Json = {
    "anyOf": [
        {"properties": {"exclude": {"type": "null"}}},
        {"properties": {"mode": {"const": "reconstruct"}}, "required": ["mode"]},
    ]
}
"""Only what reconstructs can be told what to pass through."""

RULES: dict[str, Json] = {
    "Attach": _PASSED,
    "AttachBody": _PASSED,
    "RequestedIntervention": _PASSED,
    "ActivationsBody": {
        "anyOf": [
            _only("prompt", "string", "messages", "token_ids"),
            _only("messages", "array", "prompt", "token_ids"),
            _only("token_ids", "array", "prompt", "messages"),
        ]
    },
    "CompletionBody": {
        "properties": {
            **_NEUTRAL,
            "prompt": {
                "anyOf": [
                    _TEXT,
                    _TOKENS,
                    {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_PROMPTS},
                    {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MAX_PROMPTS},
                ]
            },
        }
    },
    "ChatBody": {
        "properties": {
            **_NEUTRAL,
            "response_format": {"anyOf": [{"type": "null"}, {"const": {"type": "text"}}, {"const": {}}]},
        }
    },
    "Span": {
        "anyOf": [
            _only("tokens", "array", "from", "to", "role"),
            _only("from", "integer", "tokens", "role"),
            _only("to", "integer", "tokens", "role"),
            _only("role", "string", "tokens", "from", "to"),
        ]
    },
    "LoadModel": {"properties": {"revision": _REVISION}},
    "Download": _DOWNLOAD,
    "DownloadBody": _DOWNLOAD,
}
"""Struct → what else holds for it; strings only: null stays allowed where it is."""


class Schemas:
    """The schemas of some types: `of` each, and the `components` that they refer to."""

    def __init__(self, types: Iterable[Any]) -> None:
        parts = (each if isinstance(each, tuple) else (each,) for each in types)
        listed = [*(part for each in parts for part in each), *PAYLOADS.values()]
        made, components = msgspec.json.schema_components(listed, ref_template=_AT + "{name}")
        self._of = {id(each): _in_dialect(schema) for each, schema in zip(listed, made, strict=True)}
        self.components: Json = {name: _in_dialect(schema) for name, schema in sorted(components.items())}
        if Event.__name__ in self.components:
            self._tell_events_apart()
        for name, properties in _described(listed).items():
            if name in self.components:
                self.components[name]["properties"] |= _in_dialect(properties)
        for name, rule in RULES.items():
            if name in self.components:
                self.components[name] = _joined(self.components[name], rule)
        self.components["ProblemDetails"]["properties"]["code"] = {"enum": sorted(BY_CODE)}

    def of(self, type_: Any) -> Json:
        """The schema of one of the types, usually a reference; of a tuple: of any of them."""
        if isinstance(type_, tuple):
            return {"anyOf": [self.of(each) for each in type_]}
        found: Json = self._of[id(type_)]
        return found

    def _tell_events_apart(self) -> None:
        """`Event` as a union over the types of events. The payload of an event whose payload was erased is null."""
        base = self.components["Event"]
        for name in PAYLOADS:
            data = {"anyOf": [{"$ref": _AT + name}, {"type": "null"}]}
            own = {"type": {"const": name}, "data": data}
            self.components[f"{name}Event"] = {
                "title": f"{name}Event",
                "type": "object",
                "properties": {**base["properties"], **own},
                "required": base["required"],
            }
        mapping = {name: f"{_AT}{name}Event" for name in PAYLOADS}
        self.components["Event"] = {
            "title": "Event",
            "description": "One row of the log, one event of the stream.",
            "oneOf": [{"$ref": reference} for reference in mapping.values()],
            "discriminator": {"propertyName": "type", "mapping": mapping},
        }


def _described(types: Iterable[Any]) -> dict[str, dict[str, Json]]:
    """What types say that their bodies may hold besides the fields of their structs."""
    found: dict[str, dict[str, Json]] = {}
    for type_ in types:
        found |= getattr(type_, "described", dict)()
    return found


def _in_dialect(schema: Any) -> Any:
    r"""JSON as it is sent (no tuples), patterns as ECMA has them: `^` and `$` for Python's `\A` and `\Z`."""
    match schema:
        case dict():
            return {
                key: value.replace(r"\A", "^").replace(r"\Z", "$") if key == "pattern" else _in_dialect(value)
                for key, value in schema.items()
            }
        case list() | tuple():
            return [_in_dialect(each) for each in schema]
        case _:
            return schema


def _joined(schema: Json, rule: Json) -> Json:
    """The schema with a rule: for members in `properties` beside what is said of them, else for the whole."""
    properties = {
        name: {**said, **rule["properties"][name]} if name in rule.get("properties", {}) else said
        for name, said in schema.get("properties", {}).items()
    }
    others = {key: value for key, value in rule.items() if key != "properties"}
    return {**schema, "properties": properties, **others}


REPOSITORY: Json = {**_in_dialect(msgspec.json.schema(RepositoryId)), **_REPOSITORY}
REVISION: Json = {**_in_dialect(msgspec.json.schema(Revision)), **_REVISION}
"""Of query parameters."""
