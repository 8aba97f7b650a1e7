"""Answers held against the description: status, media type, headers, and every JSON document in them.

The description allows further members everywhere, so that adding one breaks no client; here each is looked for, so
that none goes undescribed.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs

import sae_actor.api.app  # noqa: F401 - fills the table of routes
from sae_actor.api.openapi.document import description
from sae_actor.config import Settings
from sae_actor.service.capabilities import capabilities

Json = dict[str, Any]
CAPABILITIES = capabilities(Settings())
OPEN = ("ProblemDetails", "Problem", "OpenAIError")
"""Components whose further members are their point."""
STREAMS = ("text/event-stream", "application/x-ndjson")


@functools.cache
def described() -> Json:
    return description()


async def conforms(answer: httpx.Response) -> None:
    """An event hook of httpx: fails the test where the description does not allow the answer."""
    found = operation_of(answer.request)
    if found is None:
        assert answer.status_code in (400, 403, 404, 405), f"{_told(answer)}: no such operation"
        return
    path, method, operation = found
    assert str(answer.status_code) in operation["responses"], f"{_told(answer)}: this status is not described"
    response = operation["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in response["content"], f"{_told(answer)}: {kind} is not described"
    for name, header in response.get("headers", {}).items():
        _header(answer, name, header)
    if kind in STREAMS:
        return
    await answer.aread()
    if "json" in kind:
        where = f"/paths/{pointer(path)}/{method}/responses/{answer.status_code}/content/{pointer(kind)}/schema"
        check(where, answer.json(), _told(answer))


def operation_of(request: httpx.Request) -> tuple[str, str, Json] | None:
    """Path, method and operation that a request is about; a path without parameters wins."""
    method = request.method.lower()
    for path in sorted(described()["paths"], key=lambda path: path.count("{")):
        form = re.sub(r"{(\w+)}", lambda part: ".+" if part[1] == "model_id" else "[^/]+", path)
        operation = described()["paths"][path].get(method)
        if operation is not None and re.fullmatch(form, request.url.path.rstrip("/") or "/"):
            return path, method, operation
    return None


def check(where: str, value: Any, told: str) -> None:
    """Raises AssertionError unless the value is one of the schema that stands at a pointer into the description."""
    error = next(_validator(where).iter_errors(value), None)
    assert error is None, f"{told}: {error.message} at /{'/'.join(map(str, error.instance_path))}"


def check_component(name: str, value: Any) -> None:
    check(f"/components/schemas/{name}", value, name)


@functools.cache
def _validator(where: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({"$ref": f"#{where}", **_closed()})


@functools.cache
def _closed() -> Json:
    """The description with objects that have no further members."""
    closed: Json = json.loads(json.dumps(described()))
    for name, component in closed["components"]["schemas"].items():
        if name not in OPEN and "properties" in component:
            component.setdefault("additionalProperties", False)
    return closed


def _header(answer: httpx.Response, name: str, header: Json) -> None:
    header = described()["components"]["headers"][header["$ref"].rpartition("/")[2]]
    value = answer.headers.get(name)
    assert value is not None or not header.get("required"), f"{_told(answer)}: no {name}"
    if value is not None:
        jsonschema_rs.validate(header["schema"], value)


def pointer(part: str) -> str:
    return quote(part.replace("~", "~0").replace("/", "~1"), safe="~")


def _told(answer: httpx.Response) -> str:
    return f"{answer.request.method} {answer.request.url} → {answer.status_code}"
