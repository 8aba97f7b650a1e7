"""The description of the API (OpenAPI 3.1), made from the table of routes: what is not in the table is not served.

Bodies and answers are the structs that the table names, turned into JSON Schema; `json_schema` says what
msgspec cannot. Every refusal stands under its status with the codes that the route can give.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import msgspec

from ... import __version__
from ...domain.views.outcomes import AcceptedCommand
from ...domain.weights import sae_id_of
from ...errors import BY_CODE, SAEError
from ..operations import OPERATIONS, Operation
from ..problems import OpenAIError, ProblemDetails, openai_view, problem_view
from .json_schema import Schemas, in_dialect

Json = dict[str, Any]

ALWAYS = ("bad_request", "unauthorized", "forbidden", "request_timeout", "internal", "not_ready")
"""What comes before a route is asked: of the connection, the checks, or too many of either."""
WITH_BODY = ("unsupported_media_type", "too_large")
ON_COMMANDS = (
    "idempotency_key_reused",
    "precondition_failed",
    "mailbox_full",
    "not_ready",
    "draining",
    "read_only",
    "disk_full",
)
STREAMS = ("text/event-stream", "application/x-ndjson")
SAE_ID = sae_id_of("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.6.hook_resid_pre", "main")

_COMMAND_HEADERS: tuple[tuple[str, str, Json, str | None], ...] = (
    ("Idempotency-Key", "The same key and command have one effect, for the life of the log",
     {"type": "string", "pattern": "^[!-~]{1,128}$"}, None),
    ("If-Match", "The ETag of the state that the command is meant for; 412 where that has moved on",
     {"type": "string", "pattern": '^(\\*|"[0-9]{1,15}")$'}, "*"),
    ("Prefer", "`wait=N`: wait up to N seconds, at most 300, for the outcome", {"type": "string"}, "wait=30"),
)  # fmt: skip

_KEYED = (
    "The same key and request are answered once, without a stream: a repetition joins it, or gets its answer for 10 "
    "minutes, and later if the log has all of it. The text is made to its end, whoever leaves"
)

_PATH: dict[str, tuple[Json, str, str]] = {
    "sae_id": ({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,119}$"}, SAE_ID, "Id of an SAE"),
    "command_id": ({"type": "string"}, "0b7f2c1e-54a1-4c0e-9d5c-5a8f5a0e7f10", "Id of a command, from its answer"),
    "generation_id": ({"type": "string"}, "gen-0b7f2c1e-54a1-4c0e-9d5c-5a8f5a0e7f10", "Id of a text, from its answer"),
    "run_id": ({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}, "run-0b7f2c1e54a1", "Id of a run"),
    "texts_id": ({"type": "string"}, "texts-0123456789abcdef", "Id of uploaded texts"),
    "feature": ({"type": "string", "pattern": "^[0-9]{1,10}$"}, "584", "A feature of the SAE"),
    "model_id": ({"type": "string"}, "default", "Id of the loaded model, or `default`; may hold slashes"),
}
"""Parameter of a path → its schema, an example, what it is."""

_BEARER = "A token; a viewer's reads only, a user's has the routes with `x-users`"


def _header(about: str, *, required: bool = True, **schema: str) -> Json:
    return {"description": about, "required": required, "schema": {"type": "string", **schema}}


_HEADERS: dict[str, Json] = {
    "ETag": _header(
        "Last position that changed model, SAEs, attachments, steering, monitoring or presets; for `If-Match`",
        pattern='^"[0-9]+"$',
    ),
    "Location": _header("Where to ask what became of it", pattern="^/api/commands/.+$"),
    "LogHead": _header(
        "The last event of the log, position and hash: to keep, as `log verify` prints it",
        pattern="^[0-9]+:[0-9a-f]{64}$",
    ),
    "PreferenceApplied": _header(
        "The wait that was granted, where one was asked for", required=False, pattern="^wait=[0-9]+$"
    ),
    "RetryAfter": _header("Seconds after which it is worth trying again", pattern="^[1-9][0-9]*$"),
    "WWWAuthenticate": _header("How to authenticate", const="Bearer"),
}
_HEADERS["ETagOfJSON"] = {**_HEADERS["ETag"], "required": False}
_NAMES = {
    "ETagOfJSON": "ETag",
    "LogHead": "Log-Head",
    "PreferenceApplied": "Preference-Applied",
    "RetryAfter": "Retry-After",
    "WWWAuthenticate": "WWW-Authenticate",
}
"""Component → name of the header, where they differ."""


def description(*, secured: bool = False, cookie: str = "sae_actor_8000") -> Json:
    """OpenAPI 3.1 of every route in the table. secured: a token is asked for; cookie: the name of a login's."""
    types = [part for each in OPERATIONS for part in (each.body, each.or_body, each.returns, each.items) if part]
    schemas = Schemas([AcceptedCommand, ProblemDetails, OpenAIError, *types])
    paths: dict[str, Json] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, schemas, secured=secured)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sae-actor",
            "version": __version__,
            "summary": "Sparse autoencoders on a running language model: attach, steer, watch, and prove it.",
            "description": "Every write is a command: `POST /api/commands` takes each of them, the other routes are "
            "short for one. Errors are `application/problem+json`, under `/v1` in OpenAI's shape.",
        },
        "externalDocs": {"description": "The same, to be read in a browser", "url": "schema.html"},
        "tags": [{"name": name} for name in dict.fromkeys(each.tag for each in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": _BEARER,
                },
                "login": {"type": "apiKey", "in": "cookie", "name": cookie, "description": "What `/login` has set"},
            },
        },
    }


@functools.cache
def encoded(*, secured: bool, cookie: str) -> bytes:
    return msgspec.json.encode(description(secured=secured, cookie=cookie))


def _operation(each: Operation, schemas: Schemas, *, secured: bool) -> Json:
    made: Json = {
        "operationId": each.handler.__name__,
        "summary": each.summary,
        "tags": [each.tag],
        "parameters": _parameters(each),
        "responses": _responses(each, schemas),
        "security": _security(each, secured=secured),
    }
    if each.users:
        made["x-users"] = True
    if each.body is not None:
        content: Json = {"schema": schemas.of(each.body if each.or_body is None else (each.body, each.or_body))}
        if each.examples:
            content["examples"] = {name: {"value": value} for name, value in each.examples.items()}
        made["requestBody"] = {"required": not each.bodiless, "content": {"application/json": content}}
    if each.media:
        made["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": {"type": "string"}} for kind in each.media},
        }
    return made


def _security(each: Operation, *, secured: bool) -> list[Json]:
    if each.open:
        return []
    ways: list[Json] = [{"bearer": []}, {"login": []}]
    return ways if secured else [{}, *ways]


def _parameters(each: Operation) -> list[Json]:
    found: list[Json] = []
    for name in re.findall(r"{(\w+)}", each.path):
        schema, example, about = _PATH[name]
        found.append(_parameter(name, "path", schema, about, required=True, example=example))
    for q in each.query:
        made = _parameter(q.name, "query", in_dialect(q.schema), q.about, required=q.required)
        # Comma-separated.
        found.append({**made, "style": "form", "explode": False} if q.schema.get("type") == "array" else made)
    if each.keyed:
        _, _, schema, _ = _COMMAND_HEADERS[0]
        found.append(_parameter("Idempotency-Key", "header", schema, _KEYED, required=False))
    if each.command or each.waits:
        for name, about, schema, shown in _COMMAND_HEADERS if each.command else _COMMAND_HEADERS[-1:]:
            found.append(_parameter(name, "header", schema, about, required=False, example=shown))
    return found


def _parameter(name: str, where: str, schema: Json, about: str, *, required: bool, example: Any = None) -> Json:
    made = {"name": name, "in": where, "required": required, "description": about, "schema": schema}
    return made if example is None else {**made, "example": example}


# — answers —


def _responses(each: Operation, schemas: Schemas) -> Json:
    found: Json = {}
    for status, media_type in each.answers:
        entry = found.setdefault(str(status), {"description": "On record" if status == 202 else "The answer"})
        entry.setdefault("content", {})[media_type] = _content(each, status, media_type, schemas)
        if media_type == "application/json":
            entry["headers"] = _references(*_headers(each, status))
    for status, codes in _refusals(each).items():
        found[str(status)] = _refusal(status, codes, schemas, on_v1=each.path.startswith("/v1/"))
    return found


def _content(each: Operation, status: int, media_type: str, schemas: Schemas) -> Json:
    if media_type in STREAMS:
        # OpenAPI 3.1 has no word for the documents of a stream; 3.2 calls it itemSchema.
        return {} if each.items is None else {"x-item-schema": schemas.of(each.items)}
    if media_type == "application/json":
        shape = AcceptedCommand if status == 202 else each.returns
        return {"schema": {} if shape is None else schemas.of(shape)}
    if media_type == "application/x-tar":
        return {"schema": {"type": "string", "format": "binary"}}
    return {"schema": {"type": "object"} if "json" in media_type else {"type": "string"}}


def _headers(each: Operation, status: int) -> tuple[str, ...]:
    """Of an answer in JSON; a stream under the same status has no ETag."""
    streamed = any(media_type in STREAMS for other, media_type in each.answers if other == status)
    etag = "ETagOfJSON" if streamed else "ETag"
    if not each.command and not each.waits:
        return (etag,)
    names = (etag, "LogHead", "PreferenceApplied")
    return (*names, "Location") if status == 202 else names


def _references(*headers: str) -> Json:
    return {_NAMES.get(name, name): {"$ref": f"#/components/headers/{name}"} for name in headers}


def _refusals(each: Operation) -> dict[int, list[str]]:
    """Status → codes."""
    codes = [*each.errors, *ALWAYS, *(WITH_BODY if each.body is not None else ())]
    codes += ON_COMMANDS if each.command else ()
    found: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        found.setdefault(BY_CODE[code].status, []).append(code)
    return dict(sorted(found.items()))


def _refusal(status: int, codes: list[str], schemas: Schemas, *, on_v1: bool) -> Json:
    shape, media_type = (OpenAIError, "application/json") if on_v1 else (ProblemDetails, "application/problem+json")
    view: Callable[[SAEError], Any] = openai_view if on_v1 else problem_view
    own = {"properties": {"code": {"type": "string", "enum": codes}}}
    narrowed: Json = {"properties": {"error": own}} if on_v1 else own
    made: Json = {
        "description": "; ".join(f"`{code}`: {_title(code)}" for code in codes),
        "content": {
            media_type: {
                "schema": {"allOf": [schemas.of(shape), narrowed]},
                "examples": {code: {"value": view(BY_CODE[code]())} for code in codes},
            }
        },
    }
    if status in (429, 503):
        made["headers"] = _references("RetryAfter")
    if status == 401:
        made["headers"] = _references("WWWAuthenticate")
    return made


def _title(code: str) -> str:
    title = BY_CODE[code].title
    return title[0].lower() + title[1:] if title[1:2].islower() else title
