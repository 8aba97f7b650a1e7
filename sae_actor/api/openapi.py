"""The description of the API, made from the table of routes: what is not in the table is not served."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .. import __version__
from ..errors import BY_CODE
from .routes import TABLE, Operation

ALWAYS = ("bad_request", "unauthorized", "forbidden", "internal")
WITH_BODY = ("unsupported_media_type", "too_large")

_COMMAND_HEADERS = (
    ("Idempotency-Key", "1 to 128 visible ASCII characters; the same key and command have one effect",
     {"type": "string", "pattern": "^[!-~]{1,128}$"}),
    ("If-Match", "the ETag of the state that the command is meant for", {"type": "string"}),
    ("Prefer", "`wait=N`: wait up to N seconds for the outcome", {"type": "string"}),
)  # fmt: skip

PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(BY_CODE)},
    },
}
OPENAI_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def description() -> dict[str, Any]:
    """OpenAPI 3.1 of every route in the table."""
    bodies = [each.body for each in TABLE if each.body is not None]
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    of_body = dict(zip(map(id, bodies), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in TABLE:
        body = of_body[id(each.body)] if each.body is not None else None
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sae-actor", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": PROBLEM, "OpenAIError": OPENAI_ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(each: Operation, body: dict[str, Any] | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": each.handler.__name__,
        "summary": each.summary,
        "tags": [each.tag],
        "parameters": _parameters(each),
        "responses": _responses(each),
        "security": [{}] if each.open else [{}, {"bearer": []}],
    }
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return made


def _parameters(each: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", each.path)
    ]
    in_query = [
        {"name": q.name, "in": "query", "required": q.required, "description": q.about, "schema": q.schema}
        for q in each.query
    ]
    headers = [
        {"name": name, "in": "header", "required": False, "description": about, "schema": schema}
        for name, about, schema in (_COMMAND_HEADERS if each.command else ())
    ]
    return [*in_path, *in_query, *headers]


def _responses(each: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, media_type in each.answers:
        entry = found.setdefault(str(status), {"description": "The answer", "content": {}})
        entry["content"][media_type] = {"schema": {"type": "object"} if "json" in media_type else {"type": "string"}}
    codes = [*each.errors, *ALWAYS, *(WITH_BODY if each.body is not None else ())]
    on_v1 = each.path.startswith("/v1/")
    media_type = "application/json" if on_v1 else "application/problem+json"
    schema = {"$ref": f"#/components/schemas/{'OpenAIError' if on_v1 else 'Problem'}"}
    for code in codes:
        refused = str(BY_CODE[code].status)
        entry = found.setdefault(refused, {"description": "", "content": {media_type: {"schema": schema}}})
        if entry["description"] != "The answer":
            entry["description"] = ", ".join(filter(None, [entry["description"], f"`{code}`"]))
    return found
