"""JSON Schema of the structs, with what msgspec cannot say of them.

Patterns are written for JSON Schema's dialect; events are a union told apart by `type`, each with its own payload;
rules that a struct checks in `__post_init__` are said in `RULES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ...domain.commands import Device, ModelDtype, PlainText, Quantization, RepositoryId, Revision
from ...domain.events import PAYLOADS, Event
from ...errors import BY_CODE
from ..requests import MAX_PROMPTS

Json = dict[str, Any]
_AT = "#/components/schemas/"


def _given(*names: str) -> Json:
    """All of these members, none of them null."""
    return {"required": [*names], "properties": {name: {"not": {"type": "null"}} for name in names}}


def _one_of(*groups: tuple[str, ...]) -> Json:
    """Members of exactly one of the groups are given. Said by `not` alone, which generators of clients pass over: to
    them a union of the forms would be one of nameless types."""
    first = [(one, other) for at, one in enumerate(groups) for other in groups[at + 1 :]]
    both = [_given(a, b) for one, other in first for a in one for b in other]
    none = {"not": {"anyOf": [_given(name) for group in groups for name in group]}}
    return {"not": {"anyOf": [*both, none]}}


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

_PASSED: Json = {
    "not": {**_given("exclude"), "not": {"properties": {"mode": {"const": "reconstruct"}}, "required": ["mode"]}}
}
"""Only what reconstructs can be told what to pass through."""

RULES: dict[str, Json] = {
    "DirectionsBody": _one_of(("positive", "negative"), ("random_seed", "norm_of")),
    "Attach": _PASSED,
    "AttachBody": _PASSED,
    "RequestedIntervention": _PASSED,
    "ActivationsBody": _one_of(("prompt",), ("messages",), ("token_ids",), ("inputs",)),
    "LensBody": _one_of(("prompt",), ("messages",), ("token_ids",)),
    "ContinuedInput": _one_of(("prompt",), ("messages",), ("token_ids",)),
    "Input": _one_of(("prompt",), ("messages",), ("token_ids",)),
    "SearchBody": _one_of(("prompt",), ("messages",), ("token_ids",)),
    "CompletionBody": {
        "properties": {
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
    "Span": _one_of(("tokens",), ("from", "to"), ("role",)),
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
        self._of = {id(each): in_dialect(schema) for each, schema in zip(listed, made, strict=True)}
        self.components: Json = {name: in_dialect(schema) for name, schema in sorted(components.items())}
        if Event.__name__ in self.components:
            self._tell_events_apart()
        for name, properties in _described(listed).items():
            if name in self.components:
                self.components[name]["properties"] |= in_dialect(properties)
        for name, rule in RULES.items():
            if name in self.components:
                self.components[name] = _joined(self.components[name], rule)
        self.components["ProblemDetails"]["properties"]["code"] = {"type": "string", "enum": sorted(BY_CODE)}

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
            own = {"type": {"type": "string", "const": name}, "data": data}
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


def in_dialect(schema: Any) -> Any:
    r"""JSON as it is sent, and as generators of clients take it.

    Tuples are lists of any of their types, since `items: false` after `prefixItems` is more than they read. Lists say
    what is in them. Patterns are as ECMA has them: `^` and `$` for Python's `\A` and `\Z`.
    """
    match schema:
        case {"type": "array", "prefixItems": [first, *others], **more}:
            kinds = [first, *(each for each in others if each != first)]
            return in_dialect({**more, "type": "array", "items": first if len(kinds) == 1 else {"anyOf": kinds}})
        case {"type": "array", **more} if more.keys().isdisjoint(("items", "prefixItems")):
            return in_dialect({**schema, "items": {}})
        case {"anyOf": alternatives, "discriminator": _, **more}:
            # Its tag makes it one of them, which is a union of types to generators.
            return in_dialect({**more, "oneOf": alternatives, "discriminator": schema["discriminator"]})
        case {"additionalProperties": {"type": "array", "items": {"enum": _}} as lists}:
            # openapi-generator looks the lists themselves up among the words.
            return in_dialect({**schema, "additionalProperties": {**lists, "items": {"type": "string"}}})
        case dict():
            typed = {} if "type" in schema or not _is_words(schema) else {"type": "string"}
            return typed | {
                key: value.replace(r"\A", "^").replace(r"\Z", "$") if key == "pattern" else in_dialect(value)
                for key, value in schema.items()
            }
        case list() | tuple():
            return [in_dialect(each) for each in schema]
        case _:
            return schema


def _is_words(schema: Json) -> bool:
    """A choice of words, whose type generators do not read from the words."""
    said = schema.get("enum", [schema.get("const")])
    return isinstance(said, list) and all(isinstance(each, str) for each in said)


def _joined(schema: Json, rule: Json) -> Json:
    """The schema with a rule: for members in `properties` beside what is said of them, else for the whole."""
    properties = {
        name: {**said, **rule["properties"][name]} if name in rule.get("properties", {}) else said
        for name, said in schema.get("properties", {}).items()
    }
    others = {key: value for key, value in rule.items() if key != "properties"}
    return {**schema, "properties": properties, **others}


REPOSITORY: Json = {**in_dialect(msgspec.json.schema(RepositoryId)), **_REPOSITORY}
REVISION: Json = {**in_dialect(msgspec.json.schema(Revision)), **_REVISION}
MODEL: Json = {**in_dialect(msgspec.json.schema(PlainText)), "minLength": 1}
MODEL_DTYPE: Json = {**in_dialect(msgspec.json.schema(ModelDtype)), "default": "auto"}
QUANTIZATION: Json = in_dialect(msgspec.json.schema(Quantization))
DEVICE: Json = {**in_dialect(msgspec.json.schema(Device)), "default": "auto"}
"""Of query parameters."""
